"""Worlds that can be drawn in no time, and videos as they are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from latent_worlds import Reach


class DrawnReach(Reach):
    """``Reach`` as an image of 32 x 64: a white column where the point is, on a black ground. Who wants one
    must say so when it is made."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        assert self.render_mode == "rgb_array"
        image = np.zeros((32, 64, 3), np.uint8)
        column = int(np.clip(32 + 16 * self._at, 0, 60))
        image[:, column : column + 4] = 255
        return image


class Undrawn(Reach):
    """Has ``render_mode``, and draws no image."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return "a point on a line"


gym.register("DrawnReach-v0", DrawnReach, max_episode_steps=12)
gym.register("Undrawn-v0", Undrawn, max_episode_steps=12)


def read_video(path: Path) -> np.ndarray:
    """The frames of an MP4, uint8 ``[N, H, W, 3]``, decoded by ffmpeg."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of two images, in grey levels: 1 or 2 is what the encoder loses."""
    return float(np.abs(one.astype(float) - other.astype(float)).mean())
