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
        image_size: (height, width) of the only images it takes. Such an encoder sees how an image differs from
            the mean one (:meth:`fit`), every place of its last map has weights of its own, and its features are
            normalised and bounded (LayerNorm and tanh, as in Yarats et al., *Improving Sample Efficiency in
            Model-Free RL from Images*): they tell where things are, and none of them dies. None is the
            published encoder, which takes images of any size and keeps each channel's maximum over all places.
    """

    mean: Tensor
    scale: Tensor

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
        self.image_size = image_size
        if image_size is None:
            self.pool: nn.Module = nn.AdaptiveMaxPool2d(1)
            self.fc = nn.Sequential(nn.Linear(width, visual_dim), nn.ReLU())
        else:
            height, breadth = image_size
            self.register_buffer("mean", torch.zeros(height, breadth, channels))
            self.register_buffer("scale", torch.ones(()))
            self.pool = nn.Identity()
            width *= (height // SMALLEST_IMAGE) * (breadth // SMALLEST_IMAGE)
            self.fc = nn.Sequential(nn.Linear(width, visual_dim), nn.LayerNorm(visual_dim), nn.Tanh())

    def fit(self, images: UInt8[Tensor, "N height width C"]) -> None:
        """Take the mean image and the scale of the deviations from these; the published encoder needs neither."""
        if self.image_size is None:
            return
        total, squares = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for part in images.split(256):  # as bytes they may fill the memory
            pixels = part.to(self.mean.device).float() / 255
            total += pixels.sum(0)
            squares += pixels.square().sum(0)
        self.mean.copy_(total / len(images))
        self.scale.copy_((squares / len(images) - self.mean.square()).mean().clamp(min=1e-6).sqrt())

    def forward(self, images: UInt8[Tensor, "N height width C"]) -> Float[Tensor, "N V"]:
        """Return features of images; intensities are always divided by 255, whatever the batch holds."""
        pixels = images.float() / 255
        if self.image_size is not None:
            pixels = (pixels - self.mean) / self.scale
        features: Tensor = self.fc(self.pool(self.cnn(pixels.permute(0, 3, 1, 2))).flatten(1))
        return features
