"""What each loss of the SAC agent moves, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from tiny_agents import (
    REGULARIZERS,
    layout,
    parameters_of,
    random_batch,
    sac,
    same,
    set_linear_critic,
    steep_sac,
)
from torch import Tensor

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.contracts import MacroBatch
from dsrl_offpolicy.models.latent_policy import Gaussian


def actor_gradient(agent: DSRLSACAgent, batch: MacroBatch) -> list[Tensor]:
    agent.generator.manual_seed(5)
    loss, _, _ = agent.actor_loss(batch)
    return list(torch.autograd.grad(loss, list(agent.actor.parameters())))


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_actor_gradient_is_that_of_the_loss_written_independently(
    monkeypatch: pytest.MonkeyPatch, regularizer: str
) -> None:
    agent = steep_sac(regularizer)
    batch = random_batch(16, 2, 2)
    drawn = []
    original = agent.actor.sample

    def sample(dist: Gaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(noise)
        return original(dist, noise)

    monkeypatch.setattr(agent.actor, "sample", sample)
    gradient = actor_gradient(agent, batch)

    mean, log_sigma = agent.actor(batch.obs_features)
    normal = torch.distributions.Normal(mean, log_sigma.exp())
    u = normal.mean + normal.stddev * drawn[0]
    w = 1.5 * torch.tanh(u / 1.5)
    layer = agent.critic.online.net[0]
    inputs = torch.cat((batch.obs_features, w), dim=-1)
    q = torch.minimum(*(inputs @ layer.weight[j, :, 0] + layer.bias[j, 0, 0] for j in range(2)))
    if regularizer == "kl":
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        cost = torch.distributions.kl_divergence(normal, prior).sum(-1)
    else:
        cost = (normal.log_prob(u) - (1 - torch.tanh(u / 1.5) ** 2).log()).sum(-1)
    loss = (0.2 * cost - q).mean()
    expected = torch.autograd.grad(loss, list(agent.actor.parameters()))
    for got, wanted in zip(gradient, expected, strict=True):
        assert got.abs().sum() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_actor_learns_from_the_online_critics_and_not_from_the_targets(regularizer: str) -> None:
    agent, batch = steep_sac(regularizer), random_batch(16, 2, 2)
    before = actor_gradient(agent, batch)
    with torch.no_grad():
        for parameter in agent.critic.target.parameters():
            parameter.mul_(-3).add_(1)
    assert same(actor_gradient(agent, batch), before)
    with torch.no_grad():
        agent.critic.online.net[0].weight.mul_(-3)
    after = actor_gradient(agent, batch)
    assert not any(torch.allclose(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_actor_climbs_its_critic(regularizer: str) -> None:
    # Q = w in both heads and no regulariser: the mean must move up, whatever the batch holds.
    agent = sac(layout(), regularizer=regularizer, init_temperature=0.0, critic_lr=0.0)
    set_linear_critic(agent.critic.online, [[0.0, 1.0], [0.0, 1.0]], [0.0, 0.0])
    for _ in range(50):
        agent.update(random_batch(16))
    assert agent.actor(torch.zeros(1, 1)).mean.item() == pytest.approx(0.5, abs=0.05)  # 50 steps of 0.01


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_actor_step_leaves_the_critics_alone(regularizer: str) -> None:
    agent, batch = steep_sac(regularizer), random_batch(16, 2, 2)
    before = parameters_of(agent.critic)
    loss, _, _ = agent.actor_loss(batch)
    agent.actor_optimizer.zero_grad()
    loss.backward()
    agent.actor_optimizer.step()
    assert all(p.grad is None for p in agent.critic.parameters())
    assert same(parameters_of(agent.critic), before)
    assert all(p.requires_grad for p in agent.critic.online.parameters())
    assert not any(p.requires_grad for p in agent.critic.target.parameters())


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_critic_loss_trains_the_online_critics_alone(regularizer: str) -> None:
    agent = steep_sac(regularizer, learn_temperature=True)
    agent.critic_loss(random_batch(16, 2, 2))[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in agent.critic.online.parameters())
    assert all(p.grad is None for p in (*agent.critic.target.parameters(), *agent.actor.parameters()))
    assert agent.log_alpha.grad is None


def test_targets_follow_by_polyak_after_the_critic_step() -> None:
    agent = steep_sac("kl", tau=0.25)
    targets = parameters_of(agent.critic.target)
    agent.update(random_batch(16, 2, 2), update_actor=False)
    online = parameters_of(agent.critic.online)
    for old, new, source in zip(targets, agent.critic.target.parameters(), online, strict=True):
        torch.testing.assert_close(new.detach(), 0.75 * old + 0.25 * source)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_update_without_the_actor_trains_the_critics_alone(regularizer: str) -> None:
    agent = steep_sac(regularizer, learn_temperature=True)
    actor, critic, alpha = parameters_of(agent.actor), parameters_of(agent.critic.online), agent.alpha.clone()
    metrics = agent.update(random_batch(16, 2, 2), update_actor=False)
    assert same(parameters_of(agent.actor), actor)
    assert torch.equal(agent.alpha, alpha)
    assert not same(parameters_of(agent.critic.online), critic)
    assert {"td_error", "q_mean", "critic_loss"} <= set(metrics)
    agent.update(random_batch(16, 2, 2))
    assert not same(parameters_of(agent.actor), actor)
    assert not torch.equal(agent.alpha, alpha)
