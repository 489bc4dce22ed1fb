"""``dsrl demos``: record imperfect scripted experts (MetaWorld) or motion plans (ManiSkill)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from dsrl_offpolicy.configs.jobs import DemosConfig
from dsrl_offpolicy.demos import lift_peg_expert
from dsrl_offpolicy.demos.motion_planning import PLANNED_TASKS, record_motion_plans
from dsrl_offpolicy.demos.planning_parts import PartCounts, PlanRequest, parts_folder
from dsrl_offpolicy.demos.scripted import Imperfection, ScriptedExpert, record_episode
from dsrl_offpolicy.demos.trajectory import Trajectory, check_new_file, write_demonstrations
from dsrl_offpolicy.envs.maniskill import check_maniskill
from dsrl_offpolicy.envs.simulators import make_env, metaworld_tasks
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError, did_you_mean
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED, numpy_generator
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.train.command import command

CONTROL_MODE = "pd_ee_delta_pos"
"""What MetaWorld's actions are: a displacement of the gripper and its opening."""

PLANNED_CONTROL_MODE = "pd_ee_delta_pose"
"""What ManiSkill's plans are converted to where nothing is said."""

PLANNER_FLAGS = ("control_mode", "obs_mode", "reward_mode", "max_episode_steps")
EXPERT_FLAGS = (
    "demo_steps", "action_noise", "noise_correlation", "wrong_goal_prob", "wrong_goal_offset", "wrong_goal_mirror",
)  # fmt: skip


def check_task(flag: str, task: str, planned: Sequence[str] = ()) -> None:
    """Refuse what is no MetaWorld task, nor one of ``planned``.

    Raises:
        InputError: naming the nearest task.
    """
    tasks = [*metaworld_tasks(), *planned]
    if task not in tasks:
        hint = did_you_mean(task, tasks)
        others = f" or a ManiSkill task with a motion planner ({', '.join(planned)})" if planned else ""
        raise InputError(f"{flag}: expected a MetaWorld task with a scripted expert{others}, got {task!r}{hint}")


def run(config: DemosConfig) -> Path:
    """Record ``config.episodes`` demonstrations and write HDF5 and JSON. Returns the HDF5's path."""
    check_task("env_id", config.env_id, PLANNED_TASKS)
    path = (config.out or Path("demos") / f"{config.env_id}-seed{config.seed}.h5").expanduser()
    if config.env_id in PLANNED_TASKS and not parts_folder(path).exists():
        check_maniskill()
    if config.env_id in PLANNED_TASKS and config.demonstrator != "scripted":
        _refuse(config, (*EXPERT_FLAGS, "robot_uids"), "a scripted expert")
        _record_plans(config, path)
    elif config.env_id == lift_peg_expert.TASK:
        named = config.control_mode == lift_peg_expert.CONTROL_MODE
        flags = ("max_episode_steps",) if named else ("max_episode_steps", "control_mode")
        _refuse(config, flags, "ManiSkill's planner")
        _record_lift_peg(config, path)
    elif config.env_id in PLANNED_TASKS:
        raise InputError(
            f"demonstrator: expected planner for {config.env_id} (a scripted expert is there for "
            f"{lift_peg_expert.TASK} and for MetaWorld's tasks), got scripted"
        )
    elif config.demonstrator == "planner":
        raise InputError(f"demonstrator: expected scripted for {config.env_id}, got planner")
    else:
        named = config.control_mode == CONTROL_MODE  # the one that it has
        _refuse(config, [f for f in PLANNER_FLAGS if not (named and f == "control_mode")], "ManiSkill's planner")
        _refuse(config, ("robot_uids",), "ManiSkill")
        _record_expert(config, path)
    return path


def _refuse(config: DemosConfig, flags: Sequence[str], whose: str) -> None:
    """Raises InputError for flags that were set and mean nothing for the task."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in flags and value != field.default:
            raise InputError(
                f"{field.name}: expected nothing for {config.env_id}, it is a setting of {whose}, got {value}"
            )


def _record_plans(config: DemosConfig, path: Path) -> None:
    rng = numpy_generator(config.seed, "demonstrations")
    request = PlanRequest(
        env_id=config.env_id,
        control_mode=config.control_mode or PLANNED_CONTROL_MODE,
        obs_mode=config.obs_mode,
        reward_mode=config.reward_mode,
        max_episode_steps=config.max_episode_steps,
        episodes=config.episodes,
        seed=config.seed,
        first_seed=int(rng.integers(FIRST_EVALUATION_SEED // 2)),  # starts count up from it
    )
    with ProgressReport("demos", config.episodes, "episodes") as progress:

        def report(counts: PartCounts) -> None:
            lost = {"failed plans": counts.failed_plans, "failed replays": counts.failed_replays}
            progress.report(counts.kept, {"planned": counts.planned, **lost})

        record_motion_plans(request, path, report)


def _imperfection(config: DemosConfig) -> Imperfection:
    return Imperfection(
        config.action_noise,
        config.noise_correlation,
        config.wrong_goal_prob,
        config.wrong_goal_offset,
        config.wrong_goal_mirror,
    )


def _record_lift_peg(config: DemosConfig, path: Path) -> None:
    check_new_file(path)
    rng = numpy_generator(config.seed, "demonstrations")
    seeds = [int(s) for s in rng.integers(FIRST_EVALUATION_SEED, size=config.episodes)]
    recording = lift_peg_expert.Recording(
        config.obs_mode, config.reward_mode, config.demo_steps, config.robot_uids
    )
    imperfection = _imperfection(config)
    with ProgressReport("demos", config.episodes, "episodes") as progress:

        def report(episodes: int, success: float) -> None:
            if episodes % 20 == 0 or episodes == config.episodes:
                progress.report(episodes, {"success": success})

        lift_peg_expert.record_lift_peg(
            recording, path, seeds, lambda: lift_peg_expert.LiftPegExpert(imperfection, rng), report
        )


def _record_expert(config: DemosConfig, path: Path) -> None:
    """Rewards are the simulator's dense ones; the sparse ones follow from ``success``."""
    check_new_file(path)
    env = make_env(EnvSpec(config.env_id, reward_mode="dense", end_on_success=True))
    imperfection = _imperfection(config)
    rng = numpy_generator(config.seed, "demonstrations")
    seeds = [int(s) for s in rng.integers(FIRST_EVALUATION_SEED, size=config.episodes)]

    def step(action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, bool]:
        obs, reward, terminated, truncated, info = env.step(action)
        return obs, float(reward), info["success"], terminated, truncated

    trajectories: list[Trajectory] = []
    with ProgressReport("demos", config.episodes, "episodes") as progress:
        for seed in seeds:
            expert = ScriptedExpert(config.env_id, imperfection, rng)
            trajectories.append(record_episode(env.reset(seed=seed)[0], step, expert, config.demo_steps))
            if len(trajectories) % 20 == 0 or len(trajectories) == config.episodes:
                rate = float(np.mean([t.success.any() for t in trajectories]))
                progress.report(len(trajectories), {"success": rate})
    env.close()
    env_info = {
        "env_id": config.env_id,
        "env_kwargs": {
            "obs_mode": "state",
            "control_mode": CONTROL_MODE,
            "reward_mode": "dense",
            "sim_backend": "mujoco",
        },
        "max_episode_steps": config.demo_steps,
    }
    write_demonstrations(path, trajectories, env_info, seeds)


main = command(DemosConfig, "demos.yaml", "dsrl demos")(run)

if __name__ == "__main__":
    sys.exit(main())
