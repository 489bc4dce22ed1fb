"""From frames to features: states normalised, images through the visual encoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.visual_encoder import SMALLEST_IMAGE, VisualEncoder

FEATURE_LIMIT = 10.0
"""Normalised states are clamped to this many standard deviations of the demonstrations."""


class ObservationEncoder(nn.Module):
    """Features of frames: ``[visual, state]`` per frame; a stack's frames are concatenated, oldest first.

    A state is normalised by the demonstrations' mean and standard deviation, then clamped.

    Args:
        mean: ``[S]``.
        std: ``[S]``.
        visual: encoder of the images; None for a policy of states alone.
        limit: standard deviations at which normalised states are clamped; infinity leaves them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Float[Tensor, " S"],
        std: Float[Tensor, " S"],
        visual: VisualEncoder | None = None,
        *,
        limit: float = FEATURE_LIMIT,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.visual = visual
        self.limit = limit

    @classmethod
    def fit(cls, states: Float[Tensor, "N S"], visual: VisualEncoder | None = None) -> ObservationEncoder:
        """Fit to the demonstrations' states; dimensions that never vary are only centred."""
        std = states.std(0)
        return cls(states.mean(0), torch.where(std > 1e-4, std, torch.ones_like(std)), visual)

    @property
    def image_channels(self) -> int:
        """3 per camera, 0 without images."""
        return self.visual.channels if self.visual is not None else 0

    def encode_frames(self, state: Tensor, rgb: Tensor | None = None) -> Float[Tensor, "N F"]:
        """Return features of single frames.

        Args:
            state: ``[N, S]``.
            rgb: ``[N, H, W, 3k]`` uint8 of k cameras; needed, and read, only by a policy of images.

        Returns:
            ``[N, V+S]``.

        Raises:
            InputError: a wrong shape or dtype, missing images, or another number of cameras.
        """
        dim = len(self.mean)
        if state.ndim != 2 or state.shape[1] != dim:
            raise InputError(f"state: expected [N, {dim}], got {list(state.shape)}")
        if not state.is_floating_point():
            raise InputError(
                f"state: expected floating-point numbers, got {str(state.dtype).removeprefix('torch.')}"
            )
        normal = ((state - self.mean) / self.std).clamp(-self.limit, self.limit)
        if self.visual is None:
            return normal
        return torch.cat((self.visual(check_images(rgb, self.image_channels, (state.shape[0],))), normal), dim=-1)

    def forward(self, state: Tensor, rgb: Tensor | None = None) -> Float[Tensor, "B D"]:
        """Return features of frame stacks ``[B, o, S]`` and, for a policy of images, ``[B, o, H, W, 3k]`` uint8.

        Raises:
            InputError: as ``encode_frames``.
        """
        if state.ndim != 3:
            raise InputError(f"state: expected [B, o, {len(self.mean)}], got {list(state.shape)}")
        batch, horizon = state.shape[:2]
        images = None
        if self.visual is not None:
            images = check_images(rgb, self.image_channels, (batch, horizon)).flatten(0, 1)
        frames = self.encode_frames(state.flatten(0, 1), images)
        return frames.unflatten(0, (batch, horizon)).flatten(1)


def check_images(
    rgb: Tensor | None, channels: int, leading: tuple[int, ...], size: tuple[int, int] | None = None
) -> Tensor:
    """Return the images if they are what a policy takes.

    Args:
        rgb: what was given.
        channels: expected channels, 3 per camera.
        leading: expected sizes before height, width and channels.
        size: expected (height, width); None for any that is large enough.

    Raises:
        InputError: none given, another dtype, shape, number of cameras or size.
    """
    if rgb is None:
        raise InputError("rgb: expected uint8 images under 'rgb' beside the state, got none")
    wanted = [*leading, *(size or ("height", "width")), channels]
    shown = f"[{', '.join(map(str, wanted))}]"
    if rgb.dtype != torch.uint8:
        raise InputError(f"rgb: expected uint8 {shown}, got {_name(rgb.dtype)}")
    shape = tuple(rgb.shape)
    if len(shape) != len(wanted) or shape[: len(leading)] != leading:
        raise InputError(f"rgb: expected {shown}, got {list(shape)}")
    if shape[-1] != channels:
        if channels % 3 == 0 and shape[-1] % 3 == 0:
            raise InputError(f"rgb: cameras: expected {channels // 3}, got {shape[-1] // 3} (3 channels each)")
        raise InputError(f"rgb: expected {channels} channels (3 per camera, last), got {list(shape)}")
    if size is not None and shape[-3:-1] != size:
        raise InputError(f"rgb: expected images of {size[0]} x {size[1]} pixels, got {shape[-3]} x {shape[-2]}")
    if min(shape[-3:-1]) < SMALLEST_IMAGE:
        raise InputError(
            f"rgb: expected at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE} pixels, got {shape[-3]} x {shape[-2]}"
        )
    return rgb


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
