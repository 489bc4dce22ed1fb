"""The SAC agent: losses against numbers worked out by hand, temperature, repeatability and metrics."""

from __future__ import annotations

import io
import math

import pytest
import torch
from tiny_agents import (
    REGULARIZERS,
    layout,
    parameters_of,
    random_batch,
    sac,
    same,
    seeded,
    set_linear_critic,
    set_linear_policy,
    steep_sac,
)
from torch import Tensor

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.contracts import MacroBatch
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_policy import Gaussian

# --- SAC: losses by hand -------------------------------------------------------------------------------------


def hand_worked_sac(monkeypatch: pytest.MonkeyPatch, regularizer: str, *, backup_entropy: bool) -> DSRLSACAgent:
    """One latent dimension, alpha = 0.2, and in every state u ~ N(1/2, 1).

    Whatever is sampled is w = 1/4 with log pi = -2. KL(N(1/2, 1) || N(0, 1)) = (1/2)^2 / 2 = 0.125.
    """
    agent = sac(layout(), regularizer=regularizer, backup_entropy=backup_entropy)
    set_linear_policy(agent.actor, [0.5], [0.0])

    def sample(dist: Gaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(noise, 0.25), torch.full((len(noise),), -2.0)

    monkeypatch.setattr(agent.actor, "sample", sample)
    set_linear_critic(agent.critic.target, [[1.0, 2.0], [0.0, 0.0]], [0.0, 5.0])  # s' + 2 w', 5
    set_linear_critic(agent.critic.online, [[1.0, 1.0], [0.0, 0.0]], [0.0, 0.5])  # s + w, 1/2
    return agent


def states_asked(agent: DSRLSACAgent) -> list[Tensor]:
    """Fills with the states that the actor is asked about."""
    states: list[Tensor] = []
    agent.actor.register_forward_hook(lambda module, inputs, output: states.append(inputs[0]))
    return states


@pytest.mark.parametrize(
    ("regularizer", "backup_entropy", "target"),
    [
        # Row 1: s' = 0.1, min(0.1 + 2/4, 5) = 0.6. Row 2: discount 0. Row 3: s' = 6, min(6.5, 5) = 5.
        # kl: alpha * cost = 0.2 * 0.125 = 0.025.
        #   0.3 + 0.9 (0.6 - 0.025) = 0.8175; 0.3; 1 + 0.5 (5 - 0.025) = 3.4875
        ("kl", True, [0.8175, 0.3, 3.4875]),
        # entropy: alpha * cost = 0.2 * -2 = -0.4.
        #   0.3 + 0.9 (0.6 + 0.4) = 1.2; 0.3; 1 + 0.5 (5 + 0.4) = 3.7
        ("entropy", True, [1.2, 0.3, 3.7]),
        # without the backup: 0.3 + 0.9 * 0.6 = 0.84; 0.3; 1 + 0.5 * 5 = 3.5
        ("kl", False, [0.84, 0.3, 3.5]),
        ("entropy", False, [0.84, 0.3, 3.5]),
    ],
)
def test_critic_loss_by_hand(
    monkeypatch: pytest.MonkeyPatch, regularizer: str, backup_entropy: bool, target: list[float]
) -> None:
    agent = hand_worked_sac(monkeypatch, regularizer, backup_entropy=backup_entropy)
    batch = MacroBatch(
        obs_features=torch.ones(3, 1),
        latent=torch.ones(3, 1),
        reward=torch.tensor([0.3, 0.3, 1.0]),
        discount=torch.tensor([0.9, 0.0, 0.5]),
        next_obs_features=torch.tensor([[0.1], [0.1], [6.0]]),
    )
    states = states_asked(agent)
    loss, metrics = agent.critic_loss(batch)
    assert [state.flatten().tolist() for state in states] == [batch.next_obs_features.flatten().tolist()]
    # online: s + w = 2 and 1/2 in each row; the loss sums over heads the mean over rows
    errors = [[q - y for y in target] for q in (2.0, 0.5)]
    assert loss.item() == pytest.approx(sum(sum(e * e for e in head) / 3 for head in errors), rel=1e-5)
    assert metrics["critic_loss"].item() == pytest.approx(loss.item())
    assert metrics["td_error"].item() == pytest.approx(sum(abs(e) for head in errors for e in head) / 6, rel=1e-5)
    assert metrics["q_mean"].item() == pytest.approx(1.25)


@pytest.mark.parametrize(
    # min_j Q: s = 1: min(1.25, 0.5) = 0.5; s = 0: min(0.25, 0.5) = 0.25; mean 0.375.
    # kl: 0.2 * 0.125 - 0.375 = -0.35; entropy: 0.2 * -2 - 0.375 = -0.775
    ("regularizer", "expected"),
    [("kl", -0.35), ("entropy", -0.775)],
)
def test_actor_loss_by_hand(monkeypatch: pytest.MonkeyPatch, regularizer: str, expected: float) -> None:
    agent = hand_worked_sac(monkeypatch, regularizer, backup_entropy=True)
    features = torch.tensor([[1.0], [0.0]])
    batch = MacroBatch(features, torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), features + 100)
    states = states_asked(agent)
    loss, metrics, cost = agent.actor_loss(batch)
    assert [state.flatten().tolist() for state in states] == [[1.0, 0.0]]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["actor_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert metrics["entropy"].item() == pytest.approx(2.0)
    assert metrics["kl"].item() == pytest.approx(0.125)
    assert metrics["alpha"].item() == pytest.approx(0.2)
    torch.testing.assert_close(cost, torch.full((2,), 0.125 if regularizer == "kl" else -2.0))


def test_temperature_loss_by_hand() -> None:
    # -log(0.2) * (mean cost - target) = 1.6094379 * (2 - 0.5) = 2.4141569 with a KL of 2 nats on average
    agent = sac(layout(), regularizer="kl", learn_temperature=True, target_kl=0.5)
    assert agent.temperature_loss(torch.tensor([1.0, 3.0])).item() == pytest.approx(2.4141569)
    # log pi = 2 nats where the target entropy is -3: 1.6094379 * (2 - 3) = -1.6094379
    agent = sac(layout(), regularizer="entropy", learn_temperature=True, target_entropy=-3.0)
    assert agent.temperature_loss(torch.tensor([1.0, 3.0])).item() == pytest.approx(-1.6094379)


@pytest.mark.parametrize(
    ("regularizer", "mean", "raw_log_sigma", "rises"),
    [
        ("kl", 3.0, 0.0, True),  # KL = 3^2 / 2 = 4.5 > 0.5
        ("kl", 0.1, 0.0, False),  # KL = 0.005 < 0.5
        ("entropy", 0.0, -5.0, True),  # sigma = exp(-3.8), entropy -2.4 < -0.5
        ("entropy", 0.0, 0.0, False),  # entropy of N(0, 1) = 1.42 > -0.5
    ],
)
def test_temperature_moves_towards_its_target(
    regularizer: str, mean: float, raw_log_sigma: float, rises: bool
) -> None:
    agent = sac(layout(), regularizer=regularizer, learn_temperature=True, actor_lr=0.0)
    set_linear_policy(agent.actor, [mean], [raw_log_sigma])
    for _ in range(3):
        agent.update(random_batch(64))
    # Adam moves log alpha by its learning rate, 0.01, in each of three steps
    expected = 0.2 * math.exp(0.03 if rises else -0.03)
    assert agent.alpha.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("mode", "dim"), [("full", 24), ("act_horizon", 12), ("repeat", 3)])
def test_automatic_target_entropy_is_minus_half_the_latent_dimension(mode: str, dim: int) -> None:
    agent = sac(layout(8, 3, mode, h=4), regularizer="entropy")
    assert agent.target_entropy == -0.5 * dim
    assert agent.cost_target == 0.5 * dim
    assert sac(layout(8, 3, mode, h=4), regularizer="entropy", target_entropy=-7.0).cost_target == 7.0
    assert sac(layout(8, 3, mode, h=4), regularizer="kl", target_kl=9.0).cost_target == 9.0


@pytest.mark.parametrize("mode", ["full", "act_horizon", "repeat"])
def test_actor_and_critics_follow_the_latent_dimension_of_the_layout(mode: str) -> None:
    steered = layout(8, 3, mode, h=4, magnitude=1.5)
    agent = sac(steered, feature_dim=2)
    noise = torch.randn((5, 8, 3), generator=seeded())
    assert agent.act(torch.ones(5, 2), noise).shape == (5, steered.dim)
    metrics = agent.update(random_batch(4, 2, steered.dim))
    assert all(torch.isfinite(value) for value in metrics.values())


# --- SAC: temperature 0, repeatability, metrics --------------------------------------------------------------


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_temperature_fixed_at_zero_switches_the_regulariser_off_without_nan(regularizer: str) -> None:
    agent = steep_sac(regularizer, init_temperature=0.0)
    batch = random_batch(16, 2, 2)
    assert agent.alpha.item() == 0.0
    backed_up = agent.critic_loss(batch)[0]
    agent.backup_entropy = False
    agent.generator.manual_seed(0)
    assert backed_up.item() == pytest.approx(agent.critic_loss(batch)[0].item())
    for _ in range(5):
        metrics = agent.update(batch)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert all(torch.isfinite(p).all() for p in (*agent.actor.parameters(), *agent.critic.parameters()))
    assert metrics["alpha"].item() == 0.0


def test_a_temperature_of_zero_cannot_be_learned_and_none_is_negative() -> None:
    with pytest.raises(InputError, match="init_temperature: expected > 0"):
        sac(layout(), init_temperature=0.0, learn_temperature=True)
    with pytest.raises(InputError, match="init_temperature: expected >= 0"):
        sac(layout(), init_temperature=-0.1)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_a_fixed_temperature_stays(regularizer: str) -> None:
    agent = steep_sac(regularizer, learn_temperature=False, init_temperature=0.3)
    for _ in range(5):
        metrics = agent.update(random_batch(16, 2, 2))
    assert metrics["alpha"].item() == agent.alpha.item() == pytest.approx(0.3)


def test_scaled_learning_rates_are_relative_to_the_first_ones_and_spare_the_temperature() -> None:
    agent = steep_sac("kl", learn_temperature=True, actor_lr=0.1, critic_lr=0.2, temp_lr=0.3)
    for scale in (0.5, 0.25):
        agent.scale_learning_rates(scale)
    actor_group, temperature_group = agent.actor_optimizer.param_groups
    rates = [group["lr"] for group in (actor_group, *agent.critic_optimizer.param_groups, temperature_group)]
    assert rates == pytest.approx([0.025, 0.05, 0.3])
    agent.scale_learning_rates(0.0)
    actor, critic = parameters_of(agent.actor), parameters_of(agent.critic.online)
    agent.update(random_batch(16, 2, 2))
    assert same(parameters_of(agent.actor), actor)
    assert same(parameters_of(agent.critic.online), critic)


def learner(seed: int, regularizer: str) -> DSRLSACAgent:
    return sac(
        layout(2, 2, "act_horizon", 1.5),
        3,
        seed,
        regularizer=regularizer,
        actor_hidden_dims=(16,),
        critic_hidden_dims=(16,),
        critic_layer_norm=True,
        learn_temperature=True,
    )


def run_updates(agent: DSRLSACAgent, first: int, last: int, global_seed: int) -> list[dict[str, float]]:
    torch.manual_seed(global_seed)  # must not matter
    batches = [random_batch(8, 3, 2, seed) for seed in range(first, last)]
    return [{name: value.item() for name, value in agent.update(batch).items()} for batch in batches]


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_same_seed_and_data_give_identical_parameters(regularizer: str) -> None:
    first, second, other = learner(0, regularizer), learner(0, regularizer), learner(1, regularizer)
    logs = [run_updates(agent, 0, 20, i) for i, agent in enumerate((first, second, other))]
    assert logs[0] == logs[1]
    assert same(parameters_of(first), parameters_of(second))
    assert not same(parameters_of(first), parameters_of(other))


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_resumed_training_continues_identically(regularizer: str) -> None:
    original, resumed = learner(0, regularizer), learner(7, regularizer)
    run_updates(original, 0, 10, 0)
    file = io.BytesIO()
    torch.save(original.training_state(), file)
    file.seek(0)
    resumed.load_training_state(torch.load(file, weights_only=True))
    assert run_updates(original, 10, 20, 1) == run_updates(resumed, 10, 20, 2)
    assert same(parameters_of(original), parameters_of(resumed))


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_metrics_have_the_required_names_and_are_detached_scalars(regularizer: str) -> None:
    metrics = learner(0, regularizer).update(random_batch(8, 3, 2))
    assert {"td_error", "q_mean", "alpha", "entropy", "actor_loss", "critic_loss"} <= set(metrics)
    for value in metrics.values():
        assert isinstance(value, Tensor)
        assert value.shape == ()
        assert not value.requires_grad


def test_metrics_keep_their_values_after_later_updates() -> None:
    agent = learner(0, "kl")
    metrics = agent.update(random_batch(8, 3, 2))
    before = {name: value.item() for name, value in metrics.items()}
    agent.update(random_batch(8, 3, 2, 1))
    assert {name: value.item() for name, value in metrics.items()} == before


@pytest.mark.usefixtures("no_host_sync")
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_sac_update_never_waits_for_the_device(regularizer: str) -> None:
    agent, batch = learner(0, regularizer), random_batch(8, 3, 2)
    for _ in range(2):
        agent.update(batch)
