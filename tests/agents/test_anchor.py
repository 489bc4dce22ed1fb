"""What KL is measured to: the prior, or the policy of Stage 1 that a run starts from."""

from __future__ import annotations

import pytest
import torch
from tiny_agents import layout, random_batch, sac, seeded, set_linear_critic, set_linear_policy
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_policy import Gaussian, kl_divergence


def started(mean: float, kl_to_prior: float | None = None, **changes: object) -> DSRLSACAgent:
    """An agent that Stage 1 gave a Gaussian of its own, and what Stage 1 said of it."""
    agent = sac(layout(), **({"regularizer": "kl"} | changes))
    set_linear_policy(agent.actor, [mean], [0.0])
    agent.started(kl_to_prior)
    return agent


def test_kl_of_two_gaussians_agrees_with_torch_distributions_and_is_a_sum_over_dimensions() -> None:
    p, q = (
        Gaussian(torch.randn((5, 4), generator=seeded(i)), 0.5 * torch.randn((5, 4), generator=seeded(9 + i)))
        for i in range(2)
    )
    reference = torch_kl(Normal(p.mean, p.log_sigma.exp()), Normal(q.mean, q.log_sigma.exp())).sum(-1)
    torch.testing.assert_close(kl_divergence(p, q), reference)


@pytest.mark.parametrize(
    ("kl_to", "at_start", "after"),
    [
        # N(2, 1) is the start. KL(N(3, 1) || N(2, 1)) = 1 / 2, KL(N(m, 1) || N(0, 1)) = m^2 / 2.
        ("start", 0.0, 0.5),
        ("prior", 2.0, 4.5),
    ],
)
def test_the_actors_cost_by_hand(kl_to: str, at_start: float, after: float) -> None:
    agent, batch = started(2.0, kl_to=kl_to), random_batch(8)
    set_linear_critic(agent.critic.online, [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
    for mean, expected in ((2.0, at_start), (3.0, after)):
        set_linear_policy(agent.actor, [mean], [0.0])
        loss, metrics, cost = agent.actor_loss(batch)
        assert loss.item() == pytest.approx(0.2 * expected, abs=1e-6)  # alpha = 0.2, Q = 0
        assert metrics["kl"].item() == pytest.approx(expected, abs=1e-6)
        torch.testing.assert_close(cost, torch.full((8,), expected))


def test_the_target_counts_the_kl_to_the_start() -> None:
    agent, batch = started(2.0, backup_entropy=True), random_batch(8)
    set_linear_critic(agent.critic.target, [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
    set_linear_critic(agent.critic.online, [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
    set_linear_policy(agent.actor, [3.0], [0.0])
    loss, _ = agent.critic_loss(batch)
    target = batch.reward - batch.discount * 0.2 * 0.5  # alpha 0.2, KL 1/2
    assert loss.item() == pytest.approx(2 * target.square().mean().item(), rel=1e-5)


def test_an_actor_that_gains_nothing_stays_at_its_start_and_not_at_the_prior() -> None:
    means = {}
    for kl_to in ("start", "prior"):
        agent = started(2.0, kl_to=kl_to, actor_lr=0.05)
        set_linear_critic(agent.critic.online, [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
        for step in range(200):
            agent.actor_optimizer.zero_grad()
            agent.actor_loss(random_batch(8, seed=step))[0].backward()
            agent.actor_optimizer.step()
        means[kl_to] = agent.actor(torch.zeros(1, 1)).mean.item()
    assert means["start"] == pytest.approx(2.0, abs=1e-3)
    assert abs(means["prior"]) < 0.2


def test_without_stage_1_and_with_entropy_there_is_no_anchor() -> None:
    assert sac(layout(), regularizer="kl").anchor is None
    assert started(2.0, regularizer="entropy").anchor is None
    assert started(2.0, kl_to="prior").anchor is None


def test_a_start_near_the_prior_may_leave_it_and_a_far_one_is_kept() -> None:
    assert started(2.0, 2.0, target_kl=2.0).anchor is None
    assert started(2.0, 2.1, target_kl=2.0).anchor is not None
    assert started(2.0, None, target_kl=2.0).anchor is not None  # nobody measured it
    assert started(2.0, 2.0, target_kl=2.0, kl_to="start").anchor is not None
    assert started(2.0, 2.1, target_kl=2.0, kl_to="prior").anchor is None


def test_the_anchor_is_restored_with_the_state() -> None:
    agent, other = started(2.0), started(-1.0)
    agent.update(random_batch(8))
    other.load_training_state(agent.training_state())
    assert other.anchor is not None
    assert other.anchor(torch.zeros(1, 1)).mean.item() == 2.0
    assert other.update(random_batch(8))["kl"] == agent.update(random_batch(8))["kl"]


def test_a_run_saved_before_there_was_an_anchor_goes_on_measuring_to_the_prior() -> None:
    old, agent = started(2.0, kl_to="prior"), started(2.0)
    agent.load_training_state(old.training_state())
    assert agent.update(random_batch(8))["kl"].item() == pytest.approx(2.0)  # 2^2 / 2


def test_a_state_that_is_refused_leaves_the_anchor_as_it_was() -> None:
    old, agent = started(2.0, kl_to="prior"), started(2.0)
    state = old.training_state()
    del state["networks"]["log_alpha"]
    with pytest.raises(InputError, match="log_alpha"):
        agent.load_training_state(state)
    assert agent.anchor is not None
