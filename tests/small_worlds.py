"""Environments to count in and environments that go wrong, free of torch: processes import them in no time.

By name for a command: ``small_worlds:NanReward-v0``, of the shapes of MetaWorld's tasks.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.macro_step import MacroStepEnv
from dsrl_offpolicy.envs.spec import EnvSpec


class CountingEnv(gym.Env):
    """Observes ``[seed of the episode, env steps so far]``; step k brings reward k; success as given.

    Stepping on after the end is an error. ``actions`` keeps what was executed in the running episode.

    Args:
        terminate_at: env step on which the episode terminates; None for never.
        truncate_at: env step on which it is truncated; None for never.
        success_at: env steps that report success.
        varied: adds ``seed % varied`` to ``terminate_at``, so that episodes differ in length.
    """

    def __init__(
        self,
        terminate_at: int | None = None,
        truncate_at: int | None = None,
        success_at: Sequence[int] = (),
        action_dim: int = 1,
        varied: int = 1,
    ) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (action_dim,), np.float32)
        self.terminate_at, self.truncate_at, self.success_at = terminate_at, truncate_at, success_at
        self.varied = varied
        self.episode, self.steps, self.resets = -1, 0, 0
        self.ended = True
        self.actions: list[list[float]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.episode = self.episode + 1 if seed is None else seed
        self.steps, self.ended, self.actions = 0, False, []
        self.resets += 1
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.ended:
            raise RuntimeError("stepped on after the end of the episode")
        self.actions.append([round(float(a), 4) for a in np.atleast_1d(action)])
        self.steps += 1
        last = None if self.terminate_at is None else self.terminate_at + self.episode % self.varied
        terminated, truncated = self.steps == last, self.steps == self.truncate_at
        self.ended = terminated or truncated
        info = {"success": self.steps in self.success_at}
        return self._observation(), float(self.steps), terminated, truncated, info

    def _observation(self) -> np.ndarray:
        return np.array([self.episode, self.steps], dtype=np.float32)


def counting_spec(**changes: Any) -> EnvSpec:
    """The spec of a macro-step environment over a :class:`CountingEnv`."""
    values: dict[str, Any] = {"obs_horizon": 2, "act_horizon": 2, "gamma": 0.5, **changes}
    return EnvSpec("counting", **values)


class Fragile(CountingEnv):
    """Raises at an action above .9."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action[0] > 0.9:
            raise RuntimeError("the arm\nis outside its workspace")
        return super().step(action)


class Broken(CountingEnv):
    """Dies in every step."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        os._exit(7)


class Unbuildable(CountingEnv):
    """Dies where it is built in a process that another one started."""

    def __init__(self, **settings: Any) -> None:
        if multiprocessing.parent_process() is not None:
            os._exit(7)
        super().__init__(**settings)


class Leaving(CountingEnv):
    """Makes a file when it is closed."""

    def __init__(self, path: str) -> None:
        super().__init__(truncate_at=6)
        self._path = path

    def close(self) -> None:
        Path(self._path).touch()


def make_leaving(path: str) -> MacroStepEnv:
    """One that says with a file that it was closed."""
    return MacroStepEnv(Leaving(path), counting_spec())


def make_counting(kind: type[CountingEnv]) -> MacroStepEnv:
    """A macro-step environment of 2 frames and chunks of 2; episodes are truncated after 6 env steps."""
    return MacroStepEnv(kind(truncate_at=6), counting_spec())


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
