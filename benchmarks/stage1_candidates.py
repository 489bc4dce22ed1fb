"""Stage 1 with fresh candidates against a pool that was decoded once: time per gradient step, and what is learnt.

    python benchmarks/stage1_candidates.py --demo_path FILE --awsc_checkpoint FILE [--pools 64 128] [--seeds 1 2 3]
        [flags of dsrl stage1]

Times are medians over alternating gradient steps of one process. What is learnt is E[Q] under the policy less that
under the prior on held-out states (`dsrl stage1`'s own verification) after `--total_iters` steps, on every seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

TIMED = 30


class Learner:
    """One agent of Stage 1 with the candidates that its settings ask for."""

    def __init__(self, config: Any, base: Any, states: Any) -> None:
        from dsrl_offpolicy.agents.aw_mle import CandidatePool
        from dsrl_offpolicy.train.train_stage1_offline import build_agent

        self.agent = build_agent(config, base, states.device)
        self.states = states
        start = time.perf_counter()
        self.pool = CandidatePool(self.agent, states, config.candidate_pool) if config.candidate_pool else None
        self.filled_in = time.perf_counter() - start

    def step(self, index: Any) -> None:
        """One gradient step on the states at ``index``."""
        self.agent.update(self.states[index], self.pool.draw(index) if self.pool else None)


def time_steps(configs: dict[str, Any], base: Any, states: Any) -> None:
    """Print what a gradient step and the filling of the pool take."""
    import torch

    learners = {name: Learner(config, base, states) for name, config in configs.items()}
    times: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(TIMED):
        index = torch.randint(len(states), (configs["fresh"].batch_size,))
        for name, learner in learners.items():
            start = time.perf_counter()
            learner.step(index)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, learner in learners.items():
        line = f"{name:<12} {1000 * medians[name]:7.1f} ms per gradient step"
        if learner.pool:
            pays = learner.filled_in / (medians["fresh"] - medians[name])
            line += f", {learner.filled_in:6.1f} s to fill, pays from {pays:.0f} gradient steps on"
        print(line, flush=True)


def gain(config: Any, base: Any, states: Any, held_out: Any, episodes: Any) -> str:
    """E[Q] under the policy less that under the prior, after ``total_iters`` gradient steps."""
    import torch

    from dsrl_offpolicy.train.train_stage1_offline import verify

    learner = Learner(config, base, states)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.total_iters):
        learner.step(torch.randint(len(states), (config.batch_size,), generator=generator))
    row = verify(learner.agent, held_out, episodes, config)
    return f"{row['difference']:+.2f} [{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"


def main() -> int:
    """Measure and print."""
    from dsrl_offpolicy.configs.jobs import Stage1Config
    from dsrl_offpolicy.configs.loading import parse_job
    from dsrl_offpolicy.train.start import load_base, start_torch
    from dsrl_offpolicy.train.train_stage1_offline import load_states

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments, flags = parser.parse_known_args()
    config = parse_job(Stage1Config, "stage1_offline.yaml", "stage1_candidates", flags)
    device = start_torch(config)
    base = load_base(config, device)
    states, held_out, episodes = load_states(config, config.demo_path, base, device)
    configs = {"fresh": replace(config, candidate_pool=0)}
    configs |= {f"pool of {size}": replace(config, candidate_pool=size) for size in arguments.pools}
    print(
        f"{len(states)} states, batch {config.batch_size}, M {config.num_candidates}, L {base.info.latent_shape}"
    )
    time_steps(configs, base, states)
    for name, settings in configs.items():
        found = [gain(replace(settings, seed=seed), base, states, held_out, episodes) for seed in arguments.seeds]
        print(f"{name:<12} E[Q] policy less prior: {'  '.join(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
