"""Ways to choose latents: the prior, a constant, a latent policy."""

from __future__ import annotations

import torch
from torch import Tensor

from dsrl_offpolicy.contracts import LatentSource
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import LatentPolicy


def prior_source() -> LatentSource:
    """Return the base policy as it was trained: noise from N(0, I)."""

    def choose(features: Tensor, noise: Tensor) -> Tensor:
        return noise

    return choose


def squashed_prior_source(layout: LatentLayout) -> LatentSource:
    """Return the prior as a fresh latent policy samples it: squashed, on the steered rows of ``layout``."""

    def choose(features: Tensor, noise: Tensor) -> Tensor:
        return layout.expand(layout.prior(noise), noise)

    return choose


def constant_source(latent: Tensor) -> LatentSource:
    """Return the same latent ``[T, A]`` in every state; zeros are the control w = 0."""

    def choose(features: Tensor, noise: Tensor) -> Tensor:
        return latent.to(noise).expand_as(noise)

    return choose


def policy_source(policy: LatentPolicy, *, deterministic: bool) -> LatentSource:
    """Return a latent policy; rows that it does not steer come from the prior."""

    @torch.no_grad()
    def choose(features: Tensor, noise: Tensor) -> Tensor:
        return policy.layout.expand(policy.act(features, noise, deterministic), noise)

    return choose
