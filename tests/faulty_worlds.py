"""Gymnasium environments of MetaWorld's shapes that go wrong: ``faulty_worlds:NanReward-v0``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class NanReward(gym.Env):
    """Rewards 0 until env step 30 of an episode, then NaN; never ends, never succeeds."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._steps = 0
        return np.zeros(39, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        obs = np.full(39, self._steps, np.float32)
        return obs, float("nan") if self._steps >= 30 else 0.0, False, False, {"success": False}


class NanObservation(NanReward):
    """Observes NaN from env step 30 on."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        if self._steps >= 30:
            obs[3] = np.nan
        return obs, 0.0, terminated, truncated, info


gym.register("NanReward-v0", NanReward)
gym.register("NanObservation-v0", NanObservation)
