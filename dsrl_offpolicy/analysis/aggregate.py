"""Numbers that several runs come to, with intervals over runs.

After Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021: the
interquartile mean, the probability of improvement, and percentile bootstrap intervals that resample runs within
each task (a stratum). docs/statistics.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dsrl_offpolicy.evaluation.intervals import Interval

CONFIDENCE = 0.95
RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
"""Every interval draws its resamples from this seed: the same runs give the same interval."""

_BATCH_NUMBERS = 2_000_000
"""Pairs of resampled numbers in memory at once, at most."""


Numbers = np.ndarray | np.floating
Statistic = Callable[..., Numbers]
"""Of one array per stratum, with runs on ``axis``."""


def mean_of_runs(*strata: np.ndarray, axis: int = -1) -> Numbers:
    """Return the mean over the runs of all strata."""
    return np.mean(np.concatenate(strata, axis=axis), axis=axis)


def interquartile_mean(*strata: np.ndarray, axis: int = -1) -> Numbers:
    """Return the mean without the lowest and the highest quarter of all runs (IQM).

    Of n runs ``floor(n / 4)`` are dropped at each end, as in rliable: of fewer than four, none.
    """
    from scipy import stats  # a second of every process's start

    return stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def probability_of_improvement(*strata: np.ndarray, axis: int = -1) -> Numbers:
    """Return P(X > Y) + P(X = Y) / 2 of a run X and a run Y of the same stratum, averaged over strata.

    Args:
        strata: X of every stratum, then Y of every stratum in the same order.
        axis: that of the runs.
    """
    tasks = len(strata) // 2
    per_task = []
    for x, y in zip(strata[:tasks], strata[tasks:], strict=True):
        first, second = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
        per_task.append(np.mean((first > second) + 0.5 * (first == second), axis=(-2, -1)))
    return np.mean(per_task, axis=0)


def mean_over_tasks(*strata: np.ndarray, axis: int = -1) -> Numbers:
    """Return the mean over strata of each stratum's mean: tasks count alike, whatever number of runs they have."""
    return np.mean([np.mean(stratum, axis=axis) for stratum in strata], axis=0)


def difference_of_means(*strata: np.ndarray, axis: int = -1) -> Numbers:
    """Return mean over strata of mean X less mean Y; ``strata`` as in :func:`probability_of_improvement`."""
    tasks = len(strata) // 2
    return mean_over_tasks(*strata[:tasks], axis=axis) - mean_over_tasks(*strata[tasks:], axis=axis)


def estimates(strata: Sequence[np.ndarray], statistic: Statistic) -> list[Interval]:
    """Estimate a statistic of runs at K points, with 95 % intervals where every stratum has two runs or more.

    Args:
        strata: scores ``[N_m, K]`` of the runs of each stratum. A run is drawn with all its points.
        statistic: of one array per stratum.
    """
    columns = [np.asarray(stratum, dtype=float).T for stratum in strata]
    values = np.atleast_1d(statistic(*columns, axis=-1))
    if min(column.shape[-1] for column in columns) < 2:
        return [Interval(float(value)) for value in values]
    points, runs = len(values), sum(column.shape[-1] for column in columns)
    from scipy import stats  # a second of every process's start

    result = stats.bootstrap(
        columns,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // (points * runs**2)),
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(BOOTSTRAP_SEED),
    )
    low, high = (np.atleast_1d(bound) for bound in result.confidence_interval)
    return [Interval(*map(float, numbers)) for numbers in zip(values, low, high, strict=True)]


def estimate(strata: Sequence[np.ndarray], statistic: Statistic) -> Interval:
    """Return :func:`estimates` of one number per run: ``strata`` are ``[N_m]``."""
    return estimates([np.asarray(stratum)[:, None] for stratum in strata], statistic)[0]


def distinct_resamples(runs: int) -> int:
    """Return how many different resamples so many runs have: C(2n - 1, n)."""
    return math.comb(2 * runs - 1, runs)


def area_under_curve(env_steps: np.ndarray, success: np.ndarray, first: float, last: float) -> float:
    """Return mean success from ``first`` to ``last`` env steps, linear between evaluations (trapezoids).

    Args:
        env_steps: ``[E]``, ascending, from ``first`` or before to ``last`` or beyond.
        success: ``[E]``.
        first: env steps, below ``last``.
        last: env steps.
    """
    inside = (env_steps > first) & (env_steps < last)
    x = np.concatenate([[first], env_steps[inside], [last]])
    y = np.interp(x, env_steps, success)
    area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (last - first)
    return round(float(area), 9)  # curves of the same area are to tie, whatever their grids


def first_at_level(env_steps: np.ndarray, success: np.ndarray, level: float) -> float:
    """Return env steps at the first evaluation with success at the level or above; inf where there is none."""
    reached = np.flatnonzero(success >= level)
    return float(env_steps[reached[0]]) if len(reached) else math.inf


def median_with_censoring(values: Sequence[float]) -> float:
    """Return the least value that half of the runs or more have reached; inf where fewer than half reached any.

    Runs that did not reach (inf) are all censored at the same env step, so this is the Kaplan-Meier median.
    """
    return float(np.sort(values)[(len(values) + 1) // 2 - 1])
