"""Env steps per second of our ManiSkill environments against ManiSkill stepped bare, in one run.

    python benchmarks/env_throughput.py [--env_id LiftPegUpright-v1] [--seconds 20] [--repeats 3]

Bare is ManiSkill's own `CPUGymWrapper` under Gymnasium's `AsyncVectorEnv`, one action at a time, as its
documentation has it. Ours steps the same random actions in chunks of 8. The two alternate, `--repeats` times;
medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsrl_offpolicy.envs.spec import ObsMode

HORIZON = 8
LIMIT = 200
"""Env steps of an episode, in both."""


def make_bare(env_id: str, obs_mode: str) -> Any:
    """ManiSkill's environment as its documentation makes it for the CPU."""
    import gymnasium as gym
    import mani_skill.envs  # registers the tasks
    from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper

    mani_skill.logger.setLevel("ERROR")
    env = gym.make(
        env_id,
        obs_mode=obs_mode,
        control_mode="pd_ee_delta_pose",
        reward_mode="sparse",
        sim_backend="physx_cpu",
        render_backend="none" if obs_mode == "state" else "cpu",
        max_episode_steps=LIMIT,
    )
    return CPUGymWrapper(env)


def speed(env: Any, chunked: bool, seconds: float, action_dim: int) -> float:
    """Env steps per second, all environments together, resets included."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (env.num_envs, HORIZON, action_dim) if chunked else (env.num_envs, action_dim)
    env.reset(seed=list(range(env.num_envs)))
    steps, start = 0, time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        *_, terminated, truncated, info = env.step(rng.uniform(-0.3, 0.3, shape).astype(np.float32))
        steps += int(np.sum(info["n_steps"])) if chunked else env.num_envs
        ended = terminated | truncated
        if ended.any():
            env.reset(seed=[steps + i for i in range(env.num_envs)], options={"reset_mask": ended})
    return steps / elapsed


def main() -> int:
    """Measure and print."""
    import functools

    from gymnasium.vector import AsyncVectorEnv, AutoresetMode

    from dsrl_offpolicy.envs.spec import EnvSpec
    from dsrl_offpolicy.envs.vector import inspect_env, make_vector_env

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env_id", default="LiftPegUpright-v1")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("| observations | processes | bare | ours | ours / bare |\n|---|---|---|---|---|")
    modes: list[tuple[ObsMode, int]] = [("state", 1), ("rgb", HORIZON), ("rgb", 2), ("rgb", 1)]
    for mode, frames in modes:
        spec = EnvSpec(
            arguments.env_id, obs_mode=mode, max_episode_steps=LIMIT, obs_horizon=frames, act_horizon=HORIZON,
            sim_backend="physx_cpu", end_on_success=True,
        )  # fmt: skip
        action_dim = inspect_env(spec).action_dim
        for processes in (1, 2):
            make = functools.partial(make_bare, arguments.env_id, mode)
            bare = AsyncVectorEnv([make] * processes, context="forkserver", autoreset_mode=AutoresetMode.DISABLED)
            ours = make_vector_env(spec, processes)
            found: dict[str, list[float]] = {"bare": [], "ours": []}
            for _ in range(arguments.repeats):
                found["bare"].append(speed(bare, False, arguments.seconds, action_dim))
                found["ours"].append(speed(ours, True, arguments.seconds, action_dim))
            bare.close()
            ours.close()
            medians = {name: statistics.median(values) for name, values in found.items()}
            drawn = f", {frames} of {HORIZON} frames drawn" if mode == "rgb" else ""
            ratio = medians["ours"] / medians["bare"]
            print(
                f"| {mode}{drawn} | {processes} | {medians['bare']:.0f} | {medians['ours']:.0f} | {ratio:.2f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
