"""What `dsrl eval --end_decided_rows` and its screening of constants do, in simulated evaluations.

    python benchmarks/ended_rows.py [--tries 1000] [--episodes 100] [--rows 7]

First a row whose policy succeeds at a given rate, beside a reference that succeeds in 98 %, independent of it.
Then constants whose rates are drawn from Beta distributions, screened on 10 starts, four episodes side by side; a
failure is five times as long as a success.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Sequence

import numpy as np

from dsrl_offpolicy.evaluation.episodes import Episode, EpisodeOutcome, EpisodeQueue
from dsrl_offpolicy.evaluation.paired_looks import Compared, run_until_below
from dsrl_offpolicy.evaluation.screening import screen
from dsrl_offpolicy.models.latent_sources import prior_source

REFERENCE = 0.98
SUCCESS, FAILURE = 100, 500
"""Env steps of an episode."""
SLOTS = 4


def outcome(seed: int, success: bool) -> EpisodeOutcome:
    """An episode of that success."""
    return EpisodeOutcome(seed, success, success, 0.0, SUCCESS if success else FAILURE)


def row(rng: np.random.Generator, rate: float, episodes: int, rows: int) -> Compared:
    """A row of the table, one of ``rows`` that are compared with the reference."""
    reference = [outcome(s, bool(rng.random() < REFERENCE)) for s in range(episodes)]
    succeeds = rng.random(episodes) < rate

    def evaluate(source: object, seeds: Sequence[int]) -> list[EpisodeOutcome]:
        return [outcome(s, bool(succeeds[s])) for s in seeds]

    return run_until_below(reference, prior_source(), evaluate, rows=rows)


def screened(succeeds: np.ndarray) -> int:
    """Env steps that the screening of constants takes, ``[constants, starts]``."""

    def run(queue: EpisodeQueue) -> int:
        running: list[tuple[int, int, int, Episode]] = []  # end, order, start
        now = steps = order = 0
        while True:
            while len(running) < SLOTS and (episode := queue.take()) is not None:
                length = SUCCESS if succeeds[episode.index, episode.seed] else FAILURE
                heapq.heappush(running, (now + length, order, now, episode))
                order += 1
            if not running:
                return steps
            now, _, begun, episode = heapq.heappop(running)
            steps += now - begun
            if not queue.ended(episode, outcome(episode.seed, bool(succeeds[episode.index, episode.seed]))):
                return steps + sum(now - begun for _, _, begun, _ in running)

    found = screen([prior_source() for _ in succeeds], range(succeeds.shape[1]), run)
    assert found.index == succeeds.sum(1).argmax()
    return found.env_steps


def main() -> int:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--rows", type=int, default=7)
    arguments = parser.parse_args()
    print("| row's rate | shown to be below | episodes | mean of the row's rates | interval holds the rate |")
    print("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for rate in (0.3, 0.5, 0.7, 0.8, 0.9, 0.98):
        found = [row(rng, rate, arguments.episodes, arguments.rows) for _ in range(arguments.tries)]
        below = np.mean([one.standing == "below" for one in found])
        count = np.mean([one.episodes for one in found])
        mean = np.mean([one.success.value for one in found])
        intervals = [one.success for one in found]
        covered = np.mean([(i.low or 0.0) <= rate <= (i.high or 1.0) for i in intervals])
        percent = " | ".join(f"{100 * share:.1f} %" for share in (mean, covered))
        print(f"| {100 * rate:.0f} % | {100 * below:.1f} % | {count:.0f} | {percent} |")
    print("\n| constants' rates | mean | env steps of the screening, over those of all episodes |\n|---|---|---|")
    for a, b in ((2.0, 2.0), (1.5, 3.0), (0.5, 3.0)):
        spent = whole = 0
        for _ in range(arguments.tries // 5):
            succeeds = rng.random((16, 10)) < rng.beta(a, b, (16, 1))
            spent += screened(succeeds)
            whole += int(np.where(succeeds, SUCCESS, FAILURE).sum())
        print(f"| Beta({a:g}, {b:g}) | {100 * a / (a + b):.0f} % | {spent / whole:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
