"""Latents, the policy over them and seeds, each against numbers from elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_agents import seeded
from torch import Tensor, nn
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution
from torch.distributions import kl_divergence as torch_kl

from dsrl_offpolicy.models.latent_layout import LatentLayout, squash
from dsrl_offpolicy.models.latent_policy import LOG_SIGMA_MAX, Gaussian, LatentPolicy
from dsrl_offpolicy.models.latent_sources import policy_source, prior_source, squashed_prior_source
from dsrl_offpolicy.seeding import derive_seed, numpy_generator, seed_everything, torch_generator

T, A = 6, 2
ROWS = slice(1, 4)
MODES = ("full", "act_horizon", "repeat")
DIMS = {"full": 12, "act_horizon": 6, "repeat": 2}  # T*A, H*A with H = 3, A


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
