"""Several latent environments as Stable-Baselines3 vectorises them. Imports it: the extra ``sb3``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from dsrl_offpolicy.models.latent_layout import squash
from dsrl_offpolicy.rollouts.latent_env import LatentVectorEnv

LARGEST = np.finfo(np.float32).max


class SB3VecEnv(VecEnv):
    """A :class:`~dsrl_offpolicy.rollouts.latent_env.LatentVectorEnv` as a ``VecEnv``.

    Args:
        env: closed by ``close()``.
        before_squash: actions are u, any number, and the environment takes ``w = b tanh(u / b)``: for a learner
            whose policy is a plain Gaussian.
    """

    def __init__(self, env: LatentVectorEnv, *, before_squash: bool = False) -> None:
        self.env, self.before_squash = env, before_squash
        space = env.single_action_space
        if before_squash:  # the library takes no unbounded actions
            space = gym.spaces.Box(-LARGEST, LARGEST, space.shape, np.float32)
        super().__init__(env.num_envs, env.single_observation_space, space)

    def reset(self) -> np.ndarray:
        """Begin an episode in every environment."""
        seeds = self._seeds if None not in self._seeds else None
        self._reset_seeds()
        features: np.ndarray = self.env.reset(seed=seeds)[0]
        return features

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions."""
        self._latents = actions
        if self.before_squash:
            self._latents = squash(torch.from_numpy(actions), self.env.layout.magnitude).numpy()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take a macro-step in every environment."""
        features, reward, terminated, truncated, info = self.env.step(self._latents)
        last, ended = info.pop("final_obs", features), terminated | truncated
        told = {name: values for name, values in info.items() if isinstance(values, np.ndarray) and name[0] != "_"}
        infos = [{name: values[i].item() for name, values in told.items()} for i in range(self.num_envs)]
        for i in np.flatnonzero(ended):
            infos[i]["terminal_observation"] = last[i]
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return features, reward, ended, infos

    def close(self) -> None:
        """End the processes."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the vector environment, once for each index."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: environments run in processes of their own."""
        raise NotImplementedError("latent environments have no attributes of their own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: environments run in processes of their own."""
        raise NotImplementedError("latent environments have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> Sequence[bool]:
        """Return False for each index."""
        return [False for _ in self._get_indices(indices)]
