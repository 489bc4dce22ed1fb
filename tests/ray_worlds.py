"""A small Ray for the tests of a module, and worlds for its actors that are quick to start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from small_worlds import CountingEnv, counting_spec

from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.envs.family import MacroVectorEnv


class Wandering(gym.Env):
    """Of the shapes of MetaWorld's tasks: a seeded point that actions push; success near the origin."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._point = self.np_random.uniform(-1, 1, 39)
        return self._point.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._point[:4] += 0.1 * action
        distance = float(np.linalg.norm(self._point[:4]))
        return self._point.astype(np.float32), -distance, False, False, {"success": distance < 0.7}


gym.register("Wandering-v0", Wandering)


@contextlib.contextmanager
def ray_of_this_module(cpus: int = 8) -> Iterator[str]:
    """Inside, this process has a Ray of its own, whose address it yields; actors find the tests' modules."""
    import ray

    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ.update(RAY_worker_niceness="0", RAY_USAGE_STATS_ENABLED="0")
    try:
        ray.init(
            num_cpus=cpus, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def counting_envs(index: int, action_dim: int = 1) -> MacroVectorEnv:
    """Two environments that count, in the actor's own process."""
    from tiny_worlds import counting_vector

    envs = [CountingEnv(truncate_at=6, action_dim=action_dim) for _ in range(2)]
    return counting_vector(envs, counting_spec())


def counting_envs_of_two_kinds(index: int) -> MacroVectorEnv:
    """The second runner's have another action."""
    return counting_envs(index, action_dim=1 + index)


def halving_base() -> tuple[BasePolicy, torch.device]:
    """A base policy for them."""
    from tiny_worlds import HalvingPolicy

    return HalvingPolicy(), torch.device("cpu")
