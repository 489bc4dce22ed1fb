"""Networks, latents, replay, frozen base policies and seeds, each against numbers from elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution
from torch.distributions import kl_divergence as torch_kl

from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy, ShortcutFlowSpec
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_weights, save_checkpoint
from dsrl_offpolicy.models.action_q_network import ActionQNetwork
from dsrl_offpolicy.models.latent_layout import LatentLayout, squash
from dsrl_offpolicy.models.latent_policy import LOG_SIGMA_MAX, Gaussian, LatentPolicy
from dsrl_offpolicy.models.latent_q_network import LatentCritic, LatentQNetwork
from dsrl_offpolicy.models.latent_sources import policy_source, prior_source, squashed_prior_source
from dsrl_offpolicy.models.layers import EnsembleLayerNorm, EnsembleLinear
from dsrl_offpolicy.models.unet1d import ConditionalUnet1d
from dsrl_offpolicy.models.velocity import MLPVelocity, UNetVelocity, integrate
from dsrl_offpolicy.seeding import derive_seed, numpy_generator, seed_everything, torch_generator

T, A = 6, 2
ROWS = slice(1, 4)
MODES = ("full", "act_horizon", "repeat")
DIMS = {"full": 12, "act_horizon": 6, "repeat": 2}  # T*A, H*A with H = 3, A


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layout(mode: str = "full", magnitude: float = 1.5, t: int = T, a: int = A, rows: slice = ROWS) -> LatentLayout:
    return LatentLayout(mode, t, a, rows, magnitude)  # type: ignore[arg-type]


def one_dimensional(magnitude: float) -> LatentLayout:
    return layout("full", magnitude, 1, 1, slice(0, 1))


def trained_policy(steered: LatentLayout, feature_dim: int = 3, seed: int = 0) -> LatentPolicy:
    """A policy whose mu and sigma depend on the state, sigma on both sides of 1."""
    torch.manual_seed(seed)
    policy = LatentPolicy(feature_dim, (8,), steered)
    nn.init.normal_(policy.net[-1].weight, std=0.5)
    nn.init.normal_(policy.net[-1].bias, std=0.5)
    return policy


# --- LatentLayout and squash ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_latent_dimension_of_each_steer_mode(mode: str) -> None:
    assert layout(mode).dim == DIMS[mode]


def test_full_mode_decodes_exactly_the_steered_latent() -> None:
    latent = torch.arange(24.0).view(2, 12)
    expanded = layout("full").expand(latent, torch.full((2, T, A), 99.0))
    assert expanded.tolist() == latent.view(2, T, A).tolist()


def test_repeat_mode_puts_the_one_row_into_every_row() -> None:
    expanded = layout("repeat").expand(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.full((2, T, A), 99.0))
    assert expanded[0].tolist() == [[1.0, 2.0]] * T
    assert expanded[1].tolist() == [[3.0, 4.0]] * T


def test_act_horizon_mode_steers_the_executed_rows_and_draws_the_rest_from_the_squashed_prior() -> None:
    noise = torch.randn((2, T, A), generator=seeded()) * 2
    before = noise.clone()
    latent = torch.arange(12.0).view(2, 6)
    expanded = layout("act_horizon", 1.5).expand(latent, noise)
    assert expanded[:, 1:4].tolist() == latent.view(2, 3, A).tolist()
    rest = [0, 4, 5]
    torch.testing.assert_close(expanded[:, rest], 1.5 * torch.tanh(noise[:, rest] / 1.5))
    assert torch.equal(noise, before)


def test_expanding_without_a_bound_leaves_the_callers_noise_alone() -> None:
    noise = torch.randn((2, T, A), generator=seeded())
    before = noise.clone()
    expanded = layout("act_horizon", math.inf).expand(torch.zeros(2, 6), noise)
    assert torch.equal(noise, before)
    assert torch.equal(expanded[:, [0, 4, 5]], before[:, [0, 4, 5]])


@pytest.mark.parametrize("mode", MODES)
def test_selecting_gives_back_what_was_expanded(mode: str) -> None:
    steered = layout(mode)
    latent = torch.randn((4, steered.dim), generator=seeded())
    noise = torch.randn((4, T, A), generator=seeded(1))
    assert torch.equal(steered.select(steered.expand(latent, noise)), latent)


def test_selection_takes_the_rows_that_the_mode_names() -> None:
    full = torch.arange(12.0).view(1, T, A)
    assert layout("full").select(full).tolist() == [list(range(12))]
    assert layout("act_horizon").select(full).tolist() == [[2, 3, 4, 5, 6, 7]]  # rows 1, 2, 3
    assert layout("repeat").select(full).tolist() == [[0, 1]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("magnitude", [0.7, 3.0, math.inf])
def test_prior_is_the_squashed_selection_of_the_noise(mode: str, magnitude: float) -> None:
    steered = layout(mode, magnitude)
    noise = 2 * torch.randn((5, T, A), generator=seeded())
    u = steered.select(noise)
    expected = u if math.isinf(magnitude) else magnitude * torch.tanh(u / magnitude)
    torch.testing.assert_close(steered.prior(noise), expected)


def test_squash_by_hand() -> None:
    # b = 2, u = 1: 2 tanh(1/2) = 2 * 0.46211716 = 0.92423431; far out it saturates at b.
    values = squash(torch.tensor([0.0, 1.0, -1.0, 100.0]), 2.0)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.92423431, -0.92423431, 2.0]))


def test_squash_without_a_bound_is_exactly_the_identity() -> None:
    u = 50 * torch.randn(100, generator=seeded())
    assert torch.equal(squash(u, math.inf), u)


def test_squash_is_nearly_the_identity_far_inside_the_bound() -> None:
    u = torch.linspace(-1, 1, 21)
    torch.testing.assert_close(squash(u, 1000.0), u, rtol=1e-4, atol=0)


# --- LatentPolicy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_fresh_policy_has_mean_0_sigma_1_and_no_divergence_from_the_prior(mode: str) -> None:
    policy = LatentPolicy(3, (8, 8), layout(mode))
    dist = policy(10 * torch.randn((7, 3), generator=seeded()))
    assert dist.mean.shape == (7, DIMS[mode])
    assert torch.equal(dist.mean, torch.zeros(7, DIMS[mode]))
    assert torch.equal(dist.log_sigma, torch.zeros(7, DIMS[mode]))
    assert torch.equal(policy.kl_to_prior(dist), torch.zeros(7))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("magnitude", [0.7, 3.0, math.inf])
def test_fresh_policy_samples_exactly_the_prior(mode: str, magnitude: float) -> None:
    steered = layout(mode, magnitude)
    policy = LatentPolicy(3, (8,), steered)
    features = torch.randn((7, 3), generator=seeded())
    noise = 2 * torch.randn((7, T, A), generator=seeded(1))
    assert torch.equal(policy.act(features, noise), steered.prior(noise))
    latent, _ = policy.sample(policy(features), steered.select(noise))
    assert torch.equal(latent, steered.prior(noise))
    source = policy_source(policy, deterministic=False)
    assert torch.equal(source(features, noise), squashed_prior_source(steered)(features, noise))


def test_fresh_policy_without_a_bound_acts_as_the_base_policy_does() -> None:
    policy = LatentPolicy(3, (8,), layout("full", math.inf))
    features, noise = torch.randn((7, 3), generator=seeded()), torch.randn((7, T, A), generator=seeded(1))
    chosen = policy_source(policy, deterministic=False)(features, noise)
    assert torch.equal(chosen, prior_source()(features, noise))


def test_sigma_can_exceed_the_prior_and_stays_bounded() -> None:
    policy = LatentPolicy(1, (), one_dimensional(math.inf))
    with torch.no_grad():
        policy.net[-1].bias.copy_(torch.tensor([0.0, 50.0]))
    highest = policy(torch.zeros(1, 1)).log_sigma.item()
    assert 0 < highest == pytest.approx(LOG_SIGMA_MAX)
    with torch.no_grad():
        policy.net[-1].bias.copy_(torch.tensor([0.0, -500.0]))
    lowest = policy(torch.zeros(1, 1)).log_sigma.item()
    assert -20 < lowest < -2


def test_log_sigma_passes_its_gradient_once_at_initialisation() -> None:
    # The bound is the identity to first order at 0, on both sides: d log_sigma / d bias = 1, at 0 as beside it.
    for raw in (-1e-4, 0.0, 1e-4):
        policy = LatentPolicy(1, (), one_dimensional(math.inf))
        with torch.no_grad():
            policy.net[-1].bias[1] = raw
        policy(torch.zeros(1, 1)).log_sigma.sum().backward()
        assert policy.net[-1].bias.grad[1].item() == pytest.approx(1.0, abs=1e-3), raw


@pytest.mark.parametrize("magnitude", [0.5, 1.5, 20.0])
def test_log_prob_agrees_with_torch_distributions(magnitude: float) -> None:
    mean = torch.randn((5, 4), generator=seeded(), dtype=torch.float64)
    log_sigma = 0.5 * torch.randn((5, 4), generator=seeded(1), dtype=torch.float64)
    u = mean + log_sigma.exp() * torch.randn((5, 4), generator=seeded(2), dtype=torch.float64)
    policy = LatentPolicy(3, (8,), layout("full", magnitude, 2, 2, slice(0, 2)))
    # w = b tanh(u / b)
    transforms = [
        AffineTransform(0.0, 1 / magnitude),
        TanhTransform(cache_size=1),
        AffineTransform(0.0, magnitude),
    ]
    reference = Independent(TransformedDistribution(Normal(mean, log_sigma.exp()), transforms), 1)
    w = u
    for transform in transforms:
        w = transform(w)
    torch.testing.assert_close(policy.squash(u), w)
    torch.testing.assert_close(policy.log_prob(Gaussian(mean, log_sigma), u), reference.log_prob(w))


def test_log_prob_without_a_bound_is_the_gaussian_density() -> None:
    mean, log_sigma = torch.randn((5, 4), generator=seeded()), 0.3 * torch.randn((5, 4), generator=seeded(1))
    u = torch.randn((5, 4), generator=seeded(2))
    policy = LatentPolicy(3, (8,), layout("full", math.inf, 2, 2, slice(0, 2)))
    reference = Normal(mean, log_sigma.exp()).log_prob(u).sum(-1)
    torch.testing.assert_close(policy.log_prob(Gaussian(mean, log_sigma), u), reference)


def test_log_prob_by_hand() -> None:
    # b = 2, mu = 1/2, sigma = 1, u = 1.
    # Gaussian: -(1 - 1/2)^2 / 2 - log(2 pi)/2 = -0.125 - 0.9189385 = -1.0439385.
    # w = 2 tanh(u/2), dw/du = 1 - tanh^2(1/2) = 1 - 0.4621172^2 = 0.7864477, its log -0.2402290.
    # log pi(w) = -1.0439385 + 0.2402290 = -0.8037095.
    policy = LatentPolicy(1, (4,), one_dimensional(2.0))
    dist = Gaussian(torch.tensor([[0.5]]), torch.tensor([[0.0]]))
    torch.testing.assert_close(policy.log_prob(dist, torch.tensor([[1.0]])), torch.tensor([-0.8037095]))


def test_log_prob_stays_finite_far_outside_the_bound() -> None:
    policy = LatentPolicy(1, (4,), one_dimensional(1.0))
    dist = Gaussian(torch.zeros(1, 1), torch.zeros(1, 1))
    u = torch.tensor([[60.0]], requires_grad=True)
    # -u^2/2 - log(2 pi)/2 - log(1 - tanh^2 60), where 1 - tanh^2 x -> 4 exp(-2x): -1800 - .919 - 1.386 + 120
    log_prob = policy.log_prob(dist, u)
    torch.testing.assert_close(log_prob, torch.tensor([-1800 - 0.9189385 - 1.3862944 + 120]))
    log_prob.sum().backward()
    assert u.grad is not None and torch.isfinite(u.grad).all()


@pytest.mark.parametrize("magnitude", [1.5, math.inf])
def test_density_of_w_integrates_to_one(magnitude: float) -> None:
    policy = LatentPolicy(1, (4,), one_dimensional(magnitude))
    dist = Gaussian(torch.full((1, 1), 0.4, dtype=torch.float64), torch.full((1, 1), -0.3, dtype=torch.float64))
    if math.isinf(magnitude):
        w = torch.linspace(-8, 8, 20001, dtype=torch.float64)
        u = w
    else:
        w = magnitude * torch.linspace(-1 + 1e-9, 1 - 1e-9, 20001, dtype=torch.float64)
        u = magnitude * torch.atanh(w / magnitude)
    density = policy.log_prob(dist, u.view(-1, 1, 1)).exp().squeeze(-1)
    assert torch.trapezoid(density, w).item() == pytest.approx(1.0, abs=1e-5)


def test_samples_carry_their_own_log_probability() -> None:
    steered = layout("full", 1.5)
    policy = trained_policy(steered)
    dist = policy(torch.randn((5, 3), generator=seeded()))
    noise = torch.randn((5, 12), generator=seeded(1))
    latent, log_prob = policy.sample(dist, noise)
    u = dist.mean + dist.log_sigma.exp() * noise
    torch.testing.assert_close(latent, 1.5 * torch.tanh(u / 1.5))
    torch.testing.assert_close(log_prob, policy.log_prob(dist, u))


def test_kl_to_prior_agrees_with_torch_distributions_and_is_a_sum_over_dimensions() -> None:
    mean, log_sigma = torch.randn((5, 4), generator=seeded()), 0.5 * torch.randn((5, 4), generator=seeded(1))
    policy = LatentPolicy(3, (8,), layout("full", 1.5, 2, 2, slice(0, 2)))
    prior = Normal(torch.zeros(5, 4), torch.ones(5, 4))
    reference = torch_kl(Normal(mean, log_sigma.exp()), prior).sum(-1)
    torch.testing.assert_close(policy.kl_to_prior(Gaussian(mean, log_sigma)), reference)


def test_kl_to_prior_is_the_mean_log_ratio_of_the_squashed_densities() -> None:
    policy = LatentPolicy(1, (4,), one_dimensional(1.5))
    mean, log_sigma = torch.full((1, 1), 0.4), torch.full((1, 1), -0.3)
    dist, prior = Gaussian(mean, log_sigma), Gaussian(torch.zeros(1, 1), torch.zeros(1, 1))
    u = mean + log_sigma.exp() * torch.randn((200_000, 1, 1), generator=seeded())
    ratio = (policy.log_prob(dist, u) - policy.log_prob(prior, u)).mean().item()
    assert ratio == pytest.approx(policy.kl_to_prior(dist).item(), abs=0.01)


@pytest.mark.parametrize("magnitude", [0.5, 1.0, 3.0, math.inf])
def test_action_magnitude_is_obeyed_in_every_path(magnitude: float) -> None:
    def by_hand(u: Tensor) -> Tensor:
        return u if math.isinf(magnitude) else magnitude * torch.tanh(u / magnitude)

    steered = layout("act_horizon", magnitude)
    policy = trained_policy(steered)
    features = torch.randn((5, 3), generator=seeded())
    noise = 2 * torch.randn((5, T, A), generator=seeded(1))
    eps = noise[:, ROWS].flatten(1)
    dist = policy(features)
    u = dist.mean + dist.log_sigma.exp() * eps
    latent, log_prob = policy.sample(dist, eps)
    torch.testing.assert_close(policy.act(features, noise), by_hand(u))
    torch.testing.assert_close(policy.act(features, noise, deterministic=True), by_hand(dist.mean))
    torch.testing.assert_close(latent, by_hand(u))
    torch.testing.assert_close(steered.prior(noise), by_hand(eps))
    torch.testing.assert_close(squashed_prior_source(steered)(features, noise), by_hand(noise))
    chosen = policy_source(policy, deterministic=False)(features, noise)
    torch.testing.assert_close(chosen[:, ROWS].flatten(1), by_hand(u))
    torch.testing.assert_close(chosen[:, 4:], by_hand(noise[:, 4:]))
    # The density holds the Jacobian of this magnitude: d/du b tanh(u / b) = 1 / cosh^2(u / b).
    log_slope = -2 * torch.cosh(u.double() / magnitude).log()
    gaussian = Normal(dist.mean.double(), dist.log_sigma.double().exp()).log_prob(u.double())
    torch.testing.assert_close(log_prob.double(), (gaussian - log_slope).sum(-1), rtol=1e-5, atol=1e-4)


def test_deterministic_action_does_not_depend_on_the_noise() -> None:
    policy = trained_policy(layout("full"))
    features = torch.randn((5, 3), generator=seeded())
    first = policy.act(features, torch.randn((5, T, A), generator=seeded(1)), deterministic=True)
    second = policy.act(features, torch.randn((5, T, A), generator=seeded(2)), deterministic=True)
    assert torch.equal(first, second)


# --- Q^W -----------------------------------------------------------------------------------------------------


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


# --- Q^A and velocity networks, against the published checkpoint ---------------------------------------------


@pytest.fixture
def published(shared_dir: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    folder = shared_dir / "fixtures" / "awsc"
    weights = torch.load(folder / "state_double_q.pt", weights_only=True)
    with np.load(folder / "state_double_q.npz") as arrays:
        recorded = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return weights, recorded


def stripped(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@pytest.mark.parametrize("agent", ["agent", "ema_agent"])
@pytest.mark.parametrize("network", ["velocity_net", "velocity_net_ema"])
def test_unet_decodes_as_the_published_code_did(published: tuple, agent: str, network: str) -> None:
    weights, recorded = published
    velocity = UNetVelocity(7, 16, 64, (16, 32, 64), 16, use_step_size=False)
    load_weights(velocity, stripped(weights[agent], f"{network}."), network)
    with torch.no_grad():
        actions = integrate(velocity, recorded["latent"], recorded["obs_features"], 8)
    torch.testing.assert_close(actions, recorded[f"actions.{agent}.{network}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("agent", ["agent", "ema_agent"])
def test_action_critic_scores_as_the_published_code_did(published: tuple, agent: str) -> None:
    weights, recorded = published
    critic = ActionQNetwork(64, 8, 7, (64, 64, 64), 2)
    renamed = {
        f"q_nets.{head}.{name}": value
        for head in range(2)
        for name, value in stripped(weights[agent], f"critic.q{head + 1}_net.").items()
    }
    load_weights(critic, renamed, "critic")
    with torch.no_grad():
        q = critic(recorded["obs_features"], recorded[f"actions.{agent}.velocity_net"][:, 0:8])
    torch.testing.assert_close(q, recorded[f"q_values.{agent}"], rtol=0, atol=1e-5)


def test_action_critic_takes_actions_first_row_by_row() -> None:
    critic = ActionQNetwork(1, 2, 2, (), 1)
    with torch.no_grad():
        critic.q_nets[0][0].weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0, 10000.0]]))
        critic.q_nets[0][0].bias.zero_()
    # rows (1, 2), (3, 4), then the feature 5: 1 + 20 + 300 + 4000 + 50000
    q = critic(torch.tensor([[5.0]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    assert q.tolist() == [[54321.0]]


def test_unet_conditions_on_the_step_size_only_where_it_is_in_use() -> None:
    torch.manual_seed(0)
    x, features = torch.randn((2, 4, 2), generator=seeded()), torch.randn((2, 3), generator=seeded(1))
    t = torch.full((2,), 0.5)
    for use in (True, False):
        velocity = UNetVelocity(2, 4, 3, (8, 16), 8, use_step_size=use)
        small = velocity(x, t, torch.full((2,), 0.125), features)
        large = velocity(x, t, torch.full((2,), 0.5), features)
        assert torch.equal(small, large) is (not use)


def test_networks_depend_on_features_time_and_noise() -> None:
    torch.manual_seed(0)
    x, features = torch.randn((2, 4, 2), generator=seeded()), torch.randn((2, 3), generator=seeded(1))
    t, d = torch.full((2,), 0.25), torch.full((2,), 0.125)
    for velocity in (UNetVelocity(2, 4, 3, (8, 16), 8), MLPVelocity(2, 4, 3, (16,), 8)):
        v = velocity(x, t, d, features)
        assert v.shape == x.shape
        assert not torch.allclose(v, velocity(x + 1, t, d, features))
        assert not torch.allclose(v, velocity(x, t + 0.5, d, features))
        assert not torch.allclose(v, velocity(x, t, d, features + 1))


def test_mlp_velocity_conditions_on_the_step_size() -> None:
    torch.manual_seed(0)
    velocity = MLPVelocity(2, 4, 3, (16,), 8)
    x, features, t = torch.randn((2, 4, 2), generator=seeded()), torch.ones(2, 3), torch.full((2,), 0.5)
    small, large = torch.full((2,), 0.125), torch.full((2,), 0.5)
    assert not torch.allclose(velocity(x, t, small, features), velocity(x, t, large, features))


def test_unet_film_scales_without_adding_one() -> None:
    # With its condition encoders at zero, scale * h + bias is zero; 1 + scale would let h through.
    torch.manual_seed(0)
    unet = ConditionalUnet1d(2, 3, (8, 16), 8)
    for name, parameter in unet.named_parameters():
        if "cond_encoder" in name:
            nn.init.zeros_(parameter)
    block = unet.down_modules[0][1]
    x = torch.randn((2, 8, 4), generator=seeded())
    expected = block.blocks[1](torch.zeros(2, 8, 4)) + x
    torch.testing.assert_close(block(x, torch.randn((2, 11), generator=seeded(1))), expected)


def test_unet_refuses_a_horizon_it_cannot_halve() -> None:
    with pytest.raises(InputError, match="pred_horizon: expected a multiple of 4"):
        UNetVelocity(2, 6, 3, (8, 16, 32), 8)


class RecordingVelocity(nn.Module):
    """A velocity of a constant, which remembers what it was asked."""

    def __init__(self, velocity: float) -> None:
        super().__init__()
        self.velocity = velocity
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, d: Tensor, features: Tensor) -> Tensor:
        self.calls.append((x.clone(), t.clone(), d.clone()))
        return torch.full_like(x, self.velocity)


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_integrate_takes_each_euler_step_once_from_noise_to_data(steps: int) -> None:
    network = RecordingVelocity(0.25)
    noise = 0.1 * torch.randn((3, 2, 1), generator=seeded())
    actions = integrate(network, noise, torch.zeros(3, 2), steps)
    assert len(network.calls) == steps
    for i, (x, t, d) in enumerate(network.calls):
        assert t.tolist() == [i / steps] * 3
        assert d.tolist() == [1 / steps] * 3
        torch.testing.assert_close(x, noise + 0.25 * i / steps)
    torch.testing.assert_close(actions, noise + 0.25)


@pytest.mark.parametrize("steps", [10, 25, 50])
def test_integrate_asks_at_times_whose_hundredths_survive_rounding(steps: int) -> None:
    # The U-Net embeds floor(100 t): the time of step 5 of 25 must embed as 20, not as 19.
    network = RecordingVelocity(0.0)
    integrate(network, torch.zeros(1, 1, 1), torch.zeros(1, 1), steps)
    hundredths = [torch.floor(100 * t).item() for _, t, _ in network.calls]
    assert hundredths == [100 * i // steps for i in range(steps)]


def test_integrate_follows_the_field_by_euler_and_not_exactly() -> None:
    class Growth(nn.Module):
        def forward(self, x: Tensor, t: Tensor, d: Tensor, features: Tensor) -> Tensor:
            return x

    # dx/dt = x from 0.25 in two Euler steps of 1/2: 0.25 * 1.5^2 = 0.5625
    assert integrate(Growth(), torch.full((1, 1, 1), 0.25), torch.zeros(1, 1), 2).item() == 0.5625


def test_integrate_clamps_the_chunk_and_not_the_noise_or_the_way() -> None:
    network = RecordingVelocity(-3.0)
    actions = integrate(network, torch.tensor([[[3.5], [9.0], [-9.0]]]), torch.zeros(1, 1), 2)
    assert network.calls[0][0].flatten().tolist() == [3.5, 9.0, -9.0]
    assert network.calls[1][0].flatten().tolist() == [2.0, 7.5, -10.5]
    assert actions.flatten().tolist() == [0.5, 1.0, -1.0]


# --- frozen base policy --------------------------------------------------------------------------------------


def flow_spec(**changes: object) -> ShortcutFlowSpec:
    values = {
        "env_id": "toy", "control_mode": "delta", "state_dim": 3, "action_dim": 2, "obs_horizon": 2,
        "pred_horizon": 4, "act_horizon": 2, "velocity_net": "mlp", "velocity_widths": (16,), "embed_dim": 8,
        "denoising_steps": 4, "critic_hidden_dims": (16,), "critic_heads": 3, "gamma": 0.9,
        "reward_mode": "sparse", "reward_scale": 2.0, "end_on_success": True,
    }  # fmt: skip
    return ShortcutFlowSpec(**(values | changes))  # type: ignore[arg-type]


def flow_policy(**changes: object) -> ShortcutFlowPolicy:
    torch.manual_seed(0)
    spec = flow_spec(**changes)
    encoder = ObservationEncoder(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 0.5]))
    return ShortcutFlowPolicy(spec, encoder, spec.build_velocity(), spec.build_critic())


def base_content(policy: ShortcutFlowPolicy) -> dict:
    return {
        "spec": policy.spec.to_plain(),
        "encoder": policy.encoder.state_dict(),
        "velocity_net_ema": policy.velocity.state_dict(),
        "critic": policy.critic.state_dict(),
    }


def test_base_policy_executes_from_the_newest_frame_on() -> None:
    policy = flow_policy()
    assert list(range(4))[policy.executed_rows] == [1, 2]  # o = 2, H = 2: rows o-1 : o-1+H
    assert list(range(4))[policy.critic_rows] == [1, 2]
    assert policy.act_horizon == 2
    assert policy.latent_shape == (4, 2)
    assert policy.feature_dim == 6


def test_base_policy_normalises_frames_and_concatenates_them_oldest_first() -> None:
    obs = torch.tensor([[[2.0, 4.0, 3.5], [1.0, 2.0, 1e6]]])
    # (2-1)/1, (4-2)/2, (3.5-3)/.5 | 0, 0, clamped to 10 standard deviations
    expected = [[1.0, 1.0, 1.0, 0.0, 0.0, 10.0]]
    assert flow_policy().encode(obs).tolist() == expected
    assert flow_policy().encode({"state": obs}).tolist() == expected


def test_encoder_only_centres_dimensions_that_never_vary() -> None:
    encoder = ObservationEncoder.fit(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    # mean (1, 5); sample standard deviation of (0, 2) is sqrt 2
    expected = torch.tensor([[math.sqrt(0.5), 1.0]])
    torch.testing.assert_close(encoder(torch.tensor([[[2.0, 6.0]]])), expected)


def test_base_policy_is_frozen_deterministic_and_differentiable_in_the_latent() -> None:
    policy = flow_policy()
    assert not any(p.requires_grad for p in policy.parameters())
    features = torch.randn((3, 6), generator=seeded())
    latent = 0.1 * torch.randn((3, 4, 2), generator=seeded(1))
    latent.requires_grad_()
    chunk = policy.decode(features, latent)
    assert torch.equal(chunk, policy.decode(features, latent))
    assert chunk.abs().max() <= 1
    chunk.sum().backward()
    assert latent.grad is not None and latent.grad.abs().sum() > 0
    assert policy.q_values(features, chunk[:, policy.critic_rows]).shape == (3, 3)


def test_base_policy_decodes_a_latent_once() -> None:
    policy = flow_policy()
    policy.velocity = RecordingVelocity(0.0)
    latent = torch.randn((3, 4, 2), generator=seeded())
    chunk = policy.decode(torch.zeros(3, 6), latent)
    assert len(policy.velocity.calls) == 4
    assert torch.equal(policy.velocity.calls[0][0], latent)
    assert torch.equal(chunk, latent.clamp(-1, 1))


def test_base_policy_refuses_observations_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"obs: expected \[B, 2, 3\], got \[1, 1, 3\]"):
        flow_policy().encode(torch.zeros(1, 1, 3))


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_base_policy_survives_its_checkpoint(tmp_path: Path, network: str) -> None:
    policy = flow_policy(velocity_net=network, velocity_widths=(16, 32))
    save_checkpoint(tmp_path / "base.pt", "base_policy", base_content(policy))
    loaded = load_base_policy(tmp_path / "base.pt")
    assert loaded.spec == policy.spec
    features, latent = torch.randn((3, 6), generator=seeded()), torch.randn((3, 4, 2), generator=seeded(1))
    obs = torch.randn((3, 2, 3), generator=seeded(2))
    assert torch.equal(loaded.decode(features, latent), policy.decode(features, latent))
    assert torch.equal(loaded.q_values(features, latent[:, 1:3]), policy.q_values(features, latent[:, 1:3]))
    assert torch.equal(loaded.encode(obs), policy.encode(obs))
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("missing", ["spec", "encoder", "velocity_net_ema", "critic"])
def test_base_policy_checkpoint_without_a_part_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    content = base_content(flow_policy())
    del content[missing]
    save_checkpoint(tmp_path / "base.pt", "base_policy", content)
    with pytest.raises(InputError, match=f"expected an entry '{missing}'"):
        load_base_policy(tmp_path / "base.pt")


def test_base_policy_with_a_critic_of_another_shape_is_refused(tmp_path: Path) -> None:
    content = base_content(flow_policy())
    content["critic"] = flow_spec(critic_hidden_dims=(17,)).build_critic().state_dict()
    save_checkpoint(tmp_path / "base.pt", "base_policy", content)
    with pytest.raises(InputError, match=r"critic: tensor q_nets\.0\.0\.weight: expected shape \(16, 10\)"):
        load_base_policy(tmp_path / "base.pt")


def test_base_policy_with_unknown_or_missing_fields_is_refused(tmp_path: Path) -> None:
    content = base_content(flow_policy())
    del content["spec"]["gamma"]
    save_checkpoint(tmp_path / "base.pt", "base_policy", content)
    with pytest.raises(InputError, match="gamma"):
        load_base_policy(tmp_path / "base.pt")


# --- MacroReplayBuffer ---------------------------------------------------------------------------------------


def replay(capacity: int = 4, seed: int = 0) -> MacroReplayBuffer:
    return MacroReplayBuffer(capacity, 2, 3, generator=seeded(seed))


def store(
    buffer: MacroReplayBuffer,
    names: list[float],
    *,
    terminated: list[bool] | None = None,
    truncated: list[bool] | None = None,
    n_steps: list[int] | None = None,
    gamma: float = 0.5,
) -> None:
    """Store one transition per name; every field of it can be told from its name."""
    count, name = len(names), torch.tensor(names)
    buffer.add(
        obs_features=name[:, None].expand(count, 2),
        latent=name[:, None].expand(count, 3) + 100,
        reward=name + 200,
        next_obs_features=name[:, None].expand(count, 2) + 300,
        terminated=torch.tensor(terminated or [False] * count),
        truncated=torch.tensor(truncated or [False] * count),
        n_steps=torch.tensor(n_steps or [1] * count),
        gamma=gamma,
    )


def test_discount_is_gamma_to_the_executed_steps_unless_terminated() -> None:
    buffer = replay()
    # gamma = 1/2, H = 4: a whole chunk, one cut short by a time limit (bootstraps), one cut short and terminated,
    # one that terminated in its last step
    store(
        buffer,
        [0.0, 1.0, 2.0, 3.0],
        n_steps=[4, 3, 2, 4],
        terminated=[False, False, True, True],
        truncated=[False, True, False, False],
    )
    assert buffer.discount.tolist() == [0.0625, 0.125, 0.0, 0.0]
    assert buffer.terminated.tolist() == [False, False, True, True]
    assert buffer.truncated.tolist() == [False, True, False, False]
    assert buffer.n_steps.tolist() == [4, 3, 2, 4]


def test_termination_in_the_last_step_of_a_time_limit_does_not_bootstrap() -> None:
    buffer = replay()
    store(buffer, [0.0], n_steps=[2], terminated=[True], truncated=[True])
    assert buffer.discount[0].item() == 0.0


def test_samples_hold_whole_transitions() -> None:
    buffer = replay()
    store(buffer, [1.0, 2.0, 3.0], n_steps=[1, 2, 3])
    batch = buffer.sample(50)
    name = batch.obs_features[:, 0]
    assert set(name.tolist()) == {1.0, 2.0, 3.0}
    assert torch.equal(batch.obs_features, name[:, None].expand(50, 2))
    assert torch.equal(batch.latent, name[:, None].expand(50, 3) + 100)
    assert torch.equal(batch.reward, name + 200)
    assert torch.equal(batch.next_obs_features, name[:, None].expand(50, 2) + 300)
    assert torch.equal(batch.discount, 0.5**name)


def test_only_filled_rows_are_sampled() -> None:
    buffer = replay(capacity=1000)
    store(buffer, [5.0, 6.0])
    assert len(buffer) == 2
    assert set(buffer.sample(200).obs_features[:, 0].tolist()) == {5.0, 6.0}


def test_the_oldest_transitions_make_room() -> None:
    buffer = replay(capacity=4)
    for first in (0.0, 3.0, 6.0):
        store(buffer, [first, first + 1, first + 2])
    # 0..8 stored in a ring of 4: 5, 6, 7, 8 remain; 8 sits where 4 was, at row 8 mod 4 = 0
    assert len(buffer) == 4
    assert buffer.total_added == 9
    assert buffer.obs_features[:, 0].tolist() == [8.0, 5.0, 6.0, 7.0]
    assert buffer.reward.tolist() == [208.0, 205.0, 206.0, 207.0]
    assert set(buffer.sample(200).obs_features[:, 0].tolist()) == {5.0, 6.0, 7.0, 8.0}


def test_sampling_is_uniform_over_the_stored_rows() -> None:
    buffer = replay(capacity=4)
    store(buffer, [0.0, 1.0, 2.0, 3.0])
    counts = torch.bincount(buffer.sample(4000).obs_features[:, 0].long(), minlength=4)
    assert (counts - 1000).abs().max() < 150  # standard deviation 27


def test_sampling_is_reproduced_by_the_generator_alone() -> None:
    draws = []
    for global_seed, seed in ((0, 7), (1, 7), (0, 8)):
        torch.manual_seed(global_seed)
        buffer = replay(capacity=64, seed=seed)
        store(buffer, [float(i) for i in range(64)])
        draws.append(buffer.sample(32).reward.tolist())
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


FIELDS = MacroReplayBuffer._FIELDS


def assert_same_buffers(first: MacroReplayBuffer, second: MacroReplayBuffer) -> None:
    assert (len(first), first.total_added) == (len(second), second.total_added)
    for name in FIELDS:
        assert torch.equal(getattr(first, name)[: len(first)], getattr(second, name)[: len(first)]), name
    one, other = first.sample(40), second.sample(40)
    assert torch.equal(one.reward, other.reward)


@pytest.mark.parametrize("saves", [[3], [11], [3, 2, 0, 9], [5, 8, 8, 8]])
def test_saved_files_restore_the_buffer_however_often_it_was_saved(tmp_path: Path, saves: list[int]) -> None:
    original, files = replay(capacity=8, seed=1), ReplayFiles(tmp_path)
    written: set[str] = set()
    for count in saves:
        for i in range(count):
            store(original, [float(original.total_added + i)], terminated=[i % 2 == 0])
        original.sample(5)
        state = files.save(original)
        files.discard_older()
        new = {path.name for path in tmp_path.glob("*.pt")} - written
        assert len(new) == int(count > 0)  # a save writes what is new and nothing else
        written |= new
    torch.save(state, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    restored, again = replay(capacity=8, seed=99), ReplayFiles(tmp_path)
    again.load(restored, state)
    assert_same_buffers(original, restored)
    for buffer, folder in ((original, files), (restored, again)):
        store(buffer, [50.0, 51.0], n_steps=[2, 3], terminated=[True, False])
        state = folder.save(buffer)
    third = replay(capacity=8, seed=0)
    ReplayFiles(tmp_path).load(third, state)
    assert_same_buffers(original, third)
    # of a ring of 8 no more files are kept than the last two saves need
    assert len(list(tmp_path.glob("*.pt"))) <= len(saves) + 1


def test_files_that_no_checkpoint_lists_are_dropped_after_the_next_save(tmp_path: Path) -> None:
    buffer, files = replay(capacity=8), ReplayFiles(tmp_path)
    store(buffer, [1.0, 2.0])
    state = files.save(buffer)
    store(buffer, [3.0])
    files.save(buffer)  # and then the process was killed before its checkpoint was written
    restored = replay(capacity=8)
    again = ReplayFiles(tmp_path)
    again.load(restored, state)
    assert len(restored) == 2
    store(restored, [4.0, 5.0])
    state = again.save(restored)
    again.discard_older()
    names = [entry["name"] for entry in state["files"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == names and len(names) == 2


def test_replay_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    buffer, files = replay(capacity=4), ReplayFiles(tmp_path)
    store(buffer, [1.0, 2.0, 3.0])
    state = files.save(buffer)
    with pytest.raises(InputError, match="replay_buffer_size: expected 4 as when it was saved, got 2"):
        files.load(replay(capacity=2), state)
    path = tmp_path / state["files"][0]["name"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + b"x" + whole[-19:])
    with pytest.raises(InputError, match=r"expected the replay file .* as it was saved, it was altered"):
        files.load(replay(capacity=4), state)
    path.unlink()
    with pytest.raises(InputError, match="it does not exist"):
        files.load(replay(capacity=4), state)


def test_rows_that_the_ring_does_not_hold_are_refused() -> None:
    buffer = replay(capacity=4)
    store(buffer, [float(i) for i in range(6)])
    assert buffer.rows(2, 6)["reward"].tolist() == buffer.reward[torch.tensor([2, 3, 0, 1])].tolist()
    with pytest.raises(InputError, match="expected transitions between 2 and 6, got 1 to 6"):
        buffer.rows(1, 6)
    with pytest.raises(InputError, match=r"latent: expected shape \(1, \d+\) of torch.float32, got \(1, 9\)"):
        buffer.put_rows(0, 1, {**buffer.rows(5, 6), "latent": torch.zeros(1, 9)})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["obs_features", "latent", "reward", "next_obs_features"])
def test_non_finite_numbers_are_refused_and_leave_the_buffer_alone(field: str, bad: float) -> None:
    buffer = replay()
    store(buffer, [1.0])
    values = {
        "obs_features": torch.zeros(2, 2),
        "latent": torch.zeros(2, 3),
        "reward": torch.zeros(2),
        "next_obs_features": torch.zeros(2, 2),
    }
    values[field].view(-1)[-1] = bad
    flags = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(InputError, match="expected finite"):
        buffer.add(
            **values, terminated=flags, truncated=flags, n_steps=torch.ones(2, dtype=torch.int64), gamma=0.9
        )
    assert len(buffer) == 1
    assert buffer.total_added == 1


def test_an_empty_buffer_cannot_be_sampled_or_be_of_no_size() -> None:
    with pytest.raises(InputError, match="empty buffer"):
        replay().sample(1)
    with pytest.raises(InputError, match="replay_buffer_size"):
        replay(capacity=0)


# --- seeds -----------------------------------------------------------------------------------------------------


def test_streams_of_a_seed_are_reproducible_and_differ_from_each_other() -> None:
    assert derive_seed(3, "replay") == derive_seed(3, "replay")
    seeds = {derive_seed(seed, stream) for seed in range(20) for stream in ("replay", "update", "behaviour")}
    assert len(seeds) == 60
    assert torch.equal(
        torch.randn(4, generator=torch_generator(3, "a")), torch.randn(4, generator=torch_generator(3, "a"))
    )
    assert not torch.equal(
        torch.randn(4, generator=torch_generator(3, "a")), torch.randn(4, generator=torch_generator(3, "b"))
    )
    assert numpy_generator(3, "a").random() == numpy_generator(3, "a").random()


def test_seeding_everything_repeats_network_initialisation() -> None:
    weights = []
    for seed in (5, 5, 6):
        seed_everything(seed)
        weights.append(nn.Linear(2, 2).weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
