"""``robot:module:Class``: a robot of the user's own, with somebody beside it (docs/robot.md)."""

from __future__ import annotations

import time
from pathlib import Path

import gymnasium as gym
from gymnasium.wrappers import TransformObservation

from dsrl_offpolicy.envs.families.gymnasium import actions_in_unit_box, plain_vectors
from dsrl_offpolicy.envs.family import Capabilities, EnvFamily
from dsrl_offpolicy.envs.robot import OperatedEnv, RobotSetup
from dsrl_offpolicy.envs.robot.recording import Recording
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.registry import ROBOTS

PREFIX = "robot:"


class RobotEnvs(EnvFamily):
    """One arm. Nothing is played again when a run resumes, nothing is tried, no process is killed."""

    name = "robot"
    settings = frozenset({"obs_mode"})

    def tasks(self) -> list[str]:
        """Return nothing: robots are the user's own."""
        return []

    def owns(self, env_id: str) -> bool:
        """Return whether the id is ``robot:`` and a class."""
        return env_id.startswith(PREFIX)

    def capabilities(self, spec: EnvSpec) -> Capabilities:
        """Return what may be done with an arm: little."""
        return Capabilities(
            replayable=False,
            exclusive=True,
            single=True,
            supervised_reset=True,
            killable=False,
            trial_steps=False,
        )

    def make(self, spec: EnvSpec) -> gym.Env:
        """Build the arm with its operator; neither moves nor listens before the first reset.

        Raises:
            InputError: a class that is no RobotSetup, or an arm that cannot be stopped or steered.
        """
        setup = ROBOTS.make(spec.env_id.removeprefix(PREFIX), "env_id", RobotSetup)
        env = setup.make_env()
        if not callable(getattr(env.unwrapped, "stop", None)):
            raise InputError(f"env_id: expected an environment with a method stop(), {spec.env_id} has none")
        recording = None
        if setup.record_to is not None:
            recording = Recording(_new_file(setup.record_to), spec.env_id, spec.obs_mode)
        return OperatedEnv(_observed(env, spec), setup, recording)


def _observed(env: gym.Env, spec: EnvSpec) -> gym.Env:
    """Vectors for ``obs_mode`` state, states and images for ``rgb``; actions in [-1, 1]."""
    space = env.observation_space
    if not (isinstance(space, gym.spaces.Dict) and "state" in space.spaces):
        if spec.obs_mode == "rgb":
            raise InputError(f"obs_mode: expected state for {spec.env_id}, which observes {space}, got rgb")
        return plain_vectors(env, spec)
    if spec.obs_mode == "state":
        states = TransformObservation(env, lambda obs: obs["state"], space["state"])
        return plain_vectors(states, spec)
    return actions_in_unit_box(env, spec)


def _new_file(folder: Path) -> Path:
    """A file in ``folder`` that says when the session began and that is not there yet."""
    began = time.strftime("%Y%m%d-%H%M%S")
    names = (f"session-{began}{'' if number == 0 else f'-{number}'}.h5" for number in range(1000))
    return next(folder / name for name in names if not (folder / name).exists())
