"""The three agents: losses against numbers worked out by hand, gradients, repeatability, and learning on toys."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsrl_offpolicy.agents.aw_mle import AWMLEAgent, CandidatePool
from dsrl_offpolicy.agents.awsc import AWSCAgent, DemoBatch
from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy, ShortcutFlowSpec
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.contracts import BasePolicy, MacroBatch
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import Gaussian, LatentPolicy
from dsrl_offpolicy.models.latent_q_network import LatentCritic, LatentQNetwork

REGULARIZERS = ("entropy", "kl")
HALF_LOG_2PI = 0.9189385


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layout(t: int = 1, a: int = 1, mode: str = "full", magnitude: float = math.inf, h: int = 1) -> LatentLayout:
    return LatentLayout(mode, t, a, slice(0, h), magnitude)  # type: ignore[arg-type]


def sac(steered: LatentLayout, feature_dim: int = 1, seed: int = 0, **changes: object) -> DSRLSACAgent:
    """An agent of linear networks and a fixed temperature of 0.2, unless told otherwise."""
    torch.manual_seed(seed)
    settings = {
        "actor_hidden_dims": (), "critic_hidden_dims": (), "num_critics": 2, "critic_layer_norm": False,
        "actor_lr": 1e-2, "critic_lr": 1e-2, "temp_lr": 1e-2, "polyak_tau": 0.005, "regularizer": "entropy",
        "init_temperature": 0.2, "learn_temperature": False, "target_entropy": None, "target_kl": 0.5,
        "backup_entropy": True, "generator": seeded(seed),
    }  # fmt: skip
    return DSRLSACAgent(feature_dim, steered, **(settings | changes))  # type: ignore[arg-type]


def set_linear_policy(policy: LatentPolicy, mean: list[float], raw_log_sigma: list[float]) -> None:
    """The same Gaussian in every state."""
    with torch.no_grad():
        policy.net[-1].weight.zero_()
        policy.net[-1].bias.copy_(torch.tensor([*mean, *raw_log_sigma]))


def set_linear_critic(critic: LatentQNetwork, weights: list[list[float]], biases: list[float]) -> None:
    """Head j is ``weights[j] . [features, latent] + biases[j]``."""
    with torch.no_grad():
        critic.net[0].weight.copy_(torch.tensor(weights)[..., None])
        critic.net[0].bias.copy_(torch.tensor(biases).view(-1, 1, 1))


def random_batch(size: int = 16, feature_dim: int = 1, latent_dim: int = 1, seed: int = 0) -> MacroBatch:
    generator = seeded(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return MacroBatch(
        normal(size, feature_dim),
        normal(size, latent_dim),
        normal(size),
        torch.rand(size, generator=generator),
        normal(size, feature_dim),
    )


def parameters_of(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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
    agent = sac(layout(8, 3, mode, h=4))
    assert agent.target_entropy == -0.5 * dim
    assert agent.cost_target == 0.5 * dim
    assert sac(layout(8, 3, mode, h=4), target_entropy=-7.0).cost_target == 7.0
    assert sac(layout(8, 3, mode, h=4), regularizer="kl", target_kl=9.0).cost_target == 9.0


@pytest.mark.parametrize("mode", ["full", "act_horizon", "repeat"])
def test_actor_and_critics_follow_the_latent_dimension_of_the_layout(mode: str) -> None:
    steered = layout(8, 3, mode, h=4, magnitude=1.5)
    agent = sac(steered, feature_dim=2)
    noise = torch.randn((5, 8, 3), generator=seeded())
    assert agent.act(torch.ones(5, 2), noise).shape == (5, steered.dim)
    metrics = agent.update(random_batch(4, 2, steered.dim))
    assert all(torch.isfinite(value) for value in metrics.values())


# --- SAC: gradients ------------------------------------------------------------------------------------------


def steep_sac(regularizer: str, seed: int = 0, **changes: object) -> DSRLSACAgent:
    """Two latent dimensions, bounded by 1.5; every network depends on everything."""
    agent = sac(layout(1, 2, magnitude=1.5), 2, seed, regularizer=regularizer, **changes)
    with torch.no_grad():
        for module in (agent.actor, agent.critic):
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(parameter.numel())) * 0.7)
    return agent


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
    agent = steep_sac("kl", polyak_tau=0.25)
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


@pytest.fixture
def no_host_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes whatever outside of torch reads a tensor's value on the host fail (torch keeps Adam's step there)."""
    torch_folder = str(Path(torch.__file__).parent)

    def guarded(name: str) -> Callable:
        original = getattr(torch.Tensor, name)

        def read(self: Tensor, *args: object, **kwargs: object) -> object:
            if not sys._getframe(1).f_code.co_filename.startswith(torch_folder):
                raise AssertionError(f"Tensor.{name} waits for the device")
            return original(self, *args, **kwargs)

        return read

    names = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__format__", "__repr__")
    for name in names:
        monkeypatch.setattr(torch.Tensor, name, guarded(name))
    with pytest.raises(AssertionError, match="waits for the device"):
        float(torch.ones(()))


@pytest.mark.usefixtures("no_host_sync")
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_sac_update_never_waits_for_the_device(regularizer: str) -> None:
    agent, batch = learner(0, regularizer), random_batch(8, 3, 2)
    for _ in range(2):
        agent.update(batch)


# --- learning on a toy whose good latents are known ----------------------------------------------------------


class ToyBase(BasePolicy):
    """Decodes by ``tanh`` and remembers what it was asked to decode; Q^A as given."""

    def __init__(
        self, q: Callable[[Tensor, Tensor], Tensor], latent_shape: tuple[int, int] = (1, 1), horizon: int = 1
    ) -> None:
        self.feature_dim = self.state_dim = self.obs_horizon = 1
        self.latent_shape = latent_shape
        self.executed_rows = self.critic_rows = slice(0, horizon)
        self.q = q
        self.decoded: list[Tensor] = []

    def encode(self, obs: Tensor) -> Tensor:  # type: ignore[override]
        return obs.flatten(1)

    def decode(self, features: Tensor, latent: Tensor) -> Tensor:
        self.decoded.append(latent.clone())
        return torch.tanh(latent)

    def q_values(self, features: Tensor, actions: Tensor) -> Tensor:
        return self.q(features, actions)


BEST_LATENT = torch.tensor([1.0, -1.0])  # times the state, which is -1 or 1
TOY = layout(2, 2, "act_horizon", 3.0)  # two rows, the first is executed: L = 2


def toy_reward(features: Tensor, actions: Tensor) -> Tensor:
    """Highest, 0, where the executed row is the decoded best latent of the state."""
    return -(actions[:, 0] - torch.tanh(features * BEST_LATENT)).square().sum(-1)


def toy_base() -> ToyBase:
    return ToyBase(lambda features, actions: toy_reward(features, actions).expand(2, -1), (2, 2))


def toy_states(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count, 1), generator=generator).float() * 2 - 1


def train_on_toy(agent: DSRLSACAgent, iterations: int) -> None:
    base, generator = toy_base(), seeded(1)
    buffer = MacroReplayBuffer(5000, 1, TOY.dim, generator=seeded(2))
    for iteration in range(iterations):
        count = 256 if iteration == 0 else 16
        features = toy_states(count, generator)
        noise = torch.randn((count, 2, 2), generator=generator)
        latent = TOY.prior(noise) if iteration == 0 else agent.act(features, noise)
        reward = toy_reward(features, base.decode(features, TOY.expand(latent, noise)))
        ended = torch.ones(count, dtype=torch.bool)
        buffer.add(
            obs_features=features,
            latent=latent,
            reward=reward,
            next_obs_features=features,
            terminated=ended,
            truncated=~ended,
            n_steps=torch.ones(count, dtype=torch.int64),
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
        polyak_tau=0.05,
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
        obs_features=features,
        latent=latent,
        reward=reward,
        next_obs_features=-features,
        terminated=~onward,
        truncated=torch.zeros(2000, dtype=torch.bool),
        n_steps=torch.full((2000,), 2),
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


# --- AW-MLE --------------------------------------------------------------------------------------------------


def aw_mle(base: BasePolicy, steered: LatentLayout, **changes: object) -> AWMLEAgent:
    torch.manual_seed(0)
    settings = {
        "hidden_dims": (), "lr": 1e-2, "num_candidates": 4, "kappa": 0.0, "baseline_temperature": 1.0,
        "beta_latent": 1.0, "advantage_clip": 100.0, "kl_coef": 0.0, "max_decode": 10_000,
        "generator": seeded(0),
    }  # fmt: skip
    return AWMLEAgent(base, steered, **(settings | changes))  # type: ignore[arg-type]


def hand_worked_aw_mle(**changes: object) -> AWMLEAgent:
    return aw_mle(toy_base(), layout(), **changes)


def test_pessimistic_score_is_mean_less_kappa_population_deviations() -> None:
    q_heads = torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]], [[5.0, 2.0]]])
    # means 3 and 2; population variance of (1, 3, 5) is (4 + 0 + 4) / 3 = 8/3: 3 - 0.5 * 1.6329932 = 2.1835034
    score = hand_worked_aw_mle(kappa=0.5).pessimistic(q_heads)
    torch.testing.assert_close(score, torch.tensor([[2.1835034, 2.0]]))


def test_soft_baseline_by_hand() -> None:
    q = torch.tensor([[0.0, 1.0], [math.log(3), 1.0]])
    # tau = 1: v = log((1 + 3) / 2) = log 2, A = (-log 2, log 1.5); equal scores have no advantage
    advantage = hand_worked_aw_mle().advantages(q)
    torch.testing.assert_close(advantage, torch.tensor([[-0.6931472, 0.0], [0.4054651, 0.0]]))
    # tau = 1/2: v = log((1 + 9) / 2) / 2 = 0.8047190
    advantage = hand_worked_aw_mle(baseline_temperature=0.5).advantages(q)
    torch.testing.assert_close(advantage, torch.tensor([[-0.8047190, 0.0], [0.2938933, 0.0]]))


def test_advantages_are_clipped_on_both_sides() -> None:
    q = torch.tensor([[0.0], [math.log(3)]])
    advantage = hand_worked_aw_mle(advantage_clip=0.5).advantages(q)
    torch.testing.assert_close(advantage, torch.tensor([[-0.5], [0.4054651]]))
    advantage = hand_worked_aw_mle(advantage_clip=0.25).advantages(q)
    torch.testing.assert_close(advantage, torch.tensor([[-0.25], [0.25]]))


def test_policy_loss_by_hand() -> None:
    # Two heads, two candidates u = 0 and u = 1, kappa = 1/2. Candidate 1: heads (1, 3), score 2 - 0.5 = 1.5.
    # Candidate 2: both heads 1.5 - log 3. So q_1 - q_2 = log 3 and at beta = 1 the weights are 3/4 and 1/4:
    # eff_num = 1 / (9/16 + 1/16) = 1.6.
    second = 1.5 - math.log(3)
    q_heads = torch.tensor([[[1.0], [second]], [[3.0], [second]]])
    u = torch.tensor([[[0.0]], [[1.0]]])
    agent = hand_worked_aw_mle(kappa=0.5, kl_coef=2.0)
    # Fresh: log pi = -log(2 pi)/2 - u^2 / 2, so nll = 0.9189385 + (1/4)(1/2) = 1.0439385, and KL = 0.
    loss, metrics = agent.policy_loss(torch.zeros(1, 1), u, q_heads)
    assert metrics["nll_loss"].item() == pytest.approx(HALF_LOG_2PI + 0.125, rel=1e-5)
    assert metrics["kl_loss"].item() == 0.0
    assert loss.item() == pytest.approx(HALF_LOG_2PI + 0.125, rel=1e-5)
    assert metrics["eff_num"].item() == pytest.approx(1.6, rel=1e-5)
    # Mean 1, sigma 1: nll = 0.9189385 + (3/4)(1/2) = 1.2939385, KL = 1/2, loss = nll + 2 * 1/2.
    set_linear_policy(agent.policy, [1.0], [0.0])
    loss, metrics = agent.policy_loss(torch.zeros(1, 1), u, q_heads)
    assert metrics["nll_loss"].item() == pytest.approx(HALF_LOG_2PI + 0.375, rel=1e-5)
    assert metrics["kl_loss"].item() == pytest.approx(0.5)
    assert loss.item() == pytest.approx(HALF_LOG_2PI + 1.375, rel=1e-5)


def test_beta_sharpens_the_weights() -> None:
    # A_1 - A_2 = log 3 and beta = 1/2: weights 9/10 and 1/10, eff_num = 1 / (0.81 + 0.01) = 1.2195122
    q_heads = torch.tensor([[[math.log(3)], [0.0]]])
    u = torch.tensor([[[0.0]], [[1.0]]])
    _, metrics = hand_worked_aw_mle(beta_latent=0.5).policy_loss(torch.zeros(1, 1), u, q_heads)
    assert metrics["eff_num"].item() == pytest.approx(1.2195122, rel=1e-5)
    assert metrics["nll_loss"].item() == pytest.approx(HALF_LOG_2PI + 0.05, rel=1e-5)


def test_correlation_of_advantage_and_log_probability_by_hand() -> None:
    # State 1: A ~ (0, 1, 2), log pi ~ (0, -1/2, -2). Centred: (-1, 0, 1) and (5/6, 2/6, -7/6).
    # r = (-5/6 - 7/6) / (sqrt 2 * sqrt((25 + 4 + 49) / 36)) = -2 / (1.4142136 * 1.4719601) = -0.9607689
    # State 2: A ~ (2, 1, 0) with the same log pi: r = +0.9607689. State 3 as state 2. Mean: 0.3202563
    q_heads = torch.tensor([[[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [2.0, 0.0, 0.0]]])
    u = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1).expand(3, 3, 1)
    _, metrics = hand_worked_aw_mle().policy_loss(torch.zeros(3, 1), u, q_heads)
    assert metrics["corr_A_logprob"].item() == pytest.approx(0.3202563, rel=1e-4)


def test_effective_number_lies_between_one_and_m() -> None:
    u = torch.randn((6, 5, 1), generator=seeded())
    features = torch.zeros(5, 1)
    agent = hand_worked_aw_mle()
    _, even = agent.policy_loss(features, u, torch.full((2, 6, 5), 3.0))
    assert even["eff_num"].item() == pytest.approx(6.0)
    _, single = agent.policy_loss(features, u, 1000 * torch.arange(6.0).view(1, 6, 1).expand(2, 6, 5))
    assert single["eff_num"].item() == pytest.approx(1.0)
    _, between = agent.policy_loss(features, u, torch.randn((2, 6, 5), generator=seeded(1)))
    assert 1.0 < between["eff_num"].item() < 6.0


def test_policy_gradient_follows_the_good_candidates() -> None:
    u = torch.tensor([[[-1.0]], [[1.0]]])
    agent = hand_worked_aw_mle()
    loss, _ = agent.policy_loss(torch.ones(1, 1), u, torch.tensor([[[0.0], [math.log(3)]]]))
    loss.backward()
    # d nll / d mean = -sum_m weight_m (u_m - mean) / sigma^2 = -(3/4 - 1/4) = -1/2
    assert agent.policy.net[-1].bias.grad[0].item() == pytest.approx(-0.5)


@pytest.mark.parametrize("mode", ["full", "act_horizon", "repeat"])
def test_candidates_come_from_the_prior_and_are_decoded_once(mode: str) -> None:
    steered = layout(3, 2, mode, 1.5, h=2)
    base = ToyBase(lambda features, actions: actions.sum((1, 2)).expand(2, -1), (3, 2), horizon=2)
    agent = aw_mle(base, steered, num_candidates=500)
    u, latent, q = agent.candidates(torch.zeros(3, 1))
    assert u.shape == latent.shape == (500, 3, steered.dim)
    torch.testing.assert_close(latent, 1.5 * torch.tanh(u / 1.5))
    assert abs(u.mean().item()) < 0.05
    assert abs(u.std().item() - 1) < 0.05
    (decoded,) = base.decoded
    assert torch.equal(steered.select(decoded), latent.flatten(0, 1))
    unsteered = steered.expand(latent.flatten(0, 1), torch.zeros(1500, 3, 2)) == 0
    assert (decoded[unsteered] != 0).all()
    assert decoded.abs().max() < 1.5
    # the critic sees the executed rows of what was decoded
    torch.testing.assert_close(q[0].flatten(), torch.tanh(decoded[:, :2]).sum((1, 2)))


def test_candidates_are_scored_in_their_own_state() -> None:
    base = ToyBase(lambda features, actions: (100 * features[:, 0] + actions[:, 0, 0]).expand(1, -1))
    features = torch.tensor([[1.0], [2.0], [3.0]])
    _, latent, q = aw_mle(base, layout()).candidates(features)
    torch.testing.assert_close(q[0], 100 * features[:, 0].expand(4, 3) + torch.tanh(latent[..., 0]))


def test_decoding_in_parts_gives_the_same_scores() -> None:
    scores = []
    for max_decode in (10_000, 7, 1):
        base = toy_base()
        agent = aw_mle(base, TOY, max_decode=max_decode)
        scores.append(agent.candidates(torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0]])))
        assert max(len(part) for part in base.decoded) == min(max_decode, 20)
        assert sum(len(part) for part in base.decoded) == 20
    for other in scores[1:]:
        assert torch.equal(scores[0][1], other[1])
        torch.testing.assert_close(scores[0][2], other[2])


@pytest.mark.parametrize("max_decode", [10_000, 9])
def test_a_pool_holds_scored_candidates_of_every_state_and_decodes_none_again(max_decode: int) -> None:
    base = ToyBase(lambda features, actions: (100 * features[:, 0] + actions[:, 0, 0]).expand(2, -1))
    states = torch.arange(5.0)[:, None]
    agent = aw_mle(base, layout(magnitude=1.5), num_candidates=4, max_decode=max_decode)
    pool = CandidatePool(agent, states, size=10)  # not a multiple of M
    decoded = sum(len(part) for part in base.decoded)
    index = torch.tensor([3, 3, 0, 4])
    seen: dict[int, set[float]] = {}
    for _ in range(60):
        u, latent, q = pool.draw(index)
        assert u.shape == latent.shape == (4, 4, 1) and q.shape == (2, 4, 4)
        torch.testing.assert_close(latent, 1.5 * torch.tanh(u / 1.5))
        # each candidate carries its own state's score: the toy policy's action is tanh(w)
        expected = 100 * states[index, 0] + torch.tanh(latent[..., 0])
        torch.testing.assert_close(q, expected.expand(2, 4, 4))
        for column, state in enumerate(index.tolist()):
            drawn = set(u[:, column, 0].tolist())
            assert len(drawn) == 4  # all different
            seen.setdefault(state, set()).update(drawn)
    assert {state: len(drawn) for state, drawn in seen.items()} == {3: 10, 0: 10, 4: 10}
    assert not seen[3] & seen[0]
    assert sum(len(part) for part in base.decoded) == decoded


def test_an_update_takes_the_candidates_it_is_given() -> None:
    base, states = toy_base(), torch.tensor([[1.0], [-1.0]])
    agent = aw_mle(base, TOY)
    candidates = agent.candidates(states)
    expected, _ = agent.policy_loss(states, candidates.u, candidates.q_heads)
    decoded = len(base.decoded)
    assert agent.update(states, candidates)["loss"].item() == pytest.approx(expected.item())
    assert len(base.decoded) == decoded
    agent.update(states)
    assert len(base.decoded) > decoded


def linear_heads(features: Tensor, actions: Tensor) -> Tensor:
    w = torch.atanh(actions[:, 0, 0])
    return torch.stack((features[:, 0] + w, 2 * features[:, 0] - w + 1))


def test_distillation_loss_by_hand_and_head_by_head() -> None:
    agent = hand_worked_aw_mle(critic=LatentCritic(1, 1, (), 2, layer_norm=False))
    critic = agent.critic
    assert critic is not None
    set_linear_critic(critic.online, [[1.0, 1.0], [0.0, 0.0]], [0.0, 2.0])  # s + w, 2
    features = torch.tensor([[1.0], [2.0]])
    latent = torch.tensor([[[0.0], [1.0]]])  # one candidate in each of two states: Q = (1, 3) and (2, 2)
    # head 1: ((1 - 0)^2 + (3 - 1)^2) / 2 = 2.5; head 2: ((2 - 5)^2 + (2 - 4)^2) / 2 = 6.5; sum 9
    q_heads = torch.tensor([[[0.0, 1.0]], [[5.0, 4.0]]])
    loss = agent.distillation_loss(features, latent, q_heads)
    assert loss.item() == pytest.approx(9.0)
    (gradient,) = torch.autograd.grad(loss, critic.online.net[0].weight)
    q_heads[1] += 10
    (changed,) = torch.autograd.grad(
        agent.distillation_loss(features, latent, q_heads), critic.online.net[0].weight
    )
    assert torch.equal(gradient[0], changed[0])
    assert not torch.allclose(gradient[1], changed[1])


def test_distillation_regresses_each_head_on_its_own_action_critic() -> None:
    critic = LatentCritic(1, 1, (), 2, layer_norm=False)
    agent = aw_mle(ToyBase(linear_heads), layout(magnitude=2.0), critic=critic, critic_lr=5e-2)
    for i in range(300):
        metrics = agent.update(torch.randn((32, 1), generator=seeded(i)))
    assert metrics["distill_loss"].item() < 1e-3
    weights = critic.online.net[0].weight.detach()[..., 0]
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0], [2.0, -1.0]]), rtol=0, atol=0.02)
    biases = critic.online.net[0].bias.detach().flatten()
    torch.testing.assert_close(biases, torch.tensor([0.0, 1.0]), rtol=0, atol=0.02)


def test_aw_mle_concentrates_on_the_good_latents() -> None:
    agent = aw_mle(toy_base(), TOY, hidden_dims=(32,), num_candidates=64, beta_latent=0.2, kl_coef=0.01)
    features = torch.tensor([[1.0], [-1.0]])
    prior_q, policy_q = agent.paired_q(features, 200)
    assert torch.equal(prior_q, policy_q)  # fresh: the same noise gives the same latents
    first = None
    for i in range(300):
        metrics = agent.update(toy_states(32, seeded(i)))
        first = first or {name: value.item() for name, value in metrics.items()}
    dist = agent.policy(features)
    torch.testing.assert_close(dist.mean, features * BEST_LATENT, rtol=0, atol=0.25)
    assert (dist.log_sigma < math.log(0.7)).all()
    prior_q, policy_q = agent.paired_q(features, 200)
    assert (prior_q < -1.5).all()
    assert (policy_q > prior_q + 1).all()
    assert metrics["nll_loss"].item() < first["nll_loss"] - 0.5
    assert metrics["corr_A_logprob"].item() > 0.5
    assert 1 < metrics["eff_num"].item() < 64
    assert metrics["kl_loss"].item() > 0.5


def test_a_large_kl_coefficient_holds_aw_mle_at_the_prior() -> None:
    agent = aw_mle(toy_base(), TOY, hidden_dims=(32,), num_candidates=64, beta_latent=0.2, kl_coef=100.0)
    for i in range(100):
        metrics = agent.update(toy_states(32, seeded(i)))
    assert metrics["kl_loss"].item() < 0.02


def test_aw_mle_metrics_have_the_required_names_and_repeat_by_seed() -> None:
    runs = []
    for global_seed in (0, 1):
        torch.manual_seed(0)
        agent = aw_mle(toy_base(), TOY, critic=LatentCritic(1, TOY.dim, (), 2))
        torch.manual_seed(global_seed)  # must not matter
        for i in range(5):
            metrics = agent.update(toy_states(8, seeded(i)))
        assert {"nll_loss", "kl_loss", "eff_num", "corr_A_logprob"} <= set(metrics)
        assert not any(value.requires_grad for value in metrics.values())
        runs.append(parameters_of(agent))
    assert same(*runs)


@pytest.mark.usefixtures("no_host_sync")
def test_aw_mle_update_never_waits_for_the_device() -> None:
    agent = aw_mle(toy_base(), TOY, critic=LatentCritic(1, TOY.dim, (8,), 2))
    for i in range(2):
        agent.update(toy_states(8, seeded(i)))


def test_base_policy_is_no_part_of_what_aw_mle_saves() -> None:
    spec = flow_spec()
    base = ShortcutFlowPolicy(spec, unit_encoder(), spec.build_velocity(), spec.build_critic())
    agent = aw_mle(base, layout())
    assert set(agent.state_dict()) == {f"policy.{name}" for name in agent.policy.state_dict()}


# --- Stage 0: AWSC -------------------------------------------------------------------------------------------


def unit_encoder() -> ObservationEncoder:
    return ObservationEncoder(torch.zeros(1), torch.ones(1))


def flow_spec(**changes: object) -> ShortcutFlowSpec:
    values = {
        "env_id": "toy", "control_mode": "delta", "state_dim": 1, "action_dim": 1, "obs_horizon": 1,
        "pred_horizon": 1, "act_horizon": 1, "velocity_net": "mlp", "velocity_widths": (64, 64), "embed_dim": 16,
        "denoising_steps": 8, "critic_hidden_dims": (32,), "critic_heads": 2, "gamma": 0.9,
        "reward_mode": "sparse", "reward_scale": 1.0, "end_on_success": True,
    }  # fmt: skip
    return ShortcutFlowSpec(**(values | changes))  # type: ignore[arg-type]


def awsc(spec: ShortcutFlowSpec | None = None, **changes: object) -> AWSCAgent:
    torch.manual_seed(0)
    settings = {
        "lr": 1e-3, "total_iters": 1000, "ema_decay": 0.99, "consistency_fraction": 0.25,
        "advantage_temperature": math.inf, "max_weight": 10.0, "expectile": 0.7, "polyak_tau": 0.25,
        "generator": seeded(0),
    }  # fmt: skip
    return AWSCAgent(spec or flow_spec(), **(settings | changes))  # type: ignore[arg-type]


def demo_batch(size: int = 16, seed: int = 0, t: int = 1, a: int = 1) -> DemoBatch:
    generator = seeded(seed)
    return DemoBatch(
        torch.randn((size, 1), generator=generator),
        torch.rand((size, t, a), generator=generator) * 2 - 1,
        torch.rand(size, generator=generator),
        torch.full((size,), 0.9),
        torch.randn((size, 1), generator=generator),
    )


class Constant(nn.Module):
    """A network that answers with fixed numbers, whatever it is asked."""

    def __init__(self, *answer: float) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))
        self.asked: list[tuple[Tensor, ...]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.asked.append(tuple(x.clone() for x in inputs))
        return self.answer[:, None].expand(-1, len(inputs[0]))


class ConstantValue(Constant):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs).T


class ToyVelocity(nn.Module):
    """Velocity ``slope * x + offset``; remembers x, t and d of each call."""

    def __init__(self, slope: float, offset: float = 0.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.offset = nn.Parameter(torch.tensor(offset))
        self.asked: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, d: Tensor, features: Tensor) -> Tensor:
        self.asked.append((x.detach().clone(), t.clone(), d.clone(), features.clone()))
        return self.slope * x + self.offset


def test_awsc_update_trains_all_networks_and_averages_follow() -> None:
    agent = awsc()
    names = ("velocity_net", "critic", "value", "velocity_net_ema", "critic_target")
    before = {name: parameters_of(getattr(agent, name)) for name in names}
    agent.update(demo_batch())
    for name in names:
        changed = [
            not torch.equal(a, b) for a, b in zip(before[name], getattr(agent, name).parameters(), strict=True)
        ]
        assert all(changed), name
    for average, source, rate in (("velocity_net_ema", "velocity_net", 0.01), ("critic_target", "critic", 0.25)):
        current = parameters_of(getattr(agent, source))
        for old, new, trained in zip(before[average], getattr(agent, average).parameters(), current, strict=True):
            torch.testing.assert_close(new.detach(), (1 - rate) * old + rate * trained)
            assert not new.requires_grad


def test_awsc_critic_loss_by_hand() -> None:
    agent = awsc()
    agent.critic, agent.value = Constant(1.0, 2.0), ConstantValue(3.0)
    batch = DemoBatch(
        torch.zeros(2, 1),
        torch.zeros(2, 1, 1),
        torch.tensor([0.5, 1.0]),
        torch.tensor([0.9, 0.0]),
        torch.ones(2, 1),
    )
    # y = 0.5 + 0.9 * 3 = 3.2 and 1. Head 1: ((1 - 3.2)^2 + 0) / 2 = 2.42; head 2: (1.44 + 1) / 2 = 1.22
    loss, _ = agent.critic_loss(batch, batch.chunk)
    assert loss.item() == pytest.approx(3.64, rel=1e-5)
    assert torch.equal(agent.value.asked[0][0], batch.next_features)
    loss.backward()
    assert agent.value.answer.grad is None


@pytest.mark.parametrize(
    # min of the target critics is 1. V = 0.5: A = 0.5, 0.7 * 0.25 = 0.175; V = 1.5: A = -0.5, 0.3 * 0.25 = 0.075
    ("value", "expected", "advantage"),
    [(0.5, 0.175, 0.5), (1.5, 0.075, -0.5)],
)
def test_awsc_value_loss_by_hand(value: float, expected: float, advantage: float) -> None:
    agent = awsc()
    agent.critic, agent.critic_target = Constant(-7.0, -7.0), Constant(1.0, 2.0)
    agent.value = ConstantValue(value)
    batch = demo_batch(4)
    loss, _, found = agent.value_loss(batch, batch.chunk)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found, torch.full((4,), advantage))
    assert not found.requires_grad


def test_awsc_critics_see_the_executed_rows() -> None:
    spec = flow_spec(obs_horizon=2, state_dim=1, pred_horizon=4, act_horizon=2)
    agent = awsc(spec)
    agent.critic, agent.critic_target = Constant(1.0, 2.0), Constant(1.0, 2.0)
    batch = DemoBatch(
        torch.zeros(3, 2), torch.arange(12.0).view(3, 4, 1), torch.zeros(3), torch.zeros(3), torch.zeros(3, 2)
    )
    actions = batch.chunk[:, 1:3]  # o = 2, H = 2: the action of the newest frame is in row 1
    agent.update(batch)
    assert torch.equal(agent.critic.asked[0][1], actions)
    assert torch.equal(agent.critic_target.asked[0][1], actions)


def test_awsc_weights_by_hand() -> None:
    advantage = torch.tensor([0.0, math.log(3), 50.0])
    # beta = 1: exp = 1, 3, clipped to 8; mean 4: 0.25, 0.75, 2
    weights = awsc(advantage_temperature=1.0, max_weight=8.0).weights(advantage)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75, 2.0]))
    # beta = 1/2: exp = 1, 9, clipped to 20; mean 10
    weights = awsc(advantage_temperature=0.5, max_weight=20.0).weights(advantage)
    torch.testing.assert_close(weights, torch.tensor([0.1, 0.9, 2.0]))


def test_awsc_weights_have_mean_one_and_infinite_temperature_weighs_alike() -> None:
    advantage = 3 * torch.randn(100, generator=seeded())
    assert awsc(advantage_temperature=0.3).weights(advantage).mean().item() == pytest.approx(1.0)
    assert torch.equal(awsc(advantage_temperature=math.inf).weights(advantage), torch.ones(100))


def test_flow_matching_regresses_the_straight_line_with_weights() -> None:
    agent = awsc(consistency_fraction=0.0)
    agent.velocity_net = ToyVelocity(0.0, 2.0)
    batch = demo_batch(6)
    weight = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 0.0])
    loss, metrics = agent.flow_loss(batch.features, batch.chunk, weight)
    ((x_t, t, d, features),) = agent.velocity_net.asked
    assert d.tolist() == [0.125] * 6  # the smallest step
    assert torch.equal(features, batch.features)
    assert ((t >= 0) & (t < 1)).all()
    # x_t = (1 - t) x0 + t x1, so x1 - x0 = (x1 - x_t) / (1 - t)
    line = (batch.chunk - x_t) / (1 - t)[:, None, None]
    matching = (2.0 - line).square().mean((1, 2))
    assert loss.item() == pytest.approx((weight * matching).mean().item(), rel=1e-3)
    assert metrics["flow_loss"].item() == pytest.approx(matching.mean().item(), rel=1e-3)


def test_consistency_target_is_two_half_steps_of_the_average_network() -> None:
    agent = awsc(consistency_fraction=0.5)
    agent.velocity_net, agent.velocity_net_ema = ToyVelocity(0.0), ToyVelocity(1.0)
    batch = demo_batch(400)
    weight = torch.linspace(0.5, 1.5, 400)
    loss, metrics = agent.flow_loss(batch.features, batch.chunk, weight)
    (_, (x_t, t, d, features)) = agent.velocity_net.asked
    (first, second) = agent.velocity_net_ema.asked
    # Steps of 2/8, 4/8 and 8/8, from starts that whole steps reach, never beyond t = 1.
    assert set(d.tolist()) == {0.25, 0.5, 1.0}
    assert torch.equal(torch.remainder(t, d), torch.zeros(200))
    assert (t + d).max().item() == 1.0
    assert {(0.25, 0.75), (0.5, 0.5), (1.0, 0.0)} <= set(zip(d.tolist(), t.tolist(), strict=True))
    assert torch.equal(features, batch.features[200:])
    # v1 = x_t at (t, d/2), x' = x_t + (d/2) v1 = x_t (1 + d/2), v2 = x' at (t + d/2, d/2).
    assert torch.equal(first[0], x_t) and torch.equal(first[1], t) and torch.equal(first[2], d / 2)
    torch.testing.assert_close(second[0], x_t * (1 + d / 2)[:, None, None])
    assert torch.equal(second[1], t + d / 2) and torch.equal(second[2], d / 2)
    # The network answers 0: the error is (v1 + v2) / 2 = x_t (1 + d/4).
    error = (x_t * (1 + d / 4)[:, None, None]).square().mean((1, 2))
    assert metrics["consistency_loss"].item() == pytest.approx(error.mean().item(), rel=1e-5)
    # Matching and consistency share the weighted mean over the batch, on disjoint halves.
    x, s, _, _ = agent.velocity_net.asked[0]
    matching = ((batch.chunk[:200] - x) / (1 - s)[:, None, None]).square().mean((1, 2))
    expected = (weight * torch.cat((matching, error))).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-2)
    loss.backward()
    assert agent.velocity_net_ema.slope.grad is None
    assert agent.velocity_net.slope.grad is not None


def test_a_consistent_network_has_no_consistency_error() -> None:
    agent = awsc(consistency_fraction=0.5)
    agent.velocity_net, agent.velocity_net_ema = ToyVelocity(0.0, 0.7), ToyVelocity(0.0, 0.7)
    batch = demo_batch(64)
    _, metrics = agent.flow_loss(batch.features, batch.chunk, torch.ones(64))
    assert metrics["consistency_loss"].item() < 1e-12


def test_awsc_repeats_by_seed_and_its_learning_rate_ends_at_zero() -> None:
    runs = []
    for global_seed in (0, 1):
        agent = awsc(total_iters=5)
        torch.manual_seed(global_seed)  # must not matter
        for i in range(5):
            metrics = agent.update(demo_batch(seed=i))
        assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)
        assert not any(value.requires_grad for value in metrics.values())
        runs.append(parameters_of(agent))
    assert same(*runs)


@pytest.mark.usefixtures("no_host_sync")
def test_awsc_update_never_waits_for_the_device() -> None:
    agent = awsc(advantage_temperature=1.0)
    for _ in range(2):
        agent.update(demo_batch())


def train_bimodal(agent: AWSCAgent, updates: int, best: float) -> tuple[Tensor, ShortcutFlowPolicy]:
    """One-step demonstrations at -0.6 and +0.6, equally often; those of the sign of ``best`` earn 1."""
    generator = seeded(1)
    sign = torch.randint(2, (1000, 1, 1), generator=generator).float() * 2 - 1
    chunk = 0.6 * sign + 0.05 * torch.randn((1000, 1, 1), generator=generator)
    states = torch.randn((1000, 1), generator=generator)
    data = DemoBatch(states, chunk, (sign[:, 0, 0] * best > 0).float(), torch.zeros(1000), states)
    for _ in range(updates):
        agent.update(data.gather(torch.randint(1000, (256,), generator=generator)))
    policy = ShortcutFlowPolicy(agent.spec, unit_encoder(), agent.velocity_net_ema, agent.critic)
    noise = torch.randn((2000, 1, 1), generator=seeded(2))
    return policy.decode(torch.randn((2000, 1), generator=seeded(3)), noise).flatten(), policy


def test_awsc_learns_both_modes_of_the_demonstrations() -> None:
    samples, _ = train_bimodal(
        awsc(flow_spec(velocity_widths=(64, 64, 64)), lr=1e-2, total_iters=800), 800, best=1.0
    )
    assert (samples > 0.4).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (samples < -0.4).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (samples.abs() < 0.3).float().mean().item() < 0.1  # one Gaussian of this width would put 0.38 there
    assert (samples.abs() > 0.85).float().mean().item() < 0.03


def test_advantage_weights_favour_the_rewarded_mode() -> None:
    agent = awsc(lr=1e-2, total_iters=600, advantage_temperature=0.25, max_weight=20.0)
    samples, policy = train_bimodal(agent, 600, best=-1.0)
    assert (samples < -0.4).float().mean().item() > 0.75
    states, actions = torch.zeros(2, 1), torch.tensor([[[-0.6]], [[0.6]]])
    q = policy.q_values(states, actions).detach()
    torch.testing.assert_close(q, torch.tensor([[1.0, 0.0]] * 2), rtol=0, atol=0.1)
