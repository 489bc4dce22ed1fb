"""MetaWorld's tasks, with starts that follow from the seed of a reset."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from dsrl_offpolicy.envs.families.gymnasium import plain_vectors
from dsrl_offpolicy.envs.families.metaworld_quick import quicken
from dsrl_offpolicy.envs.families.mujoco_opengl import TO_DRAW, find_opengl
from dsrl_offpolicy.envs.family import EnvFacts, EnvFamily, MacroVectorEnv
from dsrl_offpolicy.envs.frames import FRAME_HEIGHT
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError

CAMERA = "corner2"
"""Sees table, arm and goal of every task."""


class MetaWorld(EnvFamily):
    """The tasks that MetaWorld's MT1 benchmark accepts."""

    name = "metaworld"
    package = "metaworld"
    preload = ("metaworld",)
    to_draw = TO_DRAW

    def tasks(self) -> list[str]:
        """Return the task names."""
        import metaworld

        return sorted(metaworld.ALL_V3_ENVIRONMENTS)

    def make(self, spec: EnvSpec) -> gym.Env:
        """Build one.

        Raises:
            InputError: a longer time limit than MetaWorld steps.
        """
        import metaworld

        settings = {"disable_env_checker": True, "max_episode_steps": None, "num_goals": 1}
        goals = metaworld._N_GOALS
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                env = gym.make("Meta-World/MT1", env_name=spec.env_id, **settings)
        finally:
            metaworld._N_GOALS = goals  # num_goals stays with the module
        limit = _own_limit(env)
        if spec.max_episode_steps is not None and spec.max_episode_steps > limit:
            raise InputError(
                f"max_episode_steps: expected at most {limit} for {spec.env_id}, got {spec.max_episode_steps}"
            )
        return plain_vectors(ContinuousGoals(env), spec)

    def facts(self, env: gym.Env | MacroVectorEnv, spec: EnvSpec) -> EnvFacts:
        """Return the facts, with MetaWorld's own time limit where no other is asked for."""
        return replace(super().facts(env, spec), max_episode_steps=spec.max_episode_steps or _own_limit(env))


def _own_limit(env: gym.Env | MacroVectorEnv) -> int:
    simulator: Any = env.unwrapped
    return int(simulator.max_path_length)


class ContinuousGoals(gym.Wrapper):
    """MetaWorld with the task's own continuous distribution of starts, drawn from the seed given to ``reset``.

    MT1 as registered picks among 50 starts fixed at construction and ignores the seed of ``reset``, so that no
    two runs could be shown the same start. Finding these is most of the time that construction takes; here it
    finds one, which is never used.

    ``render`` draws the camera above the shoulder, without what makes a software renderer slow: shadows,
    reflections and the smoothing of edges.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        env.reset()  # sets a task, without which the goal is hidden
        env.get_wrapper_attr("toggle_sample_tasks_on_reset")(False)
        simulator: Any = env.unwrapped
        simulator._freeze_rand_vec = False
        simulator.seeded_rand_vec = True
        quicken(simulator)
        self._viewer: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if seed is not None:
            simulator: Any = self.env.unwrapped
            simulator.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def render(self) -> np.ndarray:
        if self._viewer is None:
            self._viewer = self._make_viewer()
        image = self._viewer.render("rgb_array", camera_id=self._camera)
        return np.ascontiguousarray(image[::-1, ::-1])  # the camera hangs upside down

    def close(self) -> None:
        if self._viewer is not None:
            self._viewer.free()
        super().close()

    def _make_viewer(self) -> Any:
        """A viewer that draws into memory."""
        find_opengl()
        import mujoco
        from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

        simulator: Any = self.env.unwrapped
        simulator.model.vis.quality.offsamples = 0
        viewer = OffScreenViewer(simulator.model, simulator.data, FRAME_HEIGHT, FRAME_HEIGHT)
        viewer.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        viewer.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._camera = simulator.model.camera(CAMERA).id
        return viewer
