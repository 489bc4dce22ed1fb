"""The latent policy pi(w|s): a squashed diagonal Gaussian that starts as the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.models.latent_layout import LatentLayout, squash
from dsrl_offpolicy.models.layers import mlp

LOG_SIGMA_MIN = -5.0
LOG_SIGMA_MAX = 1.0
_LOG_2PI = math.log(2 * math.pi)


def raw_log_sigma(sigma: float) -> float:
    """Return the network's output for a standard deviation, before its bounds.

    Args:
        sigma: between exp(LOG_SIGMA_MIN) and exp(LOG_SIGMA_MAX), both excluded.
    """
    bound = LOG_SIGMA_MIN if sigma < 1 else LOG_SIGMA_MAX
    return bound * math.atanh(math.log(sigma) / bound)


class Gaussian(NamedTuple):
    """A diagonal Gaussian over the pre-squash latent u."""

    mean: Float[Tensor, "B L"]
    log_sigma: Float[Tensor, "B L"]


def kl_divergence(p: Gaussian, q: Gaussian) -> Float[Tensor, " B"]:
    """Return KL(p || q) in nats, closed form: of the latents before the squash and, since that is a bijection,
    of those after it."""
    log_ratio = p.log_sigma - q.log_sigma
    distance = (p.mean - q.mean) * torch.exp(-q.log_sigma)
    return 0.5 * (distance.square() + torch.exp(2 * log_ratio) - 1 - 2 * log_ratio).sum(-1)


class LatentPolicy(nn.Module):
    """``u ~ N(mu(s), sigma(s)^2)``, ``w = b tanh(u / b)`` with b = ``layout.magnitude``.

    The last layer starts at zero, so that mu = 0 and sigma = 1 for every s: a fresh policy is the prior, the
    push-forward of N(0, I) through the same squash. Densities are in nats over all L dimensions.
    """

    def __init__(self, feature_dim: int, hidden_dims: Sequence[int], layout: LatentLayout) -> None:
        super().__init__()
        self.layout = layout
        self.net = mlp(feature_dim, hidden_dims, 2 * layout.dim, nn.ReLU, layer_norm=True)
        head = self.net[-1]
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

    def forward(self, features: Float[Tensor, "B D"]) -> Gaussian:
        return _bounded(self.net(features))

    def squash(self, u: Float[Tensor, "*N L"]) -> Float[Tensor, "*N L"]:
        """Map the pre-squash latent u to w."""
        return squash(u, self.layout.magnitude)

    def log_prob(self, dist: Gaussian, u: Float[Tensor, "*N L"]) -> Float[Tensor, "*N"]:
        """Return log pi(w|s) of ``w = squash(u)``: the Gaussian density of u less the log-Jacobian of the squash.

        Leading dimensions of u broadcast against the batch of ``dist``.
        """
        z = (u - dist.mean) * torch.exp(-dist.log_sigma)
        gaussian = (-0.5 * (z.square() + _LOG_2PI) - dist.log_sigma).sum(-1)
        b = self.layout.magnitude
        if math.isinf(b):
            return gaussian
        # log |dw/du| = log(1 - tanh^2(x)) with x = u/b, in the form that does not underflow.
        x = u / b
        log_jacobian = 2 * (math.log(2) - x - nn.functional.softplus(-2 * x))
        return gaussian - log_jacobian.sum(-1)

    def sample(
        self, dist: Gaussian, noise: Float[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L"], Float[Tensor, " B"]]:
        """Return reparameterised w and its log-probability, from standard-normal noise."""
        u = dist.mean + torch.exp(dist.log_sigma) * noise
        return self.squash(u), self.log_prob(dist, u)

    def kl_to_prior(self, dist: Gaussian) -> Float[Tensor, " B"]:
        """Return KL(pi(.|s) || prior), as :func:`kl_divergence`: before the squash the prior is N(0, I)."""
        zero = torch.zeros_like(dist.mean)
        return kl_divergence(dist, Gaussian(zero, zero))

    @torch.no_grad()
    def act(
        self, features: Float[Tensor, "B D"], noise: Float[Tensor, "B T A"], deterministic: bool = False
    ) -> Float[Tensor, "B L"]:
        """Return steered latents; ``deterministic`` takes the squashed mean. Computed in the weights' own type,
        whatever ``precision`` the policy is trained in: what acts is what is saved."""
        dist = _bounded(self.net.exact(features))
        u = dist.mean if deterministic else dist.mean + torch.exp(dist.log_sigma) * self.layout.select(noise)
        return self.squash(u)


def _bounded(outputs: Float[Tensor, "B outputs"]) -> Gaussian:
    """The Gaussian of the network's outputs."""
    mean, raw = outputs.chunk(2, dim=-1)
    # A smooth bound that maps 0 to 0, so that the fresh policy has sigma = 1 exactly.
    above = LOG_SIGMA_MAX * torch.tanh(raw / LOG_SIGMA_MAX)
    below = LOG_SIGMA_MIN * torch.tanh(raw / LOG_SIGMA_MIN)
    return Gaussian(mean, torch.where(raw > 0, above, below))
