"""Noise cloning: maximum likelihood of the latents behind demonstrations."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_offpolicy.agents.noise_cloning import NoiseCloning, Noises
from dsrl_offpolicy.models.latent_layout import LatentLayout


def learner(magnitude: float = 2.0) -> NoiseCloning:
    torch.manual_seed(0)
    layout = LatentLayout("full", 1, 2, slice(0, 1), magnitude)
    generator = torch.Generator().manual_seed(0)
    return NoiseCloning(1, layout, hidden_dims=(32,), lr=1e-2, batch_size=32, generator=generator)


def test_the_loss_of_a_fresh_policy_by_hand() -> None:
    # w = 0 and w = 1 with b = 2: u = 0 and 2 atanh(1/2) = ln 3. -log N(u; 0, 1) = u^2/2 + ln(2 pi)/2, and the
    # squash adds ln(1 - tanh^2(u/2)) = ln(1 - 1/4) for w = 1, nothing for w = 0.
    noises = Noises(torch.zeros(1, 1), torch.tensor([[0.0, 1.0]]))
    expected = math.log(3) ** 2 / 2 + math.log(2 * math.pi) + math.log(0.75)
    assert float(learner().nll(noises)) == pytest.approx(expected, abs=1e-5)


def test_a_latent_that_no_policy_reaches_counts_as_nine_tenths_of_the_magnitude() -> None:
    cloning = learner()
    at = Noises(torch.zeros(1, 1), torch.tensor([[1.8, -1.8]]))
    beyond = Noises(torch.zeros(1, 1), torch.tensor([[5.0, -2.0]]))
    assert float(cloning.nll(beyond)) == float(cloning.nll(at))
    unbounded = Noises(torch.zeros(1, 1), torch.tensor([[5.0, 0.0]]))
    assert float(learner(math.inf).nll(unbounded)) == pytest.approx(12.5 + math.log(2 * math.pi), abs=1e-4)


def test_it_learns_another_noise_in_each_state_and_keeps_what_it_was_on_the_way() -> None:
    features = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
    latent = torch.cat((features, -features), 1) + 0.1 * torch.randn(100, 2)
    noises = Noises(features, latent)
    held_out = noises.select(torch.arange(100) >= 80)
    snapshots = list(learner().snapshots(noises.select(torch.arange(100) < 80), held_out, [1, 200]))
    assert [s.steps for s in snapshots] == [1, 200]
    assert snapshots[1].held_out_nll < snapshots[0].held_out_nll - 1
    chosen = snapshots[1].policy.act(torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1, 2), deterministic=True)
    assert torch.allclose(chosen, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), atol=0.15)
    early = snapshots[0].policy.act(torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1, 2), deterministic=True)
    assert early.abs().max() < 0.5


def test_without_anything_held_out_there_is_no_likelihood_of_it() -> None:
    noises = Noises(torch.zeros(3, 1), torch.zeros(3, 2))
    (snapshot,) = learner().snapshots(noises, noises.select(torch.zeros(3, dtype=torch.bool)), [1])
    assert math.isnan(snapshot.held_out_nll)
