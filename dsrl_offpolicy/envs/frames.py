"""Draw an environment as a spectator sees it, for videos. Free of torch."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.errors import InputError

FRAME_HEIGHT = 256
"""Pixels. Families that choose draw so high; a higher image is scaled down."""


def draw(env: gym.Env) -> np.ndarray:
    """Return the current state as an image, uint8 ``[h, w, 3]``, at most :data:`FRAME_HEIGHT` high.

    Raises:
        InputError: ``render()`` returns something else.
    """
    image: Any = env.render()
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"expected render() to return an image, uint8 [H, W, 3], got {got}")
    height, width = image.shape[:2]
    if height <= FRAME_HEIGHT:
        return image
    from PIL import Image

    smaller = (max(1, round(width * FRAME_HEIGHT / height)), FRAME_HEIGHT)
    return np.asarray(Image.fromarray(image).resize(smaller, Image.Resampling.LANCZOS))


class FrameRecorder:
    """Draws the frames of one environment while a chunk is executed, and hands them over after it.

    Args:
        env: steps single actions; its ``render()`` draws.
        every: env steps between frames. The start and the end of an episode are always drawn.
        act_horizon: H, most env steps of a chunk.
    """

    def __init__(self, env: gym.Env, every: int, act_horizon: int) -> None:
        self._env, self._every, self._most = env, every, act_horizon + 1
        self._drawn: list[tuple[np.ndarray, int, bool]] = []
        self._shape: tuple[int, ...] = ()

    def begin(self) -> None:
        """Draw the start of an episode; what was not taken of the last one is dropped."""
        self._drawn = [(draw(self._env), 0, False)]
        self._shape = self._drawn[0][0].shape

    def see(self, step: int, success: bool, *, last: bool) -> None:
        """Draw the state after env step ``step`` of the episode if it is its turn, or the last."""
        if last or step % self._every == 0:
            self._drawn.append((draw(self._env), step, success))

    def nothing(self) -> dict[str, np.ndarray]:
        """Return what :meth:`take` returns where nothing was drawn."""
        return {
            "frames": np.zeros((self._most, *self._shape), np.uint8),
            "frame_step": np.full(self._most, -1),
            "frame_success": np.zeros(self._most, bool),
        }

    def take(self) -> dict[str, np.ndarray]:
        """Return what was drawn since the last time, and forget it: ``frames`` ``[H + 1, h, w, 3]``,
        ``frame_step`` ``[H + 1]``, the env steps before each, -1 where there is none, and ``frame_success``
        ``[H + 1]``, whether the episode had succeeded by then. The start of an episode comes with its first chunk.
        """
        taken = self.nothing()
        for i, drawn in enumerate(self._drawn):
            taken["frames"][i], taken["frame_step"][i], taken["frame_success"][i] = drawn
        self._drawn = []
        return taken
