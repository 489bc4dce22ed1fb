"""Statistics over runs against numbers worked out by hand, and intervals against a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dsrl_offpolicy.analysis.aggregate import (
    area_under_curve,
    difference_of_means,
    distinct_resamples,
    estimate,
    estimates,
    first_at_level,
    interquartile_mean,
    mean_of_runs,
    median_with_censoring,
    probability_of_improvement,
)
from dsrl_offpolicy.evaluation.intervals import Interval


def test_interquartile_mean_drops_a_quarter_at_each_end():
    # 8 runs: two dropped at each end, (.3 + .4 + .5 + .8) / 4 = .5. Two strata are pooled.
    scores = np.array([1.0, 0.0, 0.3, 0.4, 0.5, 0.8, 0.1, 0.9])
    assert interquartile_mean(scores) == pytest.approx(0.5)
    assert interquartile_mean(scores[:3], scores[3:]) == pytest.approx(0.5)
    # 5 runs: floor(5 / 4) = 1 at each end, (.2 + .3 + .7) / 3 = .4. 3 runs: none, the mean.
    assert interquartile_mean(np.array([0.3, 0.0, 0.7, 1.0, 0.2])) == pytest.approx(0.4)
    assert interquartile_mean(np.array([0.0, 0.2, 1.0])) == pytest.approx(0.4)


def test_area_under_a_curve_is_its_mean_height():
    steps, success = np.array([0.0, 100.0, 400.0]), np.array([0.0, 0.6, 0.8])
    # trapezoids 100 * .3 + 300 * .7 = 240 over 400
    assert area_under_curve(steps, success, 0.0, 400.0) == pytest.approx(0.6)
    # from 50 (.3) to 250 (.7): 50 * .45 + 150 * .65 = 120 over 200
    assert area_under_curve(steps, success, 50.0, 250.0) == pytest.approx(0.6)
    # within one segment, from 100 to 250: mean of .6 and .7
    assert area_under_curve(steps, success, 100.0, 250.0) == pytest.approx(0.65)
    assert area_under_curve(steps, np.ones(3), 3.0, 399.0) == pytest.approx(1.0)


def test_env_steps_to_a_level_are_those_of_the_first_evaluation_there():
    steps, success = np.array([10.0, 20.0, 30.0, 40.0]), np.array([0.2, 0.8, 0.5, 0.9])
    assert first_at_level(steps, success, 0.8) == 20
    assert first_at_level(steps, success, 0.81) == 40
    assert first_at_level(steps, success, 0.1) == 10
    assert first_at_level(steps, success, 0.95) == math.inf


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([30, 10, 20], 20),
        ([10, math.inf, 20], 20),
        ([10, math.inf, math.inf], math.inf),
        ([10, math.inf], 10),  # half of the runs have reached
        ([10, 20, 30, 40], 20),
        ([math.inf], math.inf),
    ],
)
def test_median_counts_runs_that_did_not_reach(values, median):
    assert median_with_censoring([float(v) for v in values]) == median


def test_median_with_censoring_is_kaplan_meiers():
    reached, end = [12.0, 18.0, 15.0], 30.0
    data = stats.CensoredData(uncensored=reached, right=[end, end])
    survival = stats.ecdf(data).sf
    crossed = survival.quantiles[survival.probabilities <= 0.5][0]
    assert median_with_censoring([*reached, math.inf, math.inf]) == crossed == 18


def test_probability_of_improvement_counts_pairs_and_ties_by_half():
    x, y = np.array([0.5, 0.9]), np.array([0.5, 0.6, 0.1])
    # .5 against .5 .6 .1: half, no, yes = 1.5; .9: three. 4.5 of 6 pairs.
    assert probability_of_improvement(x, y) == pytest.approx(0.75)
    u = stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement(x, y) == pytest.approx(u / (len(x) * len(y)))
    assert probability_of_improvement(y, x) == pytest.approx(0.25)
    # With a second task, of which every run is worse, the mean of .75 and 0: pairs count within a task.
    assert probability_of_improvement(x, np.array([1.0, 2.0]), y, np.array([5.0])) == pytest.approx(0.375)


@pytest.mark.parametrize("scores", [[0.1, 0.5, 0.5], [0.2], [0.0, 0.3, 0.7, 0.9, 0.9]])
def test_a_group_against_itself_improves_in_half_of_the_cases(scores):
    found = estimate([np.array(scores), np.array(scores)], probability_of_improvement)
    assert found.value == 0.5
    if len(scores) > 1:
        assert found.low <= 0.5 <= found.high


def test_statistics_take_runs_on_any_axis():
    x, y = np.array([[0.5, 0.9], [0.1, 0.2]]), np.array([[0.5, 0.6, 0.1], [0.3, 0.3, 0.0]])
    for statistic in (probability_of_improvement, difference_of_means):
        by_row = [statistic(a, b) for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(statistic(x, y), by_row)
        np.testing.assert_allclose(statistic(x.T, y.T, axis=0), by_row)
    np.testing.assert_allclose(mean_of_runs(x, y), [2.6 / 5, 0.9 / 5])


def test_difference_of_means_is_averaged_over_tasks():
    # task 1: .4 - .1, task 2: .2 - .7
    strata = [np.array([0.2, 0.6]), np.array([0.2]), np.array([0.1]), np.array([0.6, 0.8])]
    assert difference_of_means(*strata) == pytest.approx((0.3 - 0.5) / 2)


def test_bootstrap_of_three_runs_spans_lowest_to_highest():
    # A resample is the lowest run three times with probability 1 / 27 = 3.7 % > 2.5 %: the bound is that run.
    found = estimate([np.array([0.2, 0.9, 0.4])], mean_of_runs)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.2, 0.9))


def test_bootstrap_interval_of_a_mean_is_the_normal_one_where_runs_are_many():
    # Standard error of the mean by the bootstrap: std(0..99) / sqrt(100) = 2.8866. Its 2.5 % quantiles lie 1.96
    # errors away. 10,000 resamples place a quantile within about sqrt(p (1 - p) / R) / density = .0016 / .058
    # = .027 errors; four of those are .31. The skewness of 0..99 is 0.
    found = estimate([np.arange(100.0)], mean_of_runs)
    assert found.value == 49.5
    assert found.low == pytest.approx(49.5 - 1.96 * 2.8866, abs=0.31)
    assert found.high == pytest.approx(49.5 + 1.96 * 2.8866, abs=0.31)


def test_the_same_runs_have_the_same_interval_every_time():
    scores = np.random.default_rng(3).uniform(size=50)
    assert estimate([scores], interquartile_mean) == estimate([scores], interquartile_mean)


def test_resampling_keeps_to_tasks():
    # Between tasks scores differ by 1, within them not at all: a stratified resample always has mean .5.
    strata = [np.zeros(4), np.ones(4)]
    assert estimate(strata, mean_of_runs) == Interval(0.5, 0.5, 0.5)
    pooled = estimate([np.concatenate(strata)], mean_of_runs)
    assert pooled.low < 0.3 and pooled.high > 0.7


def test_a_run_is_drawn_with_its_whole_curve():
    # Two runs whose curves sum to 1 at the second point; bounds at every point are those of whole runs.
    found = estimates([np.array([[0.1, 0.9, 0.5], [0.3, 0.7, 0.5]])], mean_of_runs)
    assert [point.value for point in found] == pytest.approx([0.2, 0.8, 0.5])
    assert [point.low for point in found] == pytest.approx([0.1, 0.7, 0.5])
    assert [point.high for point in found] == pytest.approx([0.3, 0.9, 0.5])


def test_one_run_of_a_task_has_no_interval():
    assert estimate([np.array([0.4])], interquartile_mean) == Interval(0.4)
    assert estimate([np.array([0.4, 0.6]), np.array([0.5])], mean_of_runs) == Interval(0.5)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # 400 groups of 20 runs, scores uniform in [0, 1], whose mean is .5. The percentile bootstrap is too narrow by
    # sqrt((n - 1) / n) and by normal in place of t quantiles: P(|t_19| < 1.96 sqrt(19 / 20)) = .929. The share of
    # 400 has a standard deviation of sqrt(.929 * .071 / 400) = .0128; four of them are .051.
    groups = np.random.default_rng(5).uniform(size=(20, 400))
    found = estimates([groups], mean_of_runs)
    covered = np.mean([point.low <= 0.5 <= point.high for point in found])
    expected = 2 * stats.t.cdf(1.96 * math.sqrt(19 / 20), 19) - 1
    assert covered == pytest.approx(expected, abs=0.051)


def test_distinct_resamples():
    # of two runs: aa, ab, bb; of three: aaa, bbb, ccc, six with two alike, abc
    assert [distinct_resamples(n) for n in (1, 2, 3)] == [1, 3, 10]
