"""Intervals against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome, summarise
from dsrl_offpolicy.evaluation.intervals import (
    Interval,
    difference_interval,
    mean_interval,
    percent,
    wilson_interval,
)


def test_wilson_interval_of_half():
    # z = 1.959964, z^2 = 3.841459, n = 10, p = .5:
    # centre (p + z^2 / 2n) / (1 + z^2 / n) = (.5 + .192073) / 1.384146 = .5
    # half   z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)
    #        = 1.959964 sqrt(.025 + .009603647) / 1.384146 = 1.959964 * .186021 / 1.384146 = .263407
    interval = wilson_interval(5, 10)
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.5 - 0.263407, abs=1e-5)
    assert interval.high == pytest.approx(0.5 + 0.263407, abs=1e-5)


def test_wilson_interval_of_a_rate_of_one_does_not_collapse():
    # p = 1: low = n / (n + z^2) = 20 / 23.841459 = .838875, high = 1.
    interval = wilson_interval(20, 20)
    assert interval.low == pytest.approx(0.838875, abs=1e-5)
    assert interval.high == pytest.approx(1.0)
    mirrored = wilson_interval(0, 20)
    assert mirrored.low == pytest.approx(0.0, abs=1e-12)
    assert mirrored.high == pytest.approx(1 - 0.838875, abs=1e-5)


def test_mean_interval_is_students_t():
    # 1, 2, 3: mean 2, standard deviation 1 (n - 1), standard error 1 / sqrt 3 = .577350,
    # t quantile of .975 with 2 degrees of freedom 4.302653: half 2.484138.
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.value == 2.0
    assert interval.low == pytest.approx(2 - 2.484138, abs=1e-5)
    assert interval.high == pytest.approx(2 + 2.484138, abs=1e-5)


def test_intervals_are_those_of_scipy_to_the_bit():
    for trials, successes in ((1, 0), (1, 1), (3, 1), (20, 7), (50, 50), (333, 12)):
        expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson_interval(successes, trials) == Interval(successes / trials, expected.low, expected.high)
    values = np.array([0.1, 0.7, -3.0, 12.5])
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == Interval(float(np.mean(values)), low, high)


def test_mean_interval_without_spread_is_a_point():
    assert mean_interval(np.array([4.0])) == Interval(4.0, None, None)  # one value says nothing of its spread
    assert mean_interval(np.array([4.0, 4.0, 4.0])) == Interval(4.0, 4.0, 4.0)


def test_summary_counts_successes_and_averages_the_rest():
    outcomes = [
        EpisodeOutcome(0, True, False, -3.0, 3),
        EpisodeOutcome(1, True, True, -5.0, 5),
        EpisodeOutcome(2, False, False, -10.0, 10),
    ]
    summary = summarise(outcomes)
    assert summary.episodes == 3
    assert summary.success_once == wilson_interval(2, 3)
    assert summary.success_at_end == wilson_interval(1, 3)
    assert summary.episode_return == mean_interval(np.array([-3.0, -5.0, -10.0]))
    assert summary.length.value == 6.0


def test_difference_interval_is_newcombes():
    # Newcombe (1998), table II, method 10: 56/70 - 48/80 is .2 with [.0524, .3339]
    found = difference_interval(wilson_interval(56, 70), wilson_interval(48, 80))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval(Interval(0.5), wilson_interval(1, 2)) == Interval(0.0)


def test_percent_shows_an_interval_where_there_is_one():
    assert percent(Interval(0.39, 0.3, 0.488)) == "39.0 [30.0, 48.8]"
    assert percent(Interval(0.39, 0.3, 0.488), "+") == "+39.0 [+30.0, +48.8]"
    assert percent(Interval(1.0)) == "100.0"
