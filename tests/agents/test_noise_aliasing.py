"""Noise aliasing and LPS: losses against numbers worked out by hand, who gets which gradient, learning, resume."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tiny_agents import (
    BEST_LATENT,
    ToyBase,
    layout,
    parameters_of,
    random_batch,
    same,
    seeded,
    set_linear_critic,
    set_linear_policy,
    toy_reward,
    toy_states,
)
from torch import Tensor, nn

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.agents.latent_policy_gradient import LatentPolicyGradientAgent
from dsrl_offpolicy.agents.noise_aliasing import NoiseAliasingAgent
from dsrl_offpolicy.contracts import BasePolicy, Encoding, MacroBatch, PolicyInfo
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout

BOTH = (NoiseAliasingAgent, LatentPolicyGradientAgent)


class DoublingPolicy(BasePolicy, nn.Module):
    """Decodes row i of a latent w to ``scale * w_i + s``, with scale 2; of two rows the second is executed.

    Its scale takes a gradient, as weights of a policy that nobody froze would.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.info = PolicyInfo(1, 1, 1, (2, 1), (2, 1), slice(1, 2))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def encode(self, obs: Any) -> Encoding:
        return Encoding(obs.flatten(1))

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        return self.scale * latent + encoding.features[:, None]


def agent_of(
    kind: type[DSRLSACAgent], base: BasePolicy | None, steered: LatentLayout, seed: int = 0, **changes: object
) -> Any:
    """An agent of linear networks with a fixed temperature of 0.2, unless told otherwise."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "actor_hidden_dims": (), "critic_hidden_dims": (), "critic_layer_norm": False, "regularizer": "kl",
        "actor_lr": 1e-2, "critic_lr": 1e-2, "init_temperature": 0.2, "learn_temperature": False,
    }  # fmt: skip
    config = kind.Config(**(settings | changes))
    return kind(config, 1, steered, generator=seeded(seed), base=base)


def hand_worked(kind: type[DSRLSACAgent], monkeypatch: pytest.MonkeyPatch, **changes: object) -> Any:
    """Two latent rows; whatever the actor samples is w = (1, 1/4), and u ~ N(1/2, 1) in both of them.

    So the executed action at s is 2/4 + s, and that of a stored latent (9, w) is 2 w + s.
    KL(N(1/2, 1) || N(0, 1)) = 2 * (1/2)^2 / 2 = 0.25.
    """
    agent = agent_of(kind, DoublingPolicy(), layout(2, 1), **changes)
    set_linear_policy(agent.actor, [0.5, 0.5], [0.0, 0.0])

    def sample(dist: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([[1.0, 0.25]]).repeat(len(noise), 1), torch.full((len(noise),), -2.0)

    monkeypatch.setattr(agent.actor, "sample", sample)
    q = agent.action_critic if kind is NoiseAliasingAgent else agent.critic
    set_linear_critic(q.target, [[0.0, 1.0], [0.0, 0.0]], [0.0, 5.0])  # a', 5
    set_linear_critic(q.online, [[1.0, 1.0], [0.0, 2.0]], [0.0, 0.0])  # s + a, 2 a
    return agent


def hand_batch() -> MacroBatch:
    return MacroBatch(
        obs_features=torch.tensor([[1.0], [0.0], [0.5]]),
        latent=torch.tensor([[9.0, 0.5], [9.0, 1.0], [9.0, -0.25]]),
        reward=torch.tensor([0.3, 0.3, 1.0]),
        discount=torch.tensor([0.9, 0.0, 0.5]),
        next_obs_features=torch.tensor([[0.1], [0.1], [6.0]]),
    )


# a' = 2/4 + s': 0.6, 0.6, 6.5. y = 0.3 + 0.9 min(0.6, 5) = 0.84; 0.3; 1 + 0.5 min(6.5, 5) = 3.5
TARGETS = [0.84, 0.3, 3.5]
# a = 2 w + s: 2, 2, 0. Q_1 = s + a: 3, 2, 0.5. Q_2 = 2 a: 4, 4, 0
VALUES = [[3.0, 2.0, 0.5], [4.0, 4.0, 0.0]]
ERRORS = [[q - y for q, y in zip(head, TARGETS, strict=True)] for head in VALUES]
TD_LOSS = sum(sum(e * e for e in head) / 3 for head in ERRORS)


@pytest.mark.parametrize("kind", BOTH)
def test_action_critic_loss_by_hand(monkeypatch: pytest.MonkeyPatch, kind: type[DSRLSACAgent]) -> None:
    agent = hand_worked(kind, monkeypatch)
    loss, metrics = agent.critic_loss(hand_batch())
    assert metrics["td_error"].item() == pytest.approx(sum(abs(e) for head in ERRORS for e in head) / 6)
    assert metrics["q_mean"].item() == pytest.approx(13.5 / 6)
    assert loss.item() == pytest.approx(metrics["critic_loss"].item())
    assert loss.item() - metrics.get("distill_loss", torch.zeros(())).item() == pytest.approx(TD_LOSS, rel=1e-5)


@pytest.mark.parametrize("kind", BOTH)
def test_the_regulariser_enters_the_target_only_where_asked(
    monkeypatch: pytest.MonkeyPatch, kind: type[DSRLSACAgent]
) -> None:
    # alpha * KL = 0.2 * 0.25 = 0.05: y = 0.84 - 0.9 * 0.05 = 0.795; 0.3; 3.5 - 0.5 * 0.05 = 3.475
    errors = [[q - y for q, y in zip(head, [0.795, 0.3, 3.475], strict=True)] for head in VALUES]
    _, metrics = hand_worked(kind, monkeypatch, backup_entropy=True).critic_loss(hand_batch())
    assert metrics["td_error"].item() == pytest.approx(sum(abs(e) for head in errors for e in head) / 6)


def test_distillation_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = hand_worked(NoiseAliasingAgent, monkeypatch)
    set_linear_critic(agent.critic.online, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [0.0, 0.0])  # w_2, s
    features, latent = torch.tensor([[1.0], [0.0]]), torch.tensor([[9.0, 0.5], [9.0, 1.0]])
    # a = 2 w_2 + s = 2, 2. Q^A: 3, 2 and 4, 4; Q^W: 0.5, 1 and 1, 0; never asked is the target, a'.
    # head 1: (2.5^2 + 1^2) / 2 = 3.625; head 2: (3^2 + 4^2) / 2 = 12.5
    assert agent.distillation_loss(features, latent).item() == pytest.approx(16.125)


@pytest.mark.parametrize(("fraction", "from_actor"), [(0.0, []), (0.5, [1, 3]), (1.0, [0, 1, 2, 3])])
def test_distillation_sees_latents_of_actor_and_prior(fraction: float, from_actor: list[int]) -> None:
    # Every other row, not the first half: those of demonstrations stand behind those of the replay buffer.
    steered = layout(2, 1, magnitude=1.5)
    agent = agent_of(NoiseAliasingAgent, DoublingPolicy(), steered, distill_actor_fraction=fraction)
    set_linear_policy(agent.actor, [9.0, 9.0], [0.0, 0.0])  # 1.5 tanh(9 / 1.5) is 1.5 but for 1e-4
    latent = agent.distillation_latents(random_batch(4, 1, 2))
    noise = torch.randn((4, 2), generator=seeded())  # the agent's first draw
    others = [row for row in range(4) if row not in from_actor]
    assert bool((latent[from_actor] > 1.49).all())
    torch.testing.assert_close(latent[others], 1.5 * torch.tanh(noise[others] / 1.5))


def test_actor_ascends_the_distilled_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = hand_worked(NoiseAliasingAgent, monkeypatch)
    set_linear_critic(agent.critic.online, [[0.0, 0.0, 2.0], [1.0, 0.0, 0.0]], [0.0, 0.0])  # 2 w_2, s
    # w_2 = 1/4; min(0.5, s) = 0.5, 0, 0.5, mean 1/3; 0.2 * 0.25 - 1/3
    loss, metrics, _ = agent.actor_loss(hand_batch())
    assert loss.item() == metrics["actor_loss"].item() == pytest.approx(0.05 - 1 / 3)


def test_lps_actor_ascends_the_action_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = hand_worked(LatentPolicyGradientAgent, monkeypatch)
    # a = 0.5 + s: 1.5, 0.5, 1. min(s + a, 2 a): min(2.5, 3), min(0.5, 1), min(1.5, 2): mean 1.5; 0.05 - 1.5
    loss, _, _ = agent.actor_loss(hand_batch())
    assert loss.item() == pytest.approx(-1.45)


def test_lps_gradient_reaches_the_actor_through_the_decode_and_nothing_else() -> None:
    base = DoublingPolicy()
    agent = agent_of(LatentPolicyGradientAgent, base, layout(2, 1), init_temperature=0.0)
    set_linear_critic(agent.critic.online, [[0.0, 3.0], [0.0, 4.0]], [0.0, 9.0])  # 3 a, 4 a + 9 for |a| < 9: 3 a
    agent.actor_loss(random_batch(16, 1, 2))[0].backward()
    # dQ/dmean = 3 * 2 for the executed row and 0 for the other
    gradient = agent.actor.net[-1].bias.grad
    torch.testing.assert_close(gradient[:2], torch.tensor([0.0, -6.0]))
    others = [*agent.critic.parameters(), *base.parameters(), agent.log_alpha]
    assert all(p.grad is None for p in others)
    assert all(p.requires_grad for p in agent.critic.online.parameters())


@pytest.mark.parametrize("kind", BOTH)
def test_burn_in_trains_critics_and_leaves_the_actor(kind: type[DSRLSACAgent]) -> None:
    base = DoublingPolicy()
    agent = agent_of(kind, base, layout(2, 1), learn_temperature=True)
    agent.update(random_batch(16, 1, 2), update_actor=False)  # a fresh critic's targets equal it until now
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    agent.update(random_batch(16, 1, 2), update_actor=False)
    changed = {
        name.rsplit(".", 3)[0] for name, value in agent.state_dict().items() if not value.equal(before[name])
    }
    assert (
        changed
        == {
            NoiseAliasingAgent: {"critic.online", "critic.target", "action_critic.online", "action_critic.target"},
            LatentPolicyGradientAgent: {"critic.online", "critic.target"},
        }[kind]
    )
    metrics = agent.update(random_batch(16, 1, 2))
    assert not before["actor.net.0.bias"].equal(agent.actor.net[0].bias)
    assert set(agent.judged_by) <= set(metrics)
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert base.scale.item() == 2.0 and base.scale.grad is None


@pytest.mark.parametrize("kind", BOTH)
def test_learning_rates_of_all_critics_are_scaled(kind: type[DSRLSACAgent]) -> None:
    agent = agent_of(kind, DoublingPolicy(), layout(2, 1))
    agent.scale_learning_rates(0.0)
    before = parameters_of(agent)
    agent.polyak_tau = 0.0
    agent.update(random_batch(16, 1, 2))
    assert same(parameters_of(agent), before)


@pytest.mark.parametrize("mode", ["full", "repeat"])
@pytest.mark.parametrize("kind", BOTH)
def test_resumed_training_continues_identically(kind: type[DSRLSACAgent], mode: str) -> None:
    def learner(seed: int) -> Any:
        sizes = {"actor_hidden_dims": (8,), "critic_hidden_dims": (8,), "critic_layer_norm": True}
        return agent_of(kind, DoublingPolicy(), layout(2, 1, mode, 1.5), seed, learn_temperature=True, **sizes)

    def losses(agent: Any, first: int) -> list[dict[str, float]]:
        torch.manual_seed(first)  # must not matter
        batches = [random_batch(8, 1, agent.layout.dim, seed) for seed in range(first, first + 5)]
        return [{name: value.item() for name, value in agent.update(batch).items()} for batch in batches]

    original, resumed = learner(0), learner(7)
    losses(original, 0)
    file = io.BytesIO()
    torch.save(original.training_state(), file)
    file.seek(0)
    resumed.load_training_state(torch.load(file, weights_only=True))
    assert losses(original, 5) == losses(resumed, 5)
    assert same(parameters_of(original), parameters_of(resumed))


# --- Learning ------------------------------------------------------------------------------------------------


WORLD = layout(1, 2, magnitude=3.0)


def world_base() -> ToyBase:
    return ToyBase(lambda features, actions: toy_reward(features, actions).expand(2, -1), (1, 2))


@pytest.mark.parametrize("kind", BOTH)
def test_it_finds_the_good_latents_that_the_prior_rarely_draws(kind: type[DSRLSACAgent]) -> None:
    base, generator = world_base(), seeded(1)
    agent = agent_of(
        kind, base, WORLD, actor_hidden_dims=(32,), critic_hidden_dims=(64, 64), critic_layer_norm=True,
        actor_lr=3e-3, critic_lr=3e-3, init_temperature=0.02,
    )  # fmt: skip

    def reward(features: Tensor, latent: Tensor) -> Tensor:
        return toy_reward(features, base.decode(Encoding(features), latent.view(-1, 1, 2)))

    features = toy_states(2000, generator)
    noise = torch.randn((2000, 1, 2), generator=generator)
    latent = WORLD.prior(noise)
    rewards, zeros = reward(features, latent), torch.zeros(2000)
    for _ in range(200):
        index = torch.randint(2000, (64,), generator=generator)
        state = features[index]
        agent.update(MacroBatch(state, latent[index], rewards[index], zeros[index], state))
    mean = agent.act(features[:50], noise[:50], deterministic=True)
    torch.testing.assert_close(mean, features[:50] * BEST_LATENT, rtol=0, atol=0.4)
    assert rewards.mean() < -1.2
    assert reward(features, agent.act(features, noise)).mean() > -0.3


def test_reward_is_carried_back_over_macro_steps_by_the_action_critic() -> None:
    """From s = 0 one goes to s = 1 (discount 0.5), where action 2 w + s > 1 earns 1 and the episode ends."""
    agent = agent_of(
        NoiseAliasingAgent, DoublingPolicy(), layout(2, 1, magnitude=2.0), tau=0.1, critic_hidden_dims=(64,),
        actor_hidden_dims=(16,), actor_lr=3e-3, critic_layer_norm=True, init_temperature=0.01,
    )  # fmt: skip
    generator = seeded(1)
    state = torch.randint(2, (1000, 1), generator=generator).float()
    latent = agent.layout.prior(torch.randn((1000, 2, 1), generator=generator))
    last = state[:, 0] == 1
    reward = (last & (2 * latent[:, 1] + 1 > 1)).float()
    for _ in range(200):
        index = torch.randint(1000, (64,), generator=generator)
        agent.update(MacroBatch(state[index], latent[index], reward[index], 0.5 * ~last[index], torch.ones(64, 1)))
    # Where the actor goes, both critics know: 1 at the end, 0.5 before.
    for value, start in ((0.5, 0.0), (1.0, 1.0)):
        features = torch.full((64, 1), start)
        chosen = agent.act(features, torch.randn((64, 2, 1), generator=generator))
        q_action = agent.action_critic.online(features, agent.decoder(features, chosen)).mean().item()
        assert q_action == pytest.approx(value, abs=0.12)
        assert agent.critic.online(features, chosen).mean().item() == pytest.approx(q_action, abs=0.12)


# --- What is refused -----------------------------------------------------------------------------------------


class WithContext(DoublingPolicy):
    def encode(self, obs: Any) -> Encoding:
        return Encoding(obs.flatten(1), context=obs)


class WithoutGradient(DoublingPolicy):
    @torch.no_grad()
    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        return super().decode(encoding, latent)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("base", "mode", "words"),
    [
        (None, "full", "needs a base policy, got none"),
        (WithContext(), "full", "decodes from a context besides; use sac"),
        (DoublingPolicy(), "act_horizon", "steer_mode: expected full or repeat"),
    ],
)
def test_what_cannot_be_decoded_anew_is_refused_in_one_line(
    kind: type[DSRLSACAgent], base: BasePolicy | None, mode: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as error:
        agent_of(kind, base, layout(2, 1, mode))
    assert "\n" not in str(error.value)


def test_lps_needs_a_gradient_and_noise_aliasing_none() -> None:
    with pytest.raises(InputError, match="passes none on; use na"):
        agent_of(LatentPolicyGradientAgent, WithoutGradient(), layout(2, 1))
    agent = agent_of(NoiseAliasingAgent, WithoutGradient(), layout(2, 1))
    assert agent.update(random_batch(8, 1, 2))["distill_loss"].isfinite()
