"""AWSC, the agent of Stage 0: losses against numbers worked out by hand, and learning on a toy."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_agents import (
    flow_spec,
    parameters_of,
    same,
    seeded,
    unit_encoder,
)
from torch import Tensor, nn

from dsrl_offpolicy.agents.awsc import AWSCAgent, DemoBatch
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy, ShortcutFlowSpec
from dsrl_offpolicy.contracts import Encoding


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
    return policy.decode(Encoding(torch.randn((2000, 1), generator=seeded(3))), noise).flatten(), policy


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
    q = policy.critic.q_values(states, actions).detach()
    torch.testing.assert_close(q, torch.tensor([[1.0, 0.0]] * 2), rtol=0, atol=0.1)
