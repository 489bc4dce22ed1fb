"""Best-of-N by Q^A: what is chosen, and that nothing but the noise decides it."""

from __future__ import annotations

import pytest
import torch
from tiny_agents import ToyBase, seeded
from torch import Tensor

from dsrl_offpolicy.models.latent_sources import best_of_source

STATES = torch.tensor([[-1.0], [0.0], [1.0]])
NOISE = torch.randn((3, 2, 1), generator=seeded(0))


def closest_to_the_state(features: Tensor, actions: Tensor) -> Tensor:
    """Two heads: the second alone tells chunks apart, and is the least."""
    error = (actions[:, 0] - torch.tanh(features)).square().sum(-1)
    return torch.stack([torch.full_like(error, 100.0), -error])


def base() -> ToyBase:
    return ToyBase(closest_to_the_state, (2, 1))  # decodes by tanh; Q^A sees the first row of two


def test_the_best_of_all_draws_is_taken() -> None:
    policy = base()
    chosen = best_of_source(policy, 64)(STATES, NOISE)
    (drawn,) = policy.decoded
    draws = drawn.view(3, 64, 2, 1)
    assert torch.equal(draws[:, 0], NOISE)  # the noise itself is one of them
    distance = (draws[:, :, 0, 0].tanh() - STATES.tanh()).abs()
    assert torch.equal(chosen, draws[torch.arange(3), distance.argmin(1)])
    # 64 draws of N(0, 1): none within .2 of a state in [-1, 1] has a chance of (1 - .2 * 2 * .24)^64 = .002.
    assert float((chosen[:, 0] - STATES).abs().max()) < 0.2
    assert draws[:, 1:].mean().abs() < 0.2 and abs(float(draws[:, 1:].std()) - 1) < 0.15


def test_one_draw_is_the_base_policy() -> None:
    assert torch.equal(best_of_source(base(), 1)(STATES, NOISE), NOISE)


@pytest.mark.parametrize("order", [[2, 0, 1], [1]])
def test_neither_slot_nor_company_nor_call_changes_a_choice(order: list[int]) -> None:
    source = best_of_source(base(), 8)
    whole = source(STATES, NOISE)
    assert torch.equal(source(STATES[order], NOISE[order]), whole[order])
    assert not torch.equal(source(STATES, NOISE + 1), whole)
