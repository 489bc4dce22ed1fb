"""Worlds small enough to work out by hand, and the flags that make every stage small."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from small_worlds import CountingEnv
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy, Encoding, PolicyInfo
from dsrl_offpolicy.envs.family import Capabilities, MacroVectorEnv
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


class _PatientVectorEnv(SyncVectorEnv, MacroVectorEnv):
    """As the environments in processes: an ended one may be stepped, and ``MacroStepEnv`` stands still."""

    capabilities = Capabilities()

    def step_async(self, actions: Any) -> None:
        self._chunks = actions

    def step_wait(self) -> Any:
        return self.step(self._chunks)

    def step(self, actions: Any) -> Any:
        self._autoreset_envs[:] = False
        return SyncVectorEnv.step(self, actions)


def counting_vector(envs: Sequence[CountingEnv], spec: EnvSpec) -> SyncVectorEnv:
    """A vector of macro-step environments over environments that the test keeps in its hands."""
    return _PatientVectorEnv(
        [lambda env=env: MacroStepEnv(env, spec) for env in envs], autoreset_mode=AutoresetMode.DISABLED
    )


class HalvingPolicy(BasePolicy):
    """Frozen base policy whose chunk is half the latent and whose features are the frames; counts decodings."""

    def __init__(self, state_dim: int = 2, obs_horizon: int = 2, rows: int = 4, act_horizon: int = 2) -> None:
        first = obs_horizon - 1
        self.info = PolicyInfo(
            obs_horizon=obs_horizon,
            state_dim=state_dim,
            feature_dim=obs_horizon * state_dim,
            latent_shape=(rows, 1),
            action_shape=(rows, 1),
            executed_rows=slice(first, first + act_horizon),
        )
        self.decoded: list[Tensor] = []

    def encode(self, obs: Any) -> Encoding:
        return Encoding(torch.as_tensor(obs).flatten(1))

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        self.decoded.append(latent.clone())
        return 0.5 * latent
