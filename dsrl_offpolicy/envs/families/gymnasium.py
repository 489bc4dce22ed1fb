"""Any environment that Gymnasium can make, as far as its observations are vectors and its actions bounded ones."""

from __future__ import annotations

import importlib
import sys

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation, RescaleAction, TransformObservation

from dsrl_offpolicy.envs.families.mujoco_opengl import TO_DRAW, find_opengl
from dsrl_offpolicy.envs.family import EnvFamily
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError, did_you_mean, one_line


class GymnasiumEnvs(EnvFamily):
    """Registered ids, and ``module:id`` of a module that registers one."""

    name = "gymnasium"
    package = "gymnasium"
    to_draw = f"it must have render_mode rgb_array; {TO_DRAW}"

    def tasks(self) -> list[str]:
        """Return the registered ids."""
        return list(gym.registry)

    def owns(self, env_id: str) -> bool:
        """Return whether the id is registered, or names a module that registers it.

        Raises:
            InputError: a module that cannot be imported, or registers no such id.
        """
        module, colon, name = env_id.partition(":")
        if not colon:
            return env_id in gym.registry
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module raises while it is imported
            raise InputError(f"env_id: {env_id} cannot be imported: {one_line(error)}") from error
        if name not in gym.registry:
            near = did_you_mean(name, gym.registry)
            raise InputError(f"env_id: expected an id that {module} registers, got {name!r}{near}")
        return True

    def make(self, spec: EnvSpec) -> gym.Env:
        """Build one, with flat float32 states; actions are rescaled to [-1, 1].

        Raises:
            InputError: an id whose module or library is missing, or spaces that cannot be steered.
        """
        settings = {"render_mode": "rgb_array"} if spec.frames_every else {}
        limit = spec.max_episode_steps
        try:
            env = gym.make(spec.env_id, max_episode_steps=limit, disable_env_checker=True, **settings)
        except (gym.error.Error, ImportError) as error:
            cause = " ".join(str(error).split())
            raise InputError(f"env_id: {spec.env_id} cannot be made: {cause}") from error
        if spec.frames_every and "mujoco" in sys.modules:
            find_opengl()
        return plain_vectors(env, spec)


def plain_vectors(env: gym.Env, spec: EnvSpec) -> gym.Env:
    """Return flat float32 states and actions in [-1, 1].

    Raises:
        InputError: spaces that cannot be made so.
    """
    if isinstance(env.observation_space, gym.spaces.Dict):
        env = FlattenObservation(env)
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InputError(f"env_id: expected state vectors as observations, {spec.env_id} has {space}")
    env = actions_in_unit_box(env, spec)
    limits = gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return TransformObservation(env, lambda obs: np.asarray(obs, dtype=np.float32), limits)


def actions_in_unit_box(env: gym.Env, spec: EnvSpec) -> gym.Env:
    """Return the environment with actions in [-1, 1].

    Raises:
        InputError: actions that are no bounded vectors.
    """
    if not isinstance(env.action_space, gym.spaces.Box) or len(env.action_space.shape) != 1:
        raise InputError(f"env_id: expected a Box action vector, {spec.env_id} has {env.action_space}")
    if not env.action_space.is_bounded():
        raise InputError(f"env_id: expected bounded actions, {spec.env_id} has {env.action_space}")
    if np.all(env.action_space.low == -1) and np.all(env.action_space.high == 1):
        return env
    return RescaleAction(env, np.float32(-1), np.float32(1))
