"""The image encoder of published AWSC checkpoints, with that layout's names, and one that keeps positions."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128)
"""Channels after each 3x3 convolution."""
SMALLEST_IMAGE = 2 ** len(WIDTHS)
"""Pixels: every level halves the image, and one must be left."""


class VisualEncoder(nn.Module):
    """Images of 16 x 16 pixels and more to V features.

    Args:
        channels: of an image; 3 per camera.
        visual_dim: V.
        image_size: (height, width) of the only images it takes: every place of the last map has weights of its
            own, so that features can tell where things are. None is the published encoder, which takes images of
            any size and keeps each channel's maximum over all places.
    """

    def __init__(self, channels: int, visual_dim: int, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for wider in WIDTHS:
            # ReLU after the pooling gives what the published order gives, on a quarter of the numbers.
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
            width = wider
        self.channels, self.visual_dim = channels, visual_dim
        self.cnn = nn.Sequential(*layers, nn.Conv2d(width, width, 1), nn.ReLU())
        # Images come with the channels last: weights of the other layout make every step 1.7 times as long.
        nn.utils.convert_conv2d_weight_memory_format(self.cnn, torch.channels_last)
        self.pool: nn.Module = nn.AdaptiveMaxPool2d(1)
        if image_size is not None:
            self.pool = nn.Identity()
            width *= (image_size[0] // SMALLEST_IMAGE) * (image_size[1] // SMALLEST_IMAGE)
        self.fc = nn.Sequential(nn.Linear(width, visual_dim), nn.ReLU())

    def forward(self, images: UInt8[Tensor, "N height width C"]) -> Float[Tensor, "N V"]:
        """Features of images; intensities are always divided by 255, whatever the batch holds."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        features: Tensor = self.fc(self.pool(self.cnn(pixels)).flatten(1))
        return features
