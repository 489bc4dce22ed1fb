"""Sparse rewards: failing early never pays, and an ending costs the same whenever it comes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsrl_offpolicy.rewards import NEVER, sparse_reward


def discounted(success_at: int | None, failure_at: int | None, gamma: float, scale: float = 1.0) -> float:
    """Return of an episode that ends at a step (from 0), or that runs for so long that the rest is nothing."""
    ends = [step for step in (success_at, failure_at) if step is not None]
    length = ends[0] + 1 if ends else 4000
    rewards = [sparse_reward(t == success_at, t == failure_at, gamma, scale) for t in range(length)]
    return float(sum(gamma**t * r for t, r in enumerate(rewards)))


def test_a_failure_costs_what_never_succeeding_costs_at_whatever_step_it_comes():
    never = discounted(None, None, 0.98)
    assert never == pytest.approx(-50)
    for step in (0, 4, 300):
        assert discounted(None, step, 0.98) == pytest.approx(never)
        assert discounted(None, step, 0.98, scale=0.5) == pytest.approx(never / 2)


def test_succeeding_late_pays_more_than_failing_early():
    assert discounted(200, None, 0.99) > discounted(None, 5, 0.99)


def test_without_discount_a_failure_costs_a_thousand_steps():
    assert NEVER == 1000
    assert sparse_reward(False, True, 1.0, 2.0) == -2000
    assert sparse_reward(False, True, 0.999, 2.0) == pytest.approx(-2000)


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_arrays_and_tensors_are_rewarded_as_single_steps_are(kind):
    success, terminated = kind([False, False, True, True]), kind([False, True, False, True])
    rewards = sparse_reward(success, terminated, 0.9, 0.5)
    assert rewards.tolist() == pytest.approx([-0.5, -5.0, 0.0, 0.0])
    assert not np.signbit(np.asarray(rewards[2:])).any()  # no "-0.0" in a table
