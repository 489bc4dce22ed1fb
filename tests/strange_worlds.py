"""An environment family of somebody else's, free of torch: images, a force, and an instruction in its observation.

By name for a command: ``--env_family strange_worlds:Robots --env_id arm``.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.family import Capabilities, EnvFamily
from dsrl_offpolicy.envs.spec import EnvSpec

CALLS: list[str] = []
"""What was asked of the robots in this process."""


class Robot(gym.Env):
    """Observes ``[seed, env steps]``, an image of the count, a force and an instruction that changes with
    it; writes every observation into the same memory."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            {
                "state": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
                "rgb": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8),
                "force": gym.spaces.Box(-9, 9, (1,), np.float32),
                "instruction": gym.spaces.Text(40, charset="abcdefghijklmnopqrstuvwxyz 0123456789"),
            }
        )
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.state, self.rgb = np.zeros(2, np.float32), np.zeros((4, 4, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        CALLS.append("reset")
        self.state[:] = (seed or 0) % 1000, 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        CALLS.append("step")
        self.state[1] += 1
        return self._observation(), 0.0, False, False, {"success": False}

    def _observation(self) -> dict[str, Any]:
        self.rgb[:] = self.state[1]
        force = np.array([self.state[1] / 10], np.float32)
        return {"state": self.state, "rgb": self.rgb, "force": force, "instruction": f"step {int(self.state[1])}"}


class Robots(EnvFamily):
    """Robots that may not be stepped on trial, replayed, killed or doubled, and are reset by hand."""

    name = "strange_worlds:Robots"
    settings = frozenset({"obs_mode"})
    allowed = Capabilities(
        replayable=False, exclusive=True, supervised_reset=True, killable=False, trial_steps=False
    )

    def tasks(self) -> list[str]:
        return ["arm", "slow_reset", "stuck", "slow_build"]

    def capabilities(self, spec: EnvSpec) -> Capabilities:
        return self.allowed

    def make(self, spec: EnvSpec) -> gym.Env:
        CALLS.append("make")
        return {"arm": Robot, "slow_reset": SlowReset, "stuck": Stuck, "slow_build": SlowBuild}[spec.env_id]()


class SlowReset(Robot):
    """Resets in 3 seconds."""

    def reset(self, **settings: Any) -> tuple[Any, dict]:
        time.sleep(3)
        return super().reset(**settings)


class Stuck(Robot):
    """Takes 4 seconds for a step."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(4)
        return super().step(action)


class SlowBuild(Robot):
    """Stands after 20 seconds in a process, at once elsewhere."""

    def __init__(self) -> None:
        import multiprocessing

        super().__init__()
        if multiprocessing.parent_process() is not None:
            time.sleep(20)


class Unlimited(gym.Env):
    """Never ends, tells success as NaN, or fails in its third step."""

    def __init__(self, fails: bool = False, success: float = 0.0) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self.fails, self.success, self.steps = fails, success, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.steps = 0
        return np.zeros(39, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        failed = self.fails and self.steps == 3
        return np.zeros(39, np.float32), 0.0, failed, False, {"success": self.success}


gym.register("Unlimited-v0", Unlimited)
gym.register("Failing-v0", Unlimited, kwargs={"fails": True}, max_episode_steps=20)
gym.register("NanSuccess-v0", Unlimited, kwargs={"success": float("nan")}, max_episode_steps=20)


class OneRoom(EnvFamily):
    """One room for training and evaluation alike, of the shapes of MetaWorld's tasks."""

    name = "strange_worlds:OneRoom"

    def tasks(self) -> list[str]:
        return ["room"]

    def capabilities(self, spec: EnvSpec) -> Capabilities:
        return Capabilities(exclusive=True, replayable=False)

    def make(self, spec: EnvSpec) -> gym.Env:
        return Unlimited()
