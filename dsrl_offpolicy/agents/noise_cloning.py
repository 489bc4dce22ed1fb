"""Stage 1 by noise cloning: the latent policy is fitted to the noise of successful demonstrations.

The base policy's inversion turns each demonstrated chunk into the latent from which it is decoded; maximum
likelihood of these latents needs neither an action critic nor an environment, and takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dsrl_offpolicy.agents.optimization import gradient_step
from dsrl_offpolicy.models.latent_layout import LatentLayout, unsquash
from dsrl_offpolicy.models.latent_policy import LatentPolicy

WITHIN = 0.9
"""Latents beyond this share of the magnitude are cloned as if they stood there: inversion has heavy tails, and
the pre-squash latent of one at the bound is infinite."""


@dataclass(frozen=True)
class Noises:
    """Latents to clone, and the features of the states in which they were chosen."""

    features: Float[Tensor, "N D"]
    latent: Float[Tensor, "N L"]

    def select(self, mask: Tensor) -> Noises:
        """Return those where ``mask`` holds."""
        return Noises(self.features[mask], self.latent[mask])

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Snapshot:
    """A policy after some gradient steps, and the mean negative log-likelihood of held-out noise (nats; NaN
    without)."""

    steps: int
    policy: LatentPolicy
    held_out_nll: float


class NoiseCloning:
    """Fits ``pi(w|s)`` to noises by maximum likelihood.

    Args:
        feature_dim: D.
        layout: which latents are steered.
        hidden_dims: of the latent policy.
        lr: Adam's learning rate.
        batch_size: windows per gradient step.
        generator: source of the batches, on ``device``.
        device: where it computes.
    """

    def __init__(
        self,
        feature_dim: int,
        layout: LatentLayout,
        *,
        hidden_dims: Sequence[int],
        lr: float,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        self.policy = LatentPolicy(feature_dim, hidden_dims, layout).to(device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=lr, fused=True)
        self.batch_size = batch_size
        self.generator = generator

    def nll(self, noises: Noises) -> Tensor:
        """Return ``mean -log pi(w|s)`` in nats, each w drawn in to ``WITHIN`` of the magnitude."""
        policy = self.policy
        u = unsquash(noises.latent, policy.layout.magnitude, WITHIN)
        return -policy.log_prob(policy(noises.features), u).mean()

    def update(self, noises: Noises) -> Tensor:
        """Take one gradient step on a batch of ``noises``; returns the detached loss."""
        index = torch.randint(
            len(noises), (self.batch_size,), generator=self.generator, device=noises.features.device
        )
        loss = self.nll(noises.select(index))
        gradient_step(self.optimizer, loss)
        return loss.detach()

    def snapshots(self, noises: Noises, held_out: Noises, steps: Sequence[int]) -> Iterator[Snapshot]:
        """Train, and yield the policy after each of ``steps`` gradient steps (ascending): the best number of them
        is a matter of evaluation, and the likelihood of few held-out episodes judges it poorly."""
        done = 0
        for until in steps:
            for _ in range(done, until):
                self.update(noises)
            done = until
            with torch.no_grad():
                nll = float(self.nll(held_out)) if len(held_out) else float("nan")
            yield Snapshot(done, copy.deepcopy(self.policy), nll)
