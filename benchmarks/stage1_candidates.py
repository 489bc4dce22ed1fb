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
from collections.abc import Callable
from dataclasses import replace
from typing import Any

TIMED = 30


def main() -> int:
    """Measure and print."""
    import torch

    from dsrl_offpolicy.agents.aw_mle import CandidatePool
    from dsrl_offpolicy.configs.jobs import Stage1Config
    from dsrl_offpolicy.configs.loading import parse_job
    from dsrl_offpolicy.train.train_stage1_offline import build_agent, load_states, verify
    from dsrl_offpolicy.train.wiring import load_base, start_torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments, flags = parser.parse_known_args()
    config = parse_job(Stage1Config, "stage1_offline.yaml", "stage1_candidates", flags)
    device = start_torch(config)
    base = load_base(config, device)
    states, held_out = load_states(config, base, device)
    sizes = [0, *arguments.pools]

    def batch(generator: torch.Generator) -> torch.Tensor:
        return torch.randint(len(states), (config.batch_size,), generator=generator)

    steps: dict[int, Callable[[torch.Tensor], Any]] = {}
    builds: dict[int, float] = {}
    for size in sizes:
        agent = build_agent(replace(config, candidate_pool=size), base, device)
        start = time.perf_counter()
        pool = CandidatePool(agent, states, size) if size else None
        builds[size] = time.perf_counter() - start
        steps[size] = lambda index, a=agent, p=pool: a.update(states[index], p.draw(index) if p else None)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    generator = torch.Generator().manual_seed(0)
    for _ in range(TIMED):
        index = batch(generator)
        for size, step in steps.items():
            start = time.perf_counter()
            step(index)
            times[size].append(time.perf_counter() - start)
    medians = {size: statistics.median(values) for size, values in times.items()}
    print(f"{len(states)} states, batch {config.batch_size}, M {config.num_candidates}, L {base.latent_shape}")
    for size in sizes:
        name = f"pool of {size}" if size else "fresh"
        line = f"{name:<12} {1000 * medians[size]:7.1f} ms per gradient step"
        if size:
            saved = medians[0] - medians[size]
            line += f", {builds[size]:6.1f} s to fill, pays from {builds[size] / saved:.0f} gradient steps on"
        print(line, flush=True)

    for size in sizes:
        found = []
        for seed in arguments.seeds:
            settings = replace(config, candidate_pool=size, seed=seed)
            agent = build_agent(settings, base, device)
            pool = CandidatePool(agent, states, size) if size else None
            generator = torch.Generator().manual_seed(seed)
            for _ in range(config.total_iters):
                index = batch(generator)
                agent.update(states[index], pool.draw(index) if pool else None)
            row = verify(agent, held_out, settings)
            found.append(f"{row['difference']:+.2f} [{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]")
        print(
            f"{f'pool of {size}' if size else 'fresh':<12} E[Q] policy less prior: {'  '.join(found)}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
