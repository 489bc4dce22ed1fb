"""From an environment id to a plain Gymnasium env: float32 states, actions in [-1, 1], ``info["success"]``."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation, RescaleAction, TimeLimit, TransformObservation

from dsrl_offpolicy.envs.maniskill import ManiSkillEnv, maniskill_tasks
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError, did_you_mean

SUCCESS_KEYS = ("success", "is_success")


def metaworld_tasks() -> list[str]:
    """The task names that MetaWorld's MT1 benchmark accepts."""
    import metaworld

    return sorted(metaworld.ALL_V3_ENVIRONMENTS)


def simulator_of(env_id: str) -> Literal["metaworld", "maniskill", "gymnasium"]:
    """Which simulator an id belongs to. ManiSkill is imported only for ids that no other knows."""
    if env_id in metaworld_tasks():
        return "metaworld"
    if ":" in env_id or (env_id in gym.registry and "mani_skill" not in sys.modules):  # "module:id" is Gymnasium's
        return "gymnasium"
    return "maniskill" if env_id in maniskill_tasks() else "gymnasium"


def check_env_id(env_id: str) -> None:
    """Refuse an id that no simulator knows.

    Raises:
        InputError: naming the nearest one.
    """
    known = [*metaworld_tasks(), *gym.registry]
    if env_id in known or env_id in (known := [*known, *maniskill_tasks()]):
        return
    missing = "" if importlib.util.find_spec("mani_skill") else " (ManiSkill, an extra, is not installed)"
    raise InputError(
        f"env_id: expected a MetaWorld or ManiSkill task or a registered Gymnasium id, got {env_id!r}"
        f"{did_you_mean(env_id, known)}{missing}"
    )


class ContinuousGoals(gym.Wrapper):
    """MetaWorld with the task's own continuous distribution of starts, drawn from the seed given to ``reset``.

    MT1 as registered picks among 50 starts fixed at construction and ignores the seed of ``reset``, so that no
    two runs could be shown the same start.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        env.reset()  # sets a task, without which the goal is hidden
        env.get_wrapper_attr("toggle_sample_tasks_on_reset")(False)
        simulator: Any = env.unwrapped
        simulator._freeze_rand_vec = False
        simulator.seeded_rand_vec = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        if seed is not None:
            simulator: Any = self.env.unwrapped
            simulator.seed(seed)
        return self.env.reset(seed=seed, options=options)


def _make_metaworld(task: str, max_episode_steps: int | None) -> gym.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gym.make("Meta-World/MT1", env_name=task, disable_env_checker=True, max_episode_steps=None)
    simulator: Any = env.unwrapped
    limit = int(simulator.max_path_length)
    if max_episode_steps is not None and max_episode_steps > limit:
        raise InputError(f"max_episode_steps: expected at most {limit} for {task}, got {max_episode_steps}")
    env = ContinuousGoals(env)
    return TimeLimit(env, max_episode_steps) if max_episode_steps else env


def _make_registered(env_id: str, max_episode_steps: int | None) -> gym.Env:
    try:
        return gym.make(env_id, max_episode_steps=max_episode_steps, disable_env_checker=True)
    except (gym.error.Error, ImportError) as error:
        check_env_id(env_id)
        cause = " ".join(str(error).split())
        raise InputError(f"env_id: expected an environment that can be made, {env_id}: {cause}") from error


class SuccessReward(gym.Wrapper):
    """Reward mode, reward scale and termination on success; ``info["success"]`` is always a bool."""

    def __init__(self, env: gym.Env, spec: EnvSpec) -> None:
        super().__init__(env)
        self.env_spec = spec

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        key = next((k for k in SUCCESS_KEYS if k in info), None)
        if key is None and self.env_spec.reward_mode == "sparse":
            raise InputError(
                f"reward_mode: expected dense for {self.env_spec.env_id}, which reports no success, got sparse"
            )
        success = bool(info[key]) if key else False
        if self.env_spec.reward_mode == "sparse":
            reward = 0.0 if success else -1.0
        if self.env_spec.end_on_success and success:
            terminated = True
        info = {**info, "success": success}
        return obs, float(reward) * self.env_spec.reward_scale, bool(terminated), bool(truncated), info


def make_env(spec: EnvSpec) -> gym.Env:
    """One environment stepping single actions (no chunks).

    Raises:
        InputError: unknown id, spaces that cannot be steered, or settings that mean nothing for this simulator.
    """
    logging.getLogger("gymnasium").setLevel(logging.ERROR)
    simulator = simulator_of(spec.env_id)
    if simulator == "maniskill":
        return SuccessReward(ManiSkillEnv(spec), spec)
    refuse_maniskill_settings(spec)
    make = _make_metaworld if simulator == "metaworld" else _make_registered
    env = make(spec.env_id, spec.max_episode_steps)
    return SuccessReward(_plain_vectors(env, spec), spec)


def refuse_maniskill_settings(spec: EnvSpec) -> None:
    """Refuse what only ManiSkill understands, for any other simulator.

    Raises:
        InputError: naming the setting.
    """
    default = EnvSpec(spec.env_id)
    for name in ("control_mode", "obs_mode", "sim_backend", "render_backend", "image_size", "robot_uids"):
        if getattr(spec, name) != getattr(default, name):
            raise InputError(
                f"{name}: expected {getattr(default, name) or 'none'} for {spec.env_id}, which is no ManiSkill "
                f"task, got {getattr(spec, name)}"
            )
    if spec.reward_mode == "normalized_dense":
        raise InputError(f"reward_mode: expected sparse or dense for {spec.env_id}, got normalized_dense")


def _plain_vectors(env: gym.Env, spec: EnvSpec) -> gym.Env:
    """Flat float32 states and actions in [-1, 1]."""
    if isinstance(env.observation_space, gym.spaces.Dict):
        env = FlattenObservation(env)
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InputError(f"env_id: expected state vectors as observations, {spec.env_id} has {space}")
    if not isinstance(env.action_space, gym.spaces.Box) or len(env.action_space.shape) != 1:
        raise InputError(f"env_id: expected a Box action vector, {spec.env_id} has {env.action_space}")
    if not env.action_space.is_bounded():
        raise InputError(f"env_id: expected bounded actions, {spec.env_id} has {env.action_space}")
    if not (np.all(env.action_space.low == -1) and np.all(env.action_space.high == 1)):
        env = RescaleAction(env, np.float32(-1), np.float32(1))
    limits = gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return TransformObservation(env, lambda obs: np.asarray(obs, dtype=np.float32), limits)
