"""What noise does to actions, on policies whose answer is known by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy, Encoding, PolicyInfo
from dsrl_offpolicy.errors import InputError, NonFiniteError
from dsrl_offpolicy.evaluation.noise_effect import ObservationKeeper, measure_noise_effect


class Weighted(BasePolicy):
    """Four rows, of which rows 1 and 2 are executed; a row's action is a weighted sum of all rows of the noise.

    Args:
        weights: ``[4, 4]``, of the noise's rows in each row of actions.
        wobble: added times the number of decodings so far.
        batch: added times the size of the batch.
    """

    def __init__(self, weights: Any, wobble: float = 0.0, batch: float = 0.0) -> None:
        self.info = PolicyInfo(2, 1, 2, (4, 1), (4, 1), slice(1, 3))
        self.weights, self.wobble, self.batch = torch.tensor(weights, dtype=torch.float32), wobble, batch
        self.calls = 0

    def encode(self, obs: Any) -> Encoding:
        state = obs["state"] if isinstance(obs, dict) else obs
        return Encoding(state.flatten(1))

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        self.calls += 1
        return self.weights @ latent + self.wobble * self.calls + self.batch * len(latent)


OWN = np.eye(4) * 0.1
"""Each row of actions is a tenth of its own row of the noise."""


def measure(policy: BasePolicy, states: int = 40, noises: int = 50):
    observations = list(torch.zeros(states, 1, 2, 1))
    return measure_noise_effect(
        policy, observations, noises, torch.Generator().manual_seed(0), torch.device("cpu")
    )


def test_rows_that_do_not_matter():
    found = measure(Weighted(OWN))
    assert found.repeated == 0.0 and (found.states, found.noises) == (40, 50)
    # A tenth of a standard normal has the standard deviation .1, which is .05 of a range of 2.
    assert found.spread == pytest.approx(0.05, rel=0.05) and len(found.spread_by_dimension) == 1
    # The difference of two normals has sqrt(2) times the deviation: .0707; one of two executed rows moves: .05.
    assert found.all_rows == pytest.approx(0.0707, rel=0.15)
    assert found.by_row[0] == found.by_row[3] == 0.0
    assert found.by_row[1] == pytest.approx(0.05, rel=0.3) and found.by_row[2] == pytest.approx(0.05, rel=0.3)
    assert found.other_rows == 0.0


def test_rows_that_matter_although_they_are_not_executed():
    weights = OWN.copy()
    weights[2, 3] = 0.1  # the second executed row listens to the last row of the noise
    found = measure(Weighted(weights))
    assert found.by_row[3] == pytest.approx(0.05, rel=0.3) and found.by_row[0] == 0.0
    assert found.other_rows == pytest.approx(0.05, rel=0.15)


def test_noise_that_moves_only_rows_that_nobody_executes():
    weights = np.zeros((4, 4))
    weights[0, 0] = weights[3, 3] = 1
    found = measure(Weighted(weights))
    assert found.spread == found.all_rows == found.other_rows == 0.0 and set(found.by_row) == {0.0}


def test_a_policy_that_executes_all_rows_has_no_others():
    policy = Weighted(OWN)
    policy.info = PolicyInfo(2, 1, 2, (4, 1), (4, 1), slice(0, 4))
    assert measure(policy).other_rows is None


def test_actions_beyond_the_range_do_not_move():
    found = measure(Weighted(np.eye(4) * 1000), noises=2)
    assert found.by_row[1] <= 1.0 and found.all_rows <= 1.0  # from -1 to 1 at most


def test_a_policy_that_is_not_deterministic_is_refused():
    with pytest.raises(InputError, match=r"same noise decoded to actions 0\.01 apart on .* deterministic"):
        measure(Weighted(OWN, wobble=0.01))
    assert 0 < measure(Weighted(OWN, wobble=1e-6)).repeated <= 1e-5


def test_a_batch_is_held_against_one_by_one():
    # .01 per observation of the batch: 40 of them are .39 from one alone.
    assert measure(Weighted(OWN, batch=0.01)).batch_against_single == pytest.approx(0.39, abs=1e-5)
    assert measure(Weighted(OWN)).batch_against_single < 1e-6


def test_actions_that_are_not_finite_are_refused():
    with pytest.raises(NonFiniteError, match="expected finite actions"):
        measure(Weighted(OWN * np.nan))


def test_observations_are_kept_evenly_and_with_all_their_keys():
    keeper = ObservationKeeper(Weighted(OWN), 10, seed=0)
    for call in range(1000):
        state = torch.full((3, 2, 1), float(call))
        keeper.encode({"state": state, "instruction": ["go", "stay", "come"]})
    assert len(keeper.kept) == 10
    calls = sorted(float(obs["state"][0, 0, 0]) for obs in keeper.kept)
    # Of 0 to 999, evenly: their mean is 500 with a standard error of 289 / sqrt(10) = 91.
    assert 250 < np.mean(calls) < 750 and len(set(calls)) == 10
    assert all(obs["state"].shape == (1, 2, 1) and len(obs["instruction"]) == 1 for obs in keeper.kept)
    found = measure_noise_effect(
        keeper.base, keeper.kept, 3, torch.Generator().manual_seed(0), torch.device("cpu")
    )
    assert found.states == 10
    assert torch.equal(keeper.decode(Encoding(torch.zeros(1, 2)), torch.ones(1, 4, 1)), torch.full((1, 4, 1), 0.1))
