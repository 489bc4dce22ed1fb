"""Groups of runs held against each other: curves, aggregates, and how probable an improvement is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dsrl_offpolicy.analysis.aggregate import (
    BOOTSTRAP_SEED,
    CONFIDENCE,
    RESAMPLES,
    area_under_curve,
    difference_of_means,
    distinct_resamples,
    estimate,
    estimates,
    first_at_level,
    interquartile_mean,
    mean_of_runs,
    mean_over_tasks,
    median_with_censoring,
    probability_of_improvement,
)
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.intervals import Interval

FEW = 10
"""Runs below which the percentile bootstrap's 95 % intervals are called too narrow (docs/statistics.md)."""


@dataclass(frozen=True)
class EvaluatedRun:
    """The evaluations of one run: E of them, ``env_steps`` ascending; ``low`` and ``high`` are Wilson's bounds."""

    name: str
    task: str
    seed: int
    env_steps: np.ndarray
    success: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class RunNumbers:
    """One run over the env steps that all runs have; ``env_steps_to_level`` is None where it was not reached."""

    name: str
    task: str
    seed: int
    last_evaluation: int
    success: float
    area: float
    env_steps_to_level: int | None


@dataclass(frozen=True)
class CurvePoint:
    """A group at one number of env steps."""

    env_steps: float
    mean: Interval
    iqm: Interval


@dataclass(frozen=True)
class GroupNumbers:
    """What the runs of a group come to.

    ``success`` is at the evaluation nearest to the last env step that all runs have, ``area`` the mean success up
    to there.
    ``interval_over`` says what intervals are taken over: runs, the episodes of a single run (Wilson), or nothing.
    ``median_env_steps_to_level`` is None where fewer than half of the runs reached it.
    """

    name: str
    runs: list[RunNumbers]
    interval_over: str | None
    success_mean: Interval
    success_iqm: Interval
    area_mean: Interval
    area_iqm: Interval
    reached_level: int
    median_env_steps_to_level: int | None
    curve: list[CurvePoint]


@dataclass(frozen=True)
class PairNumbers:
    """How ``name`` does against ``than``; differences are ``name`` less ``than``, ``paired`` seed by seed."""

    name: str
    than: str
    probability_success: Interval
    probability_area: Interval
    paired: bool
    difference_success: Interval
    difference_area: Interval


@dataclass(frozen=True)
class Comparison:
    """Groups and pairs of groups, over the env steps that all runs have."""

    first_env_step: int
    last_env_step: int
    level: float
    confidence: float
    resamples: int
    bootstrap_seed: int
    groups: list[GroupNumbers]
    pairs: list[PairNumbers]
    notes: list[str]


def compare(groups: Mapping[str, Sequence[EvaluatedRun]], level: float) -> Comparison:
    """Summarise every group, and every later group against every earlier one of the same tasks.

    Args:
        groups: runs by the group's name.
        level: success that runs are to reach, in (0, 1].

    Raises:
        InputError: a run with fewer than two evaluations, or runs without env steps in common.
    """
    runs = [run for members in groups.values() for run in members]
    first, last = _common_range(runs)
    points = min(_evaluations_within(run, first, last) for run in runs)
    grid = np.linspace(first, last, max(points, 2))
    summaries = [_group(name, members, grid, level) for name, members in groups.items()]
    pairs, notes = [], _notes(groups, last)
    for than, name in combinations(groups, 2):
        if {run.task for run in groups[than]} == {run.task for run in groups[name]}:
            pairs.append(_pair(name, than, groups, (first, last)))
        else:
            notes.append(f"{name} and {than} are not held against each other: their tasks differ")
    notes.extend(_separation_notes(pairs, groups))
    return Comparison(
        round(first), round(last), level, CONFIDENCE, RESAMPLES, BOOTSTRAP_SEED, summaries, pairs, notes
    )


def _common_range(runs: Sequence[EvaluatedRun]) -> tuple[float, float]:
    for run in runs:
        if len(run.env_steps) < 2:
            raise InputError(f"{run.name}: expected a run with two evaluations or more, got {len(run.env_steps)}")
    latest = max(runs, key=lambda run: run.env_steps[0])
    shortest = min(runs, key=lambda run: run.env_steps[-1])
    first, last = float(latest.env_steps[0]), float(shortest.env_steps[-1])
    if first >= last:
        raise InputError(
            f"{shortest.name}: expected env steps in common with {latest.name}, "
            f"got none: the one ends at {last:,.0f}, the other begins at {first:,.0f}"
        )
    return first, last


def _evaluations_within(run: EvaluatedRun, first: float, last: float) -> int:
    # Evaluations come a few env steps late, each run's by its own number: the nearest to the ends count.
    slack = _spacing(run) / 2
    return int(np.sum((run.env_steps >= first - slack) & (run.env_steps <= last + slack)))


def _spacing(run: EvaluatedRun) -> float:
    return float(np.median(np.diff(run.env_steps)))


def _strata(members: Sequence[EvaluatedRun], scores: Sequence[np.ndarray | float]) -> list[np.ndarray]:
    """The scores of a group's runs, a stratum per task, tasks by the alphabet."""
    tasks = sorted({run.task for run in members})
    return [
        np.stack([np.asarray(s) for run, s in zip(members, scores, strict=True) if run.task == t]) for t in tasks
    ]


def _nearest(run: EvaluatedRun, env_step: float) -> int:
    return int(np.argmin(np.abs(run.env_steps - env_step)))


def _final(run: EvaluatedRun, last: float) -> float:
    """Success at the evaluation nearest to the end: what was counted, so that equal runs tie."""
    return float(run.success[_nearest(run, last)])


def _area(run: EvaluatedRun, first: float, last: float) -> float:
    return area_under_curve(run.env_steps, run.success, first, last)


def _steps_to_level(run: EvaluatedRun, level: float, last: float) -> float:
    counted = run.env_steps <= last + _spacing(run) / 2
    return first_at_level(run.env_steps[counted], run.success[counted], level)


def _group(name: str, members: Sequence[EvaluatedRun], grid: np.ndarray, level: float) -> GroupNumbers:
    first, last = float(grid[0]), float(grid[-1])
    steps = [_steps_to_level(run, level, last) for run in members]
    finals, areas = [_final(run, last) for run in members], [_area(run, first, last) for run in members]
    curves = _strata(members, [np.interp(grid, run.env_steps, run.success) for run in members])
    means, iqms = estimates(curves, mean_of_runs), estimates(curves, interquartile_mean)
    success_mean = estimate(_strata(members, finals), mean_of_runs)
    success_iqm = estimate(_strata(members, finals), interquartile_mean)
    over = "runs" if success_mean.low is not None else None
    if len(members) == 1:
        over, means = "episodes", _wilson(members[0], grid)
        iqms, only, end = means, members[0], _nearest(members[0], last)
        success_mean = Interval(finals[0], float(only.low[end]), float(only.high[end]))
        success_iqm = success_mean
    return GroupNumbers(
        name=name,
        runs=[
            RunNumbers(run.name, run.task, run.seed, int(run.env_steps[-1]), final, area, _count(reached))
            for run, final, area, reached in zip(members, finals, areas, steps, strict=True)
        ],
        interval_over=over,
        success_mean=success_mean,
        success_iqm=success_iqm,
        area_mean=estimate(_strata(members, areas), mean_of_runs),
        area_iqm=estimate(_strata(members, areas), interquartile_mean),
        reached_level=int(np.sum(np.isfinite(steps))),
        median_env_steps_to_level=_count(median_with_censoring(steps)),
        curve=[CurvePoint(float(x), *both) for x, *both in zip(grid, means, iqms, strict=True)],
    )


def _wilson(run: EvaluatedRun, grid: np.ndarray) -> list[Interval]:
    """A single run's own success with the intervals of its evaluations, all linear between evaluations."""
    columns = [np.interp(grid, run.env_steps, values) for values in (run.success, run.low, run.high)]
    return [Interval(*map(float, numbers)) for numbers in zip(*columns, strict=True)]


def _count(env_steps: float) -> int | None:
    return int(env_steps) if np.isfinite(env_steps) else None


def _pair(
    name: str, than: str, groups: Mapping[str, Sequence[EvaluatedRun]], common: tuple[float, float]
) -> PairNumbers:
    def key(run: EvaluatedRun) -> tuple[str, str]:
        return run.task, str(run.seed)

    ours, theirs = sorted(groups[name], key=key), sorted(groups[than], key=key)
    keys = [key(run) for run in ours]
    paired = keys == [key(run) for run in theirs] and len(set(keys)) == len(keys)

    def numbers(score: Sequence[float], other: Sequence[float]) -> tuple[Interval, Interval]:
        strata = [*_strata(ours, score), *_strata(theirs, other)]
        probability = estimate(strata, probability_of_improvement)
        if not paired:
            return probability, estimate(strata, difference_of_means)
        return probability, estimate(_strata(ours, np.subtract(score, other).tolist()), mean_over_tasks)

    _, last = common
    success = numbers([_final(run, last) for run in ours], [_final(run, last) for run in theirs])
    area = numbers([_area(run, *common) for run in ours], [_area(run, *common) for run in theirs])
    return PairNumbers(name, than, success[0], area[0], paired, success[1], area[1])


def _notes(groups: Mapping[str, Sequence[EvaluatedRun]], last: float) -> list[str]:
    """What a reader of the numbers has to know."""
    notes = []
    runs = [run for members in groups.values() for run in members]
    longer = [run for run in runs if run.env_steps[-1] > last + _spacing(run) / 2]
    if longer:
        shortest = min(runs, key=lambda run: run.env_steps[-1])
        notes.append(
            f"{len(longer)} of {len(runs)} runs go on beyond {last:,.0f} env steps, where {shortest.name} ends; "
            f"what comes later does not count"
        )
    single, few = [], set()
    for name, members in groups.items():
        tasks = [run.task for run in members]
        fewest = min(tasks.count(task) for task in tasks)
        if len(members) == 1:
            single.append(name)
        elif fewest == 1:
            notes.append(f"{name}: no interval over runs, because a task has one run")
        elif fewest < FEW:
            few.add(fewest)
    if single:
        names = "; ".join(single)
        notes.append(f"{names}: one run has no interval over runs; success has Wilson's, over its episodes")
    for fewest in sorted(few):
        notes.append(
            f"{fewest} runs have {distinct_resamples(fewest)} different resamples: "
            f"intervals over so few are coarse, and too narrow"
        )
    return notes


def _separation_notes(pairs: Sequence[PairNumbers], groups: Mapping[str, Sequence[EvaluatedRun]]) -> list[str]:
    """An interval without width is no certainty: how often equals of so few runs are apart like that."""
    sizes = set()
    for pair in pairs:
        tasks = {run.task for run in groups[pair.name]}
        apart = {0.0, 1.0} & {pair.probability_success.value, pair.probability_area.value}
        if apart and len(tasks) == 1:
            sizes.add((len(groups[pair.than]), len(groups[pair.name])))
    chances = [(n, m, 100 * min(1.0, 2 / math.comb(n + m, n))) for n, m in sorted(sizes)]
    return [
        f"all runs of one group above all of the other: between equals, {n} and {m} runs are so in "
        f"{chance:{'.0f' if chance >= 1 else '.1g'}} % of cases"
        for n, m, chance in chances
    ]
