"""A small environment with two cameras that says what to do, free of torch: ``--env_family vla_worlds:Tables``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.family import EnvFamily
from dsrl_offpolicy.envs.spec import EnvSpec

TASKS = {"push the cube": 1.0, "pull now": -1.0}
"""Where the cube is to go, by instruction."""
LETTERS = "abcdefghijklmnopqrstuvwxyz "


class Table(gym.Env):
    """Observes where three joints and the cube are, two images of 20 x 24 pixels and, unless it is ``silent``, the
    task in words. The cube follows the first joint."""

    def __init__(self, silent: bool = False) -> None:
        spaces: dict[str, gym.Space] = {
            "state": gym.spaces.Box(-9, 9, (4,), np.float32),
            "rgb": gym.spaces.Box(0, 255, (20, 24, 6), np.uint8),
        }
        self.silent = silent
        if not silent:
            spaces["instruction"] = gym.spaces.Text(40, charset=LETTERS)
        self.observation_space = gym.spaces.Dict(spaces)
        self.action_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        self.state, self.task = np.zeros(4, np.float32), ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.state = np.append(self.np_random.uniform(-0.5, 0.5, 3), 0).astype(np.float32)
        self.task = list(TASKS)[int(self.np_random.integers(2))]
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state[:3] = (self.state[:3] + 0.1 * action).clip(-2, 2)
        self.state[3] = self.state[0]
        distance = abs(float(self.state[3]) - TASKS[self.task])
        return self._observation(), -distance, False, False, {"success": distance < 0.1}

    def _observation(self) -> dict[str, Any]:
        rgb = np.zeros((20, 24, 6), np.uint8)
        column = int(6 * (self.state[3] + 2)) % 24
        rgb[:, column] = 255
        seen = {"state": self.state.copy(), "rgb": rgb, "instruction": self.task}
        return {name: seen[name] for name in self.observation_space.spaces}


class Tables(EnvFamily):
    """``table``, and ``silent_table``, which says nothing."""

    name = "vla_worlds:Tables"
    settings = frozenset({"obs_mode"})

    def tasks(self) -> list[str]:
        return ["table", "silent_table"]

    def make(self, spec: EnvSpec) -> gym.Env:
        return Table(silent=spec.env_id == "silent_table")
