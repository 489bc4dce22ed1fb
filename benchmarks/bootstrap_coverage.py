"""How often the 95 % intervals of ``dsrl compare`` hold the truth, by the number of runs.

    python benchmarks/bootstrap_coverage.py

A run's own success is drawn from Beta(8, 2) (mean 0.8) and evaluated on 40 episodes. Truths: the mean 0.8, the
interquartile mean of a million runs, and P(X > Y) = 0.5 for two groups of the same kind.
"""

from __future__ import annotations

import argparse

import numpy as np

from dsrl_offpolicy.analysis.aggregate import (
    estimates,
    interquartile_mean,
    mean_of_runs,
    probability_of_improvement,
)
from dsrl_offpolicy.evaluation.intervals import Interval

EPISODES = 40


def scores(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Evaluated success of runs, of the given shape."""
    return generator.binomial(EPISODES, generator.beta(8, 2, shape)) / EPISODES


def holds(interval: Interval, truth: float) -> bool:
    """Whether the truth lies in it. One run has none, which holds nothing."""
    low, high = interval.low, interval.high
    return low is not None and high is not None and low <= truth <= high


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[2, 3, 4, 5, 10, 20])
    parser.add_argument("--groups", type=int, default=1000, help="simulated groups per row")
    arguments = parser.parse_args()
    generator = np.random.default_rng(1)
    true_iqm = float(interquartile_mean(scores(generator, 1_000_000)))
    print(f"| runs | mean | IQM (truth {true_iqm:.3f}) | probability of improvement |\n|---|---|---|---|")
    for runs in arguments.runs:
        group, other = (scores(generator, runs, arguments.groups) for _ in range(2))
        found = [
            (estimates([group], mean_of_runs), 0.8),
            (estimates([group], interquartile_mean), true_iqm),
            (estimates([group, other], probability_of_improvement), 0.5),
        ]
        shares = [np.mean([holds(p, truth) for p in points]) for points, truth in found]
        print(f"| {runs} | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
