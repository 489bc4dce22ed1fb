"""Two groups over several tasks, of which one has more seeds than the other."""

from __future__ import annotations

import numpy as np
import pytest

from dsrl_offpolicy.analysis.comparison import EvaluatedRun, compare


def run(task: str, seed: int, end: float) -> EvaluatedRun:
    """From 0 to ``end`` in 100 env steps."""
    return EvaluatedRun(
        f"{task}{seed}", task, seed, np.array([0.0, 100.0]), np.array([0.0, end]), np.zeros(2), np.ones(2)
    )


@pytest.mark.parametrize("first_seed", [1, 7], ids=["paired", "unpaired"])
def test_tasks_count_alike_whether_runs_are_paired_or_not(first_seed):
    # Task a has three seeds and a difference of .3, task b one and .1: (.3 + .1) / 2, and not (3 * .3 + .1) / 4.
    ours = [run("a", seed, 0.5) for seed in (1, 2, 3)] + [run("b", 1, 0.9)]
    theirs = [run("a", first_seed + i, 0.2) for i in range(3)] + [run("b", first_seed, 0.8)]
    (pair,) = compare({"theirs": theirs, "ours": ours}, level=0.8).pairs
    assert pair.paired == (first_seed == 1)
    assert pair.difference_success.value == pytest.approx(0.2)
    assert pair.difference_area.value == pytest.approx(0.1)
