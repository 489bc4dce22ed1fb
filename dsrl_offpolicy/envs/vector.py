"""Several macro-step environments, a process each."""

from __future__ import annotations

import functools
import multiprocessing
import os
from dataclasses import dataclass

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from dsrl_offpolicy.envs.macro_step import MacroStepEnv
from dsrl_offpolicy.envs.simulators import make_env
from dsrl_offpolicy.envs.spec import EnvSpec

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def make_macro_env(spec: EnvSpec) -> MacroStepEnv:
    """One macro-step environment in this process."""
    return MacroStepEnv(make_env(spec), spec)


def make_vector_env(spec: EnvSpec, num_envs: int) -> AsyncVectorEnv:
    """``num_envs`` macro-step environments that never reset by themselves.

    Reset the ended ones with ``reset(seed=[...], options={"reset_mask": mask})``. Each process is held to one
    thread; processes are started by ``forkserver`` because simulators hang or crash after a ``fork``.
    """
    make = functools.partial(make_macro_env, spec)
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        # Imported once in the server that forks the workers: they start sooner and share those pages.
        multiprocessing.get_context("forkserver").set_forkserver_preload(
            ["dsrl_offpolicy.envs.vector", "metaworld"]
        )
        return AsyncVectorEnv([make] * num_envs, context="forkserver", autoreset_mode=AutoresetMode.DISABLED)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class EnvFacts:
    """What a job checks its files against before it starts."""

    state_dim: int
    action_dim: int
    max_episode_steps: int | None


def inspect_env(spec: EnvSpec) -> EnvFacts:
    """Build the environment once in this process, take one step, and tell its dimensions.

    Raises:
        InputError: unknown id, spaces that cannot be steered, or a sparse reward without success.
    """
    env = make_env(spec)
    try:
        obs, _ = env.reset(seed=0)
        assert isinstance(env.action_space, gym.spaces.Box)
        env.step(env.action_space.low * 0)
        limit = spec.max_episode_steps or _time_limit(env)
        return EnvFacts(obs.shape[0], env.action_space.shape[0], limit)
    finally:
        env.close()


def _time_limit(env: gym.Env) -> int | None:
    if env.spec is not None and env.spec.max_episode_steps:
        return int(env.spec.max_episode_steps)
    limit = getattr(env.unwrapped, "max_path_length", None)
    return int(limit) if limit else None
