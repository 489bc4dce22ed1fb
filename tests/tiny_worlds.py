"""Worlds small enough to work out by hand, and the flags that make every stage small."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.envs.macro_step import MacroStepEnv
from dsrl_offpolicy.envs.spec import EnvSpec

TASK = "lever-pull-v3"
"""The task of every tiny run, whatever the default task is."""

TINY_WIDTHS = ["--actor_hidden_dims", "16", "--critic_hidden_dims", "16"]
TINY_BASE = [
    "--env_id", TASK, "--total_iters", "20", "--batch_size", "16", "--log_freq", "10",
    "--velocity_widths", "16", "--embed_dim", "8", "--critic_hidden_dims", "16", "--denoising_steps", "2",
]  # fmt: skip
TINY_STAGE1 = [
    "--env_id", TASK, "--total_iters", "6", "--batch_size", "8", "--log_freq", "3",
    "--num_candidates", "4", "--eval_freq", "0", "--verify_states", "8", "--verify_samples", "4", *TINY_WIDTHS,
]  # fmt: skip


def snapshot(folder: Path) -> dict[str, str]:
    """Every path under a folder with a hash of its content: equal before and after is unchanged."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


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


class _PatientVectorEnv(SyncVectorEnv):
    """As the environments in processes: an ended one may be stepped, and ``MacroStepEnv`` stands still."""

    def step(self, actions: Any) -> Any:
        self._autoreset_envs[:] = False
        return super().step(actions)


def counting_vector(envs: Sequence[CountingEnv], spec: EnvSpec) -> SyncVectorEnv:
    """A vector of macro-step environments over environments that the test keeps in its hands."""
    return _PatientVectorEnv(
        [lambda env=env: MacroStepEnv(env, spec) for env in envs], autoreset_mode=AutoresetMode.DISABLED
    )


class HalvingPolicy(BasePolicy):
    """Frozen base policy whose chunk is half the latent and whose features are the frames; counts decodings."""

    def __init__(self, state_dim: int = 2, obs_horizon: int = 2, rows: int = 4, act_horizon: int = 2) -> None:
        self.obs_horizon, self.state_dim = obs_horizon, state_dim
        self.feature_dim = obs_horizon * state_dim
        self.latent_shape = (rows, 1)
        self.executed_rows = slice(obs_horizon - 1, obs_horizon - 1 + act_horizon)
        self.critic_rows = self.executed_rows
        self.decoded: list[Tensor] = []

    def encode(self, obs: Any) -> Tensor:
        return torch.as_tensor(obs).flatten(1)

    def decode(self, features: Tensor, latent: Tensor) -> Tensor:
        self.decoded.append(latent.clone())
        return 0.5 * latent

    def q_values(self, features: Tensor, actions: Tensor) -> Tensor:
        raise AssertionError("acting asks no critic")
