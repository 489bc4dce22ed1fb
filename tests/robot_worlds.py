"""A simulated arm with somebody beside it: it remembers every command, and can be asked what it was sent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.robot import Limits, Operator, RobotSetup, ScriptedOperator

SHAPE = (39,)
"""Of MetaWorld's states, so that small base policies fit."""


class Arm(gym.Env):
    """A point that moves by a tenth of what it is sent; ``log`` holds every command, stop and reset."""

    def __init__(self, seconds: float = 0.0, limit: int = 20) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, SHAPE, np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self.seconds, self.limit = seconds, limit
        self.log: list[Any] = []
        self.position = np.zeros(3)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.log.append("reset")
        self.position, self.steps = np.zeros(3), 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        self.log.append(np.array(action))
        self.position = self.position + 0.1 * action[:3]
        self.steps += 1
        return self._observation(), 0.0, False, self.steps >= self.limit, {"ee_pos": self.position}

    def stop(self) -> None:
        self.log.append("stop")

    def _observation(self) -> np.ndarray:
        state = np.zeros(SHAPE, np.float32)
        state[:3] = self.position
        return state

    @property
    def events(self) -> list[str]:
        return [entry for entry in self.log if isinstance(entry, str)]

    @property
    def sent(self) -> list[np.ndarray]:
        return [entry for entry in self.log if isinstance(entry, np.ndarray)]


def strays(obs: np.ndarray) -> bool:
    return float(np.abs(obs[:3]).max()) > 0.35


def back(obs: np.ndarray) -> np.ndarray:
    """Towards the middle."""
    return np.append(-np.sign(obs[:3]), 0.0).astype(np.float32)


class Watched(RobotSetup):
    """Somebody moves it back where it strays."""

    limits = Limits(change=0.5)

    def make_env(self) -> gym.Env:
        return Arm()

    def make_operator(self) -> Operator:
        return ScriptedOperator(back, strays, rows=2)


class Recorded(Watched):
    """... and says that this is what was wanted; every session is recorded below the working directory."""

    record_to = Path("sessions")

    def make_operator(self) -> Operator:
        return ScriptedOperator(back, strays, rows=2, verdict=lambda obs: "success" if strays(obs) else None)


class Unstoppable(Watched):
    def make_env(self) -> gym.Env:
        return gym.make("Pendulum-v1")
