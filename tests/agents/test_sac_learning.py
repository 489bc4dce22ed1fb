"""The SAC agent learns on toys whose good latents are known."""

from __future__ import annotations

import pytest
import torch
from tiny_agents import (
    BEST_LATENT,
    REGULARIZERS,
    TOY,
    layout,
    sac,
    seeded,
    toy_base,
    toy_reward,
    toy_states,
)

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.contracts import Encoding, MacroTransitions


def train_on_toy(agent: DSRLSACAgent, iterations: int) -> None:
    base, generator = toy_base(), seeded(1)
    buffer = MacroReplayBuffer(5000, 1, TOY.dim, generator=seeded(2))
    for iteration in range(iterations):
        count = 256 if iteration == 0 else 16
        features = toy_states(count, generator)
        noise = torch.randn((count, 2, 2), generator=generator)
        latent = TOY.prior(noise) if iteration == 0 else agent.act(features, noise)
        reward = toy_reward(features, base.decode(Encoding(features), TOY.expand(latent, noise)))
        ended = torch.ones(count, dtype=torch.bool)
        buffer.add(
            MacroTransitions(
                obs_features=features,
                latent=latent,
                reward=reward,
                next_obs_features=features,
                terminated=ended,
                truncated=~ended,
                n_steps=torch.ones(count, dtype=torch.int64),
            ),
            gamma=0.9,
        )
        agent.update(buffer.sample(64))


def toy_learner(regularizer: str, **changes: object) -> DSRLSACAgent:
    settings = {
        "actor_hidden_dims": (32,), "critic_hidden_dims": (64, 64), "critic_layer_norm": True, "actor_lr": 3e-3,
        "critic_lr": 3e-3, "temp_lr": 2e-2, "learn_temperature": True, "target_kl": 2.0,
    }  # fmt: skip
    return sac(TOY, regularizer=regularizer, **(settings | changes))


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_sac_finds_the_good_latents(regularizer: str) -> None:
    agent = toy_learner(regularizer)
    features = torch.tensor([[1.0], [-1.0]]).repeat(500, 1)
    noise = torch.randn((1000, 2, 2), generator=seeded(3))
    prior = toy_reward(features, torch.tanh(TOY.expand(TOY.prior(noise), noise))).mean().item()
    train_on_toy(agent, 600)

    mean = agent.act(features[:2], noise[:2], deterministic=True)
    torch.testing.assert_close(mean, features[:2] * BEST_LATENT, rtol=0, atol=0.35)
    chosen = toy_reward(features, torch.tanh(TOY.expand(agent.act(features, noise), noise))).mean().item()
    assert prior < -1.5
    assert chosen > -0.4
    if regularizer == "kl":
        kl = agent.actor.kl_to_prior(agent.actor(features)).mean().item()
        assert kl == pytest.approx(2.0, abs=0.7)


def test_a_smaller_kl_target_keeps_the_policy_nearer_to_the_prior() -> None:
    features = torch.tensor([[1.0], [-1.0]])
    agent = toy_learner("kl", target_kl=0.3, init_temperature=1.0)
    train_on_toy(agent, 400)
    dist = agent.actor(features)
    assert agent.actor.kl_to_prior(dist).mean().item() == pytest.approx(0.3, abs=0.25)
    assert (dist.mean * features * BEST_LATENT > 0).all()  # and still leans the right way


def test_sac_carries_reward_back_over_macro_steps() -> None:
    """Two states in a row: w > 1 leads from the first to the second, and there w < -1 earns the reward."""
    agent = sac(
        layout(magnitude=3.0),
        regularizer="kl",
        actor_hidden_dims=(32,),
        critic_hidden_dims=(64,),
        critic_layer_norm=True,
        actor_lr=3e-3,
        critic_lr=3e-3,
        init_temperature=0.02,
        tau=0.05,
        backup_entropy=False,
    )
    generator = seeded(1)
    features = toy_states(2000, generator)
    latent = agent.layout.prior(torch.randn((2000, 1, 1), generator=generator))
    first = features[:, 0] < 0
    onward = first & (latent[:, 0] > 1)
    reward = (~first & (latent[:, 0] < -1)).float()
    buffer = MacroReplayBuffer(2000, 1, 1, generator=seeded(2))
    buffer.add(
        MacroTransitions(
            obs_features=features,
            latent=latent,
            reward=reward,
            next_obs_features=-features,
            terminated=~onward,
            truncated=torch.zeros(2000, dtype=torch.bool),
            n_steps=torch.full((2000,), 2),
        ),
        gamma=0.9,
    )
    for _ in range(400):
        agent.update(buffer.sample(128))
    means = agent.actor(torch.tensor([[-1.0], [1.0]])).mean[:, 0]
    assert means[0].item() > 0.8
    assert means[1].item() < -0.8
    # the value of the best first step is that of the second, twice discounted: about 0.81
    q = agent.critic.online(torch.tensor([[-1.0]]), torch.tensor([[1.6]])).mean().item()
    assert 0.5 < q < 0.9
