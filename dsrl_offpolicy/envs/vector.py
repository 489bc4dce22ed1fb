"""Environments as jobs use them: single ones, several macro-step environments at once, and their facts."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TimeLimit

from dsrl_offpolicy.envs.contract import check_observation, check_spaces
from dsrl_offpolicy.envs.family import EnvFacts, EnvFamily, MacroVectorEnv, family_of
from dsrl_offpolicy.envs.macro_step import MacroStepEnv
from dsrl_offpolicy.envs.processes import ProcessVectorEnv
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.success import SuccessReward
from dsrl_offpolicy.errors import InputError, one_line

GRACE = 300
"""Seconds that a worker lives on after SIGTERM."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""That a terminal or a batch system sends to a whole process group."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def make_env(spec: EnvSpec) -> gym.Env:
    """Make one environment stepping single actions (no chunks).

    Raises:
        InputError: unknown id, spaces that cannot be steered, or settings that mean nothing for its family.
    """
    logging.getLogger("gymnasium").setLevel(logging.ERROR)
    family = family_of(spec)
    family.check(spec)
    env = check_spaces(family.make(spec), f"env_id: {spec.env_id}")
    if spec.max_episode_steps is not None:
        env = TimeLimit(env, spec.max_episode_steps)
    return SuccessReward(env, spec)


def make_macro_env(spec: EnvSpec) -> MacroStepEnv:
    """Make one macro-step environment in this process."""
    return MacroStepEnv(make_env(spec), spec, lazy_images=family_of(spec).capabilities(spec).lazy_images)


def _make_in_process(spec: EnvSpec) -> MacroStepEnv:
    """One for :func:`make_vector_env`. Signals reach a whole process group and are for the learner to hear: Ctrl-C
    is ignored, and after SIGTERM a worker lives on for as long as the learner may need to save, or until the
    learner is gone where it may not be killed. Until this is set they are blocked, as they were in the process
    that started the fork server."""
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        killable = family_of(spec).capabilities(spec).killable
        signal.signal(signal.SIGTERM, (lambda number, frame: signal.alarm(GRACE)) if killable else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return make_macro_env(spec)


def make_vector_env(spec: EnvSpec, num_envs: int) -> MacroVectorEnv:
    """Make ``num_envs`` macro-step environments that never reset by themselves.

    Reset the ended ones with ``reset(seed=[...], options={"reset_mask": mask})``. Each is a process, held to one
    thread and started by ``forkserver``, because simulators hang or crash after a ``fork``; one that dies or hangs
    is replaced. A ``batched`` family makes them in this process.

    Raises:
        InputError: more than one of a family that has one, or environments that cannot be made.
    """
    check_count(spec, num_envs)
    family = family_of(spec)
    if family.capabilities(spec).batched:
        family.check(spec)
        return family.make_vector(spec, num_envs)
    return _make_processes(family, spec, num_envs)


def check_count(spec: EnvSpec, num_envs: int) -> None:
    """Raise InputError where more environments are asked for than there are."""
    if family_of(spec).capabilities(spec).single and num_envs != 1:
        raise InputError(f"num_envs: expected 1 for {spec.env_id}, of which there is one, got {num_envs}")


def make_evaluation_env(training: MacroVectorEnv, spec: EnvSpec, num_envs: int) -> MacroVectorEnv:
    """Environments to evaluate in beside those of training; these themselves where the family is ``exclusive``,
    with their own rewards and ends then."""
    return training if training.capabilities.exclusive else make_vector_env(spec, num_envs)


def _make_processes(family: EnvFamily, spec: EnvSpec, num_envs: int) -> ProcessVectorEnv:
    if spec.env_family == "auto":  # processes need not ask the others
        spec = replace(spec, env_family=family.name)
    make = functools.partial(_make_in_process, spec)
    probe = functools.partial(_make_in_process, replace(spec, frames_every=0))  # nothing is drawn in this process
    with starting_processes(family):
        return ProcessVectorEnv(make, num_envs, spec.timeout, family.capabilities(spec), probe)


@contextlib.contextmanager
def starting_processes(family: EnvFamily) -> Iterator[None]:
    """Inside, processes start as environments need them: with one thread, blocked signals, and the modules of the
    family from the fork server."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # heard by the learner once the processes stand
    try:
        # Imported once in the server that forks the workers: they start sooner and share those pages.
        multiprocessing.get_context("forkserver").set_forkserver_preload(
            ["dsrl_offpolicy.envs.vector", *family.preload]
        )
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def inspect_env(spec: EnvSpec) -> EnvFacts:
    """Build the environment once in this process, take one step where its family allows it, and tell its facts.

    Raises:
        InputError: unknown id, spaces that cannot be steered, or a sparse reward without success.
    """
    family = family_of(spec)
    capabilities = family.capabilities(spec)
    # A batch of one, not one here: PhysX takes the GPU only in a process that has simulated nothing before.
    one = replace(spec, obs_horizon=1, act_horizon=1)
    env: gym.Env | MacroVectorEnv | None = None
    try:
        env = make_vector_env(one, 1) if capabilities.batched else make_env(spec)
        if capabilities.trial_steps:
            obs, _ = env.reset(seed=0)
            if not capabilities.batched:
                check_observation(obs, env.observation_space, f"env_id: {spec.env_id}")
            assert env.action_space.shape is not None
            env.step(np.zeros(env.action_space.shape, np.float32))
        return family.facts(env, spec)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        raise InputError(
            f"env_id: {spec.env_id}: a trial of make, reset and step failed: {one_line(error)}"
        ) from error
    finally:
        if env is not None:
            env.close()
