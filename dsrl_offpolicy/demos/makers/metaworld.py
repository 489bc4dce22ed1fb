"""Demonstrations from MetaWorld's scripted experts, imperfect on purpose."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dsrl_offpolicy.demos.makers.imperfection import CorrelatedNoise, Imperfection
from dsrl_offpolicy.demos.makers.scripted import ScriptedExperts
from dsrl_offpolicy.errors import InputError

OBJECT_POSITION = slice(4, 7)
"""Where MetaWorld's observation holds the first object's position, on which every expert relies."""


class ScriptedExpert:
    """A MetaWorld expert for one episode, with the errors drawn from ``rng``."""

    def __init__(self, task: str, imperfection: Imperfection, rng: np.random.Generator) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        if task not in ENV_POLICY_MAP:
            raise InputError(f"env_id: expected a MetaWorld task with a scripted expert, got {task!r}")
        self._policy = ENV_POLICY_MAP[task]()
        self._offset = imperfection.draw_offset(rng)
        self._noise = CorrelatedNoise(imperfection, 4, rng)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return the action ``[4]`` in [-1, 1] for an observation ``[39]``."""
        seen = obs.astype(np.float64)
        seen[OBJECT_POSITION] += self._offset
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "constants may be too high", from the package's own experts
            action = self._policy.get_action(seen)
        action = np.clip(action, -1, 1) + self._noise.draw()
        return np.clip(action, -1, 1).astype(np.float32)


class MetaWorldExperts(ScriptedExperts):
    """MetaWorld's scripted expert of every task.

    Args:
        list_tasks: names all tasks.
        make_env: see ``ScriptedExperts``.
    """

    name = "MetaWorld's scripted experts"
    control_mode = "pd_ee_delta_pos"  # what its actions are: a displacement of the gripper and its opening

    def __init__(self, list_tasks: Callable[[], Sequence[str]], make_env: Callable[[str], Any]) -> None:
        super().__init__(make_env)
        self._list_tasks = list_tasks

    def tasks(self) -> Sequence[str]:
        """Return the names of MetaWorld."""
        return self._list_tasks()

    def expert(self, task: str, errors: Imperfection, rng: np.random.Generator) -> ScriptedExpert:
        """Return MetaWorld's expert of a task."""
        return ScriptedExpert(task, errors, rng)
