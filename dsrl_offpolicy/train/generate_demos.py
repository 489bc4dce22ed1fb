"""``dsrl demos``: record imperfect scripted experts."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import numpy as np

from dsrl_offpolicy.configs.jobs import DemosConfig
from dsrl_offpolicy.demos.scripted import Imperfection, ScriptedExpert, record_episode
from dsrl_offpolicy.demos.trajectory import Trajectory, check_new_file, write_demonstrations
from dsrl_offpolicy.envs.simulators import make_env, metaworld_tasks
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED, numpy_generator
from dsrl_offpolicy.tracking import ProgressReport
from dsrl_offpolicy.train.wiring import command

CONTROL_MODE = "pd_ee_delta_pos"
"""What MetaWorld's actions are: a displacement of the gripper and its opening."""


def check_task(flag: str, task: str) -> None:
    """Refuse what is no MetaWorld task.

    Raises:
        InputError: naming the nearest task.
    """
    tasks = metaworld_tasks()
    if task not in tasks:
        close = difflib.get_close_matches(task, tasks, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"{flag}: expected a MetaWorld task with a scripted expert, got {task!r}{hint}")


def run(config: DemosConfig) -> Path:
    """Record ``config.episodes`` demonstrations and write HDF5 and JSON. Returns the HDF5's path.

    Rewards are the simulator's dense ones; the sparse ones follow from ``success``.
    """
    check_task("env_id", config.env_id)
    path = config.out or Path("demos") / f"{config.env_id}-seed{config.seed}.h5"
    check_new_file(path)
    env = make_env(EnvSpec(config.env_id, reward_mode="dense", end_on_success=True))
    imperfection = Imperfection(
        config.action_noise,
        config.noise_correlation,
        config.wrong_goal_prob,
        config.wrong_goal_offset,
        config.wrong_goal_mirror,
    )
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
    return path


main = command(DemosConfig, "demos.yaml", "dsrl demos")(run)

if __name__ == "__main__":
    sys.exit(main())
