"""``dsrl demos``: record imperfect scripted experts (MetaWorld, robosuite) or motion plans (ManiSkill)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import gymnasium as gym

from dsrl_offpolicy.configs.jobs import DemosConfig
from dsrl_offpolicy.demos.maker import Maker
from dsrl_offpolicy.demos.makers.lift_peg import LiftPegScript
from dsrl_offpolicy.demos.makers.metaworld import MetaWorldExperts
from dsrl_offpolicy.demos.makers.motion_planning import PLANNED_TASKS, MotionPlanner
from dsrl_offpolicy.demos.makers.robosuite import WAYS, RobosuiteExperts
from dsrl_offpolicy.envs.families.maniskill import check_maniskill
from dsrl_offpolicy.envs.families.metaworld import MetaWorld
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_env
from dsrl_offpolicy.errors import InputError, did_you_mean
from dsrl_offpolicy.train.command import command


def _dense_env(task: str) -> gym.Env:
    return make_env(EnvSpec(task, reward_mode="dense", end_on_success=True))


MAKERS: tuple[Maker, ...] = (
    MotionPlanner(),
    LiftPegScript(),
    RobosuiteExperts(_dense_env),
    MetaWorldExperts(MetaWorld().tasks, _dense_env),
)
"""For a task that several demonstrate, the first is the default."""

SHARED = ("env_id", "out", "seed", "episodes", "demonstrator")
"""Settings that every maker reads."""


def check_task(flag: str, task: str, others: Sequence[str] = ()) -> None:
    """Refuse what is no MetaWorld task, nor one of ``others``.

    Raises:
        InputError: naming the nearest task.
    """
    tasks = [*MetaWorld().tasks(), *others]
    if task not in tasks:
        also = f" or one of {', '.join(others)}" if others else ""
        hint = did_you_mean(task, tasks)
        raise InputError(f"{flag}: expected a MetaWorld task with a scripted expert{also}, got {task!r}{hint}")


def run(config: DemosConfig) -> Path:
    """Record ``config.episodes`` demonstrations and write HDF5 and JSON. Returns the HDF5's path."""
    check_task("env_id", config.env_id, [*WAYS, *PLANNED_TASKS])
    maker = _choose(config)
    _refuse_settings_of_others(config, maker)
    path = (config.out or Path("demos") / f"{config.env_id}-seed{config.seed}.h5").expanduser()
    if maker.needs_maniskill:
        check_maniskill()
    maker.record(config, path)
    return path


def _choose(config: DemosConfig) -> Maker:
    """Raise InputError where the demonstrator that was asked for does not know the task."""
    able = [maker for maker in MAKERS if config.env_id in maker.tasks()]
    chosen = [maker for maker in able if config.demonstrator in ("auto", maker.demonstrator)]
    if not chosen:
        known = " or ".join(maker.demonstrator for maker in able)
        raise InputError(f"demonstrator: expected {known} for {config.env_id}, got {config.demonstrator}")
    return chosen[0]


def _refuse_settings_of_others(config: DemosConfig, maker: Maker) -> None:
    """Raise InputError for settings that were given and mean nothing to the maker."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in (*SHARED, *maker.settings) or value == field.default:
            continue
        if field.name == "control_mode" and value == maker.control_mode:
            continue
        owners = " and ".join(other.name for other in MAKERS if field.name in other.settings)
        raise InputError(
            f"{field.name}: expected nothing for {config.env_id} by {maker.name}, it is a setting of {owners}, "
            f"got {value}"
        )


main = command(DemosConfig, "demos.yaml", "dsrl demos")(run)

if __name__ == "__main__":
    sys.exit(main())
