"""How often `dsrl probe` finds a constant that is better, and how often it calls one above where none is.

    python benchmarks/probe_power.py

Simulates its comparison with the defaults (40 starts; w = 0 and 8 constants), 1,000 times per line. Success on a
start is a coin of its own for every row, so that nothing is gained from pairs: the hardest case. The last constant
is better, the others are like the prior.
"""

from __future__ import annotations

import sys

STARTS, CANDIDATES, TRIES = 40, 9, 1000
LINES = [(0.35, 0.85), (0.35, 0.75), (0.35, 0.65), (0.35, 0.5), (0.35, 0.35), (0.5, 0.5)]
"""Success of the prior, and of the better constant."""


def main() -> int:
    """Simulate and print."""
    import numpy as np

    from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome
    from dsrl_offpolicy.evaluation.paired_looks import compare_paired
    from dsrl_offpolicy.models.latent_sources import prior_source

    outcomes = [[EpisodeOutcome(start, won, won, 0.0, 1) for won in (False, True)] for start in range(STARTS)]
    sources = {f"constant {i}": prior_source() for i in range(CANDIDATES)}
    row_of = {id(source): i for i, source in enumerate(sources.values())}
    for prior, better in LINES:
        rng, found, wrong, episodes = np.random.default_rng(0), 0, 0, 0
        for _ in range(TRIES):
            won = rng.random((CANDIDATES, STARTS)) < np.array([prior] * (CANDIDATES - 1) + [better])[:, None]
            reference = [outcomes[start][int(rng.random() < prior)] for start in range(STARTS)]
            rows = compare_paired(
                reference,
                sources,
                lambda source, starts, won=won: [outcomes[s][int(won[row_of[id(source)], s])] for s in starts],
            )
            above = [name for name, row in rows.items() if row.standing == "above"]
            last = f"constant {CANDIDATES - 1}"
            found += last in above
            wrong += any(name != last or better == prior for name in above)
            episodes += STARTS + sum(row.episodes for row in rows.values())
        print(
            f"{100 * prior:.0f} % against {100 * better:.0f} %: found in {100 * found / TRIES:.1f} %, "
            f"wrongly called above in {100 * wrong / TRIES:.1f} %, "
            f"{episodes / TRIES:.0f} of {STARTS * (1 + CANDIDATES)} episodes run",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
