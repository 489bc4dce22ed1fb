"""AW-MLE: losses against numbers worked out by hand, candidate pools, and learning on a toy."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_agents import (
    BEST_LATENT,
    TOY,
    ToyBase,
    flow_spec,
    layout,
    parameters_of,
    same,
    seeded,
    set_linear_critic,
    set_linear_policy,
    toy_base,
    toy_states,
    unit_encoder,
)
from torch import Tensor

from dsrl_offpolicy.agents.aw_mle import AWMLEAgent, CandidatePool
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_q_network import LatentCritic

HALF_LOG_2PI = 0.9189385


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
