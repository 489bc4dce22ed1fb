"""The advantage weights of Stage 0 stay finite whatever the advantages, and are what they were where they were."""

from __future__ import annotations

import pytest
import torch

from dsrl_offpolicy.agents.awsc import AWSCAgent


def _weights(advantage: torch.Tensor, beta: float = 10.0, most: float = 20.0) -> torch.Tensor:
    agent = AWSCAgent.__new__(AWSCAgent)
    torch.nn.Module.__init__(agent)
    agent.advantage_temperature, agent.max_weight = beta, most
    return agent.weights(advantage)


@pytest.mark.parametrize("beta", [10.0, 1e-3, 1e-30])
def test_a_batch_far_below_the_value_has_weights(beta):
    weights = _weights(torch.tensor([-2000.0, -2010.0, -1e30]), beta)
    assert weights.isfinite().all() and weights.mean() == pytest.approx(1)
    if beta == 10.0:  # exp(-200), exp(-201) and 0, of mean 1
        assert weights.tolist() == pytest.approx([3 / (1 + 0.36788), 3 * 0.36788 / (1 + 0.36788), 0], rel=1e-4)


def test_where_nothing_underflows_no_bit_differs():
    advantage = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 100
    for beta in (0.5, 10.0, 1e6):
        plain = torch.exp(advantage / beta).clamp(max=20.0)
        assert torch.equal(_weights(advantage, beta), plain / plain.mean())
