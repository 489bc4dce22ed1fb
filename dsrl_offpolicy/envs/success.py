"""Reward mode, reward scale and the end on success, for environments of every family."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.rewards import sparse_reward

SUCCESS_KEYS = ("success", "is_success")


class SuccessReward(gym.Wrapper):
    """Reward mode, reward scale and termination on success; ``info["success"]`` is always a bool."""

    def __init__(self, env: gym.Env, spec: EnvSpec) -> None:
        super().__init__(env)
        self.env_spec = spec

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        key = next((k for k in SUCCESS_KEYS if k in info), None)
        if key is None and self.env_spec.reward_mode == "sparse":
            raise no_success(self.env_spec)
        spec, success = self.env_spec, key is not None and is_success(info[key])
        if spec.reward_mode == "sparse":
            reward = sparse_reward(success, bool(terminated), spec.gamma, 1.0)
        if spec.end_on_success and success:
            terminated = True
        info = {**info, "success": success}
        return obs, float(reward) * spec.reward_scale, bool(terminated), bool(truncated), info


def is_success(value: Any) -> bool:
    """Return whether an environment says success; NaN is none."""
    return bool(value == value) and bool(value)


def no_success(spec: EnvSpec) -> InputError:
    """Return what to raise where sparse rewards are asked of an environment that reports no success."""
    return InputError(
        f"reward_mode: expected dense for {spec.env_id}, which reports no success, got sparse; "
        "no start can be chosen there by success (stage1 --method)"
    )
