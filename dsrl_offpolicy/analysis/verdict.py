"""What a check of a run says, and the stretches of a run that checks compare."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
"""A line of ``metrics.jsonl``."""

ENOUGH_ROWS = 8
"""Rows from which on a course over time is judged: two in each quarter."""
Q_SLACK = 0.1
"""Share of the range of returns by which an approximate Q may leave it."""


@dataclass(frozen=True)
class Verdict:
    """One check of a run.

    Args:
        name: of the check; most are named after the metric.
        ok: None where there is not enough data yet.
        found: what the run shows, with numbers.
        expected: what a healthy run shows.
        remedy: what to try; empty unless the check fails.
        values: the numbers in ``found``, for programs.
    """

    name: str
    ok: bool | None
    found: str
    expected: str
    remedy: str = ""
    values: Mapping[str, float | int] = field(default_factory=dict)


def judge(name: str, ok: bool | None, found: str, expected: str, remedy: str, **values: float | int) -> Verdict:
    """Return a verdict that carries its remedy only where it fails."""
    return Verdict(name, ok, found, expected, remedy if ok is False else "", values)


def too_early(name: str, expected: str, rows: int, needed: int = ENOUGH_ROWS) -> Verdict:
    """Return the verdict of a check that needs more rows."""
    return Verdict(name, None, f"not enough data yet: {rows} of {needed} rows", expected)


def quarters(rows: Sequence[Row], metric: str) -> list[float]:
    """Return the medians of a metric over the four quarters of at least four rows, in order."""
    values = [float(row[metric]) for row in rows]
    cuts = [round(len(values) * part / 4) for part in range(5)]
    return [statistics.median(values[cuts[i] : cuts[i + 1]]) for i in range(4)]


def number(value: float | int) -> str:
    """Return four significant digits."""
    return f"{value:.4g}"


def range_of_returns(reward_mode: str, reward_scale: float, gamma: float) -> tuple[float, float] | None:
    """Return the least and the greatest discounted return that rewards allow; None without a bound.

    Sparse rewards are -1 per env step, normalized dense ones at most 1 in size, both times the scale.
    """
    if gamma == 1.0 or reward_mode == "dense":
        return None
    most = reward_scale / (1 - gamma)
    return (-most, 0.0) if reward_mode == "sparse" else (-most, most)
