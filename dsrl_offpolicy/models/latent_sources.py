"""Ways to choose latents: the prior, the best of several draws, a constant, a latent policy."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsrl_offpolicy.contracts import BasePolicy, Encoding, LatentSource
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.seeding import torch_generator


def prior_source() -> LatentSource:
    """Return the base policy as it was trained: noise from N(0, I)."""

    def choose(features: Tensor, noise: Tensor) -> Tensor:
        return noise

    return choose


def best_of_source(base: BasePolicy, count: int) -> LatentSource:
    """Return best-of-N: of ``count`` draws of the prior, the one whose chunk Q^A's least head values most.

    The noise given is the first draw, and seeds the others: which policy runs beside this one does not matter.

    Args:
        base: decodes from features alone, and has a Q^A.
        count: N; 1 is the base policy.
    """
    critic = base.critic
    assert critic is not None

    def draws(noise: Tensor) -> Tensor:
        seed = int.from_bytes(hashlib.blake2b(noise.cpu().numpy().tobytes(), digest_size=8).digest()) >> 1
        others = torch.randn((count - 1, *noise.shape), generator=torch.Generator().manual_seed(seed))
        return torch.cat([noise[None], others.to(noise)])

    @torch.no_grad()
    def choose(features: Tensor, noise: Tensor) -> Tensor:
        candidates = torch.stack([draws(row) for row in noise])
        repeated = features.repeat_interleave(count, 0)
        chunks = base.decode(Encoding(repeated), candidates.flatten(0, 1))
        value = critic.q_values(repeated, chunks[:, critic.rows]).amin(0).view(len(noise), count)
        return candidates[torch.arange(len(noise), device=noise.device), value.argmax(1)]

    return choose


@dataclass(frozen=True)
class SquashedPriorSource:
    """The prior as a fresh latent policy samples it: squashed, on the steered rows of ``layout``."""

    layout: LatentLayout

    def __call__(self, features: Tensor, noise: Tensor) -> Tensor:
        return self.layout.expand(self.layout.prior(noise), noise)


def squashed_prior_source(layout: LatentLayout) -> LatentSource:
    """Return the prior as a fresh latent policy samples it."""
    return SquashedPriorSource(layout)


def constant_source(latent: Tensor) -> LatentSource:
    """Return the same latent ``[T, A]`` in every state; zeros are the control w = 0."""

    def choose(features: Tensor, noise: Tensor) -> Tensor:
        return latent.to(noise).expand_as(noise)

    return choose


def drawn_constants(shape: tuple[int, int], count: int, seed: int, device: torch.device) -> list[LatentSource]:
    """Return ``count`` constants drawn from the prior, ``shape`` [T, A]; more of them begin with the same ones."""
    generator = torch_generator(seed, "constants")
    return [constant_source(torch.randn(shape, generator=generator).to(device)) for _ in range(count)]


@dataclass(frozen=True)
class PolicySource:
    """A latent policy, sampled or its mean; rows that it does not steer come from the prior."""

    policy: LatentPolicy
    deterministic: bool

    @torch.no_grad()
    def __call__(self, features: Tensor, noise: Tensor) -> Tensor:
        return self.policy.layout.expand(self.policy.act(features, noise, self.deterministic), noise)

    def copied(self, device: torch.device | str) -> PolicySource:
        """Return one with weights of its own, on ``device``, that later gradient steps leave alone."""
        weights = {
            id(weight): nn.Parameter(weight.detach().clone(), requires_grad=False)
            for weight in self.policy.parameters()
        }
        return PolicySource(copy.deepcopy(self.policy, weights).to(device), self.deterministic)


def policy_source(policy: LatentPolicy, *, deterministic: bool) -> LatentSource:
    """Return a latent policy; rows that it does not steer come from the prior."""
    return PolicySource(policy, deterministic)
