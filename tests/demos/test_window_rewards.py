"""Sparse rewards of demonstrations that fail early, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.demos.windows import Windows, WindowSpec, cut_windows


def _windows(
    n: int, *, success: bool, terminated: bool, end_on_success: bool = True, scale: float = 1.0
) -> Windows:
    """Windows of 2 steps over a demonstration whose last step succeeds or terminates, or neither."""
    last = np.arange(n) == n - 1
    trajectory = Trajectory(
        obs=np.zeros((n + 1, 1), np.float32),
        actions=np.zeros((n, 2), np.float32),
        success=last & success,
        terminated=last & terminated,
        truncated=last & (not terminated),
        rewards=None,
    )
    spec = WindowSpec(1, 2, 2, 0.9, "sparse", scale, end_on_success)
    return cut_windows([trajectory], "pd_ee_delta_pos", spec)


@pytest.mark.parametrize("end_on_success", [True, False])
def test_a_termination_without_success_costs_what_never_succeeding_costs(end_on_success):
    windows = _windows(3, success=False, terminated=True, end_on_success=end_on_success)
    # -1 / (1 - .9) = -10 from the last step on: two windows of -1 and then a step, the last of the end alone.
    assert windows.reward == pytest.approx([-1 - 0.9, -1 - 0.9 * 10, -10])
    assert windows.discount == pytest.approx([0.81, 0, 0])
    assert _windows(3, success=False, terminated=True, scale=0.1).reward[-1] == pytest.approx(-1)


def test_failing_early_is_worth_what_failing_late_is():
    def worth(n: int) -> float:
        windows = _windows(n, success=False, terminated=True)
        return float(sum(0.9**t * windows.reward[t] for t in range(0, n, 2)))

    assert worth(3) == pytest.approx(-10) and worth(31) == pytest.approx(-10)


def test_success_and_time_limits_pay_as_they_did():
    assert _windows(3, success=True, terminated=True).reward == pytest.approx([-1.9, -1, 0])
    limited = _windows(3, success=False, terminated=False)
    assert limited.reward == pytest.approx([-1.9, -1.9, -1]) and limited.discount == pytest.approx(
        [0.81, 0.81, 0.9]
    )
