"""MetaWorld's env step and reset as they are, and with the methods of `envs/families/metaworld_quick.py`.

    python benchmarks/metaworld_step.py [--tasks pick-place-v3 lever-pull-v3] [--episodes 5] [--steps 100]

CPU time of one process, the two taking turns at every step on the same actions of MetaWorld's scripted expert; any
number that differs ends the run.
"""

from __future__ import annotations

import argparse
import sys
import time

import gymnasium as gym
import numpy as np

TASKS = ["pick-place-v3", "push-v3", "lever-pull-v3", "drawer-open-v3"]


def make(task: str, quick: bool) -> gym.Env:
    """MetaWorld's environment with starts that follow from a seed."""
    from dsrl_offpolicy.envs.family import family_of
    from dsrl_offpolicy.envs.spec import EnvSpec

    env = family_of(EnvSpec(task)).make(EnvSpec(task))
    if not quick:
        for name in ("touching_object", "_get_curr_obs_combined_no_goal", "reset", "_get_quat_objects"):
            vars(env.unwrapped).pop(name, None)
    return env


def main() -> int:
    """Measure and print."""
    from metaworld.policies import ENV_POLICY_MAP

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    print("| task | env step, as it is | quick | ratio | reset, as it is | quick | ratio |\n" + "|---" * 7 + "|")
    for task in arguments.tasks:
        envs = [make(task, quick) for quick in (False, True)]
        steps, resets = np.zeros((arguments.episodes, arguments.steps, 2)), np.zeros((arguments.episodes, 2))
        for seed in range(arguments.episodes):
            expert = ENV_POLICY_MAP[task]()
            found = []
            for i, env in enumerate(envs):
                start = time.process_time()
                found.append(env.reset(seed=seed)[0])
                resets[seed, i] = time.process_time() - start
            for step in range(arguments.steps):
                action = np.clip(expert.get_action(found[0].astype(np.float64)), -1, 1).astype(np.float32)
                found = []
                for i, env in enumerate(envs):
                    start = time.process_time()
                    obs, reward, *_ = env.step(action)
                    steps[seed, step, i] = time.process_time() - start
                    found.append(np.append(obs, reward))
                if not np.array_equal(*found):
                    raise AssertionError(f"{task}: step {step} of seed {seed} differs")
                found = [one[:-1] for one in found]
        step_times, reset_times = 1e6 * np.median(steps, (0, 1)), 1e3 * np.median(resets, 0)
        cells = [
            *(f"{value:.0f} us" for value in step_times), f"{step_times[1] / step_times[0]:.2f}",
            *(f"{value:.1f} ms" for value in reset_times), f"{reset_times[1] / reset_times[0]:.2f}",
        ]  # fmt: skip
        print(f"| {task} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
