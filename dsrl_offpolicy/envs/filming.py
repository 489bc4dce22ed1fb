"""Environments to film in: those of a job, with frames in the info of their steps."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from dsrl_offpolicy.envs.family import EnvFamily, family_of
from dsrl_offpolicy.envs.frames import draw
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_env, starting_processes
from dsrl_offpolicy.errors import InputError, one_line

MOST_FRAMES = 300
"""Of an episode, about: a longer one shows every k-th env step."""


def filmed_spec(spec: EnvSpec) -> EnvSpec:
    """Return the spec of the same environments that are drawn, once one of them was, in a process of its own.

    Raises:
        InputError: environments of which there is only one at a time, or that nothing here can draw; says what
            cures it.
    """
    family = family_of(spec)
    film = family.filmed(replace(spec, frames_every=1))
    capabilities = family.capabilities(film)
    if capabilities.exclusive or capabilities.batched:
        why = "there is one at a time" if capabilities.exclusive else "they step as one batch"
        raise InputError(f"video: environments of {family.name} cannot be filmed, because {why}")
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        with starting_processes(family):
            trial = pool.submit(_try_to_draw, film)
        try:
            limit = trial.result()
        except BrokenProcessPool as error:
            raise _cannot_draw(family, film, "the process that tried died") from error
    return replace(film, frames_every=math.ceil(limit / MOST_FRAMES))


def _try_to_draw(spec: EnvSpec) -> int:
    """Draw one start; returns the env steps after which an episode ends (1 where nothing limits it)."""
    family = family_of(spec)
    try:
        env = make_env(spec)
        try:
            env.reset(seed=0)
            draw(env)
            return family.facts(env, spec).max_episode_steps or 1
        finally:
            env.close()
    except InputError as error:
        raise _cannot_draw(family, spec, str(error)) from None
    except Exception as error:  # whatever a simulator or a driver raises
        raise _cannot_draw(family, spec, one_line(error)) from None


def _cannot_draw(family: EnvFamily, spec: EnvSpec, why: str) -> InputError:
    return InputError(f"video: {spec.env_id} cannot be drawn here: {why}; {family.to_draw}")
