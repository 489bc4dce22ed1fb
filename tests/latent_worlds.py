"""A world in which the right noise is worth a lot, free of torch: processes import it in no time."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Reach(gym.Env):
    """Observes ``[position, goal]`` of a point on a line. The goal is -1 or 1 by the seed's parity, a step moves
    by a quarter of the action, and within .15 of the goal it succeeds. The dense reward is minus the distance."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self._at = self._goal = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._at, self._goal = 0.0, 1.0 if (seed or 0) % 2 else -1.0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._at += 0.25 * float(action[0])
        distance = abs(self._at - self._goal)
        return self._observation(), -distance, False, False, {"success": distance < 0.15}

    def _observation(self) -> np.ndarray:
        return np.array([self._at, self._goal], np.float32)


gym.register("Reach-v0", Reach, max_episode_steps=12)
"""By name for a command: ``latent_worlds:Reach-v0``."""
