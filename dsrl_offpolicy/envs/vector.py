"""Several macro-step environments, a process each."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from dsrl_offpolicy.envs.macro_step import MacroStepEnv
from dsrl_offpolicy.envs.maniskill import ManiSkillEnv, sim_backend
from dsrl_offpolicy.envs.processes import ProcessVectorEnv
from dsrl_offpolicy.envs.simulators import make_env, simulator_of
from dsrl_offpolicy.envs.spec import EnvSpec

GRACE = 300
"""Seconds that a worker lives on after SIGTERM."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""That a terminal or a batch system sends to a whole process group."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def make_macro_env(spec: EnvSpec) -> MacroStepEnv:
    """One macro-step environment in this process."""
    return MacroStepEnv(make_env(spec), spec)


def _make_in_process(spec: EnvSpec) -> MacroStepEnv:
    """One for :func:`make_vector_env`. Signals reach a whole process group and are for the learner to hear: Ctrl-C
    is ignored, and after SIGTERM a worker lives on for as long as the learner may need to save. Until this is set
    they are blocked, as they were in the process that started the fork server."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return make_macro_env(spec)


def make_vector_env(spec: EnvSpec, num_envs: int) -> VectorEnv:
    """``num_envs`` macro-step environments that never reset by themselves.

    Reset the ended ones with ``reset(seed=[...], options={"reset_mask": mask})``. On the CPU each is a process,
    held to one thread and started by ``forkserver``, because simulators hang or crash after a ``fork``; one that
    dies or hangs is replaced. ManiSkill on the GPU is one batched simulation in this process.
    """
    if _is_batched(spec):
        from dsrl_offpolicy.envs.maniskill_batched import make_batched_env

        return make_batched_env(spec, num_envs)
    return _make_processes(spec, num_envs)


def _is_batched(spec: EnvSpec) -> bool:
    return simulator_of(spec.env_id) == "maniskill" and sim_backend(spec) == "physx_cuda"


def _make_processes(spec: EnvSpec, num_envs: int) -> ProcessVectorEnv:
    make = functools.partial(_make_in_process, spec)
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # heard by the learner once the processes stand
    try:
        # Imported once in the server that forks the workers: they start sooner and share those pages.
        multiprocessing.get_context("forkserver").set_forkserver_preload(
            ["dsrl_offpolicy.envs.vector", "torch" if simulator_of(spec.env_id) == "maniskill" else "metaworld"]
        )
        return ProcessVectorEnv(make, num_envs, spec.timeout)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class EnvFacts:
    """What a job checks its files against before it starts.

    Attributes:
        state_dim: S.
        action_dim: A.
        max_episode_steps: env steps until truncation, or None.
        image_shape: ``(H, W, 3k)`` of the images of all k cameras; None without images.
        state_keys: names of the parts of the state, in the environment's order, where it tells them.
        cameras: names of the cameras, in the environment's order.
    """

    state_dim: int
    action_dim: int
    max_episode_steps: int | None
    image_shape: tuple[int, int, int] | None = None
    state_keys: tuple[str, ...] | None = None
    cameras: tuple[str, ...] = ()


def inspect_env(spec: EnvSpec) -> EnvFacts:
    """Build the environment once in this process, take one step, and tell its dimensions.

    Raises:
        InputError: unknown id, spaces that cannot be steered, or a sparse reward without success.
    """
    if _is_batched(spec):
        return _inspect_batched(spec)
    env = make_env(spec)
    try:
        obs, _ = env.reset(seed=0)
        assert isinstance(env.action_space, gym.spaces.Box)
        action_dim = env.action_space.shape[0]
        env.step(env.action_space.low * 0)
        simulator = env.unwrapped
        if not isinstance(simulator, ManiSkillEnv):
            return EnvFacts(obs.shape[0], action_dim, spec.max_episode_steps or _time_limit(env))
        limit, keys, cameras = simulator.max_episode_steps, simulator.state_keys, simulator.cameras
        if not cameras:
            return EnvFacts(obs.shape[0], action_dim, limit)
        return EnvFacts(obs["state"].shape[0], action_dim, limit, obs["rgb"].shape, keys, cameras)
    finally:
        env.close()


def _inspect_batched(spec: EnvSpec) -> EnvFacts:
    # Not through a simulation on the CPU: PhysX takes the GPU only in a process that has simulated nothing before.
    from dsrl_offpolicy.envs.maniskill_batched import make_batched_env

    env = make_batched_env(spec, 1)
    try:
        env.reset(seed=0)
        space, action_dim = env.single_observation_space, env.single_action_space.shape[-1]
        env.step(np.zeros((1, *env.single_action_space.shape), np.float32))
        if not isinstance(space, gym.spaces.Dict):
            return EnvFacts(space.shape[-1], action_dim, env.limit)
        shapes = {name: part.shape[1:] for name, part in space.items()}
        return EnvFacts(shapes["state"][0], action_dim, env.limit, shapes["rgb"], env.state_keys, env.cameras)
    finally:
        env.close()


def _time_limit(env: gym.Env) -> int | None:
    if env.spec is not None and env.spec.max_episode_steps:
        return int(env.spec.max_episode_steps)
    limit = getattr(env.unwrapped, "max_path_length", None)
    return int(limit) if limit else None
