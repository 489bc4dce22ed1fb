"""Q^W: separate heads, targets that follow, and both against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from tiny_agents import seeded
from torch import nn

from dsrl_offpolicy.models.latent_q_network import LatentCritic, LatentQNetwork
from dsrl_offpolicy.models.layers import EnsembleLayerNorm, EnsembleLinear


@pytest.mark.parametrize("layer_norm", [False, True])
def test_each_critic_head_is_a_separate_plain_mlp(layer_norm: bool) -> None:
    torch.manual_seed(0)
    critic = LatentQNetwork(3, 2, (8, 5), 3, layer_norm=layer_norm)
    for layer in critic.net:
        if isinstance(layer, EnsembleLayerNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    features, latent = torch.randn((7, 3), generator=seeded()), torch.randn((7, 2), generator=seeded(1))
    q = critic(features, latent)
    assert q.shape == (3, 7)
    for head in range(3):
        h = torch.cat((features, latent), dim=-1)
        norms = 0
        for layer in critic.net:
            if isinstance(layer, EnsembleLinear):
                h = h @ layer.weight[head] + layer.bias[head]
            elif isinstance(layer, EnsembleLayerNorm):
                centred = h - h.mean(-1, keepdim=True)
                h = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
                h = h * layer.weight[head] + layer.bias[head]
                norms += 1
            else:
                h = h.clamp(min=0)
        assert norms == (2 if layer_norm else 0)
        torch.testing.assert_close(q[head], h.squeeze(-1))


def test_critic_heads_start_differently() -> None:
    torch.manual_seed(0)
    q = LatentQNetwork(3, 2, (8,), 2, layer_norm=True)(torch.ones(1, 3), torch.ones(1, 2))
    assert abs((q[0] - q[1]).item()) > 1e-4


def test_polyak_update_by_hand() -> None:
    critic = LatentCritic(1, 1, (), 1)
    with torch.no_grad():
        critic.online.net[0].weight.fill_(2.0)
        critic.target.net[0].weight.fill_(1.0)
        critic.online.net[0].bias.fill_(-1.0)
        critic.target.net[0].bias.fill_(3.0)
    critic.polyak_update(0.25)
    # weight: .75 * 1 + .25 * 2 = 1.25; bias: .75 * 3 + .25 * -1 = 2
    assert critic.target.net[0].weight.flatten().tolist() == [1.25, 1.25]
    assert critic.target.net[0].bias.flatten().tolist() == [2.0]
    assert critic.online.net[0].weight.flatten().tolist() == [2.0, 2.0]
    critic.polyak_update(0.25)
    assert critic.target.net[0].weight.flatten().tolist() == [1.4375, 1.4375]  # .75 * 1.25 + .25 * 2


def test_targets_start_equal_to_the_online_critics_and_take_no_gradient() -> None:
    critic = LatentCritic(3, 2, (8,), 2)
    features, latent = torch.randn((4, 3), generator=seeded()), torch.randn((4, 2), generator=seeded(1))
    assert torch.equal(critic.online(features, latent), critic.target(features, latent))
    assert not any(p.requires_grad for p in critic.target.parameters())
    assert all(p.requires_grad for p in critic.online.parameters())
    shared = {p.data_ptr() for p in critic.online.parameters()} & {
        p.data_ptr() for p in critic.target.parameters()
    }
    assert not shared


def test_synchronising_copies_the_online_critics_into_the_targets() -> None:
    critic = LatentCritic(3, 2, (8,), 2)
    with torch.no_grad():
        for parameter in critic.online.parameters():
            parameter.add_(1.0)
    features, latent = torch.randn((4, 3), generator=seeded()), torch.randn((4, 2), generator=seeded(1))
    assert not torch.equal(critic.online(features, latent), critic.target(features, latent))
    critic.synchronise_target()
    assert torch.equal(critic.online(features, latent), critic.target(features, latent))
    assert not any(p.requires_grad for p in critic.target.parameters())
