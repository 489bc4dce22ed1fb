"""Stage 1: warm-start of the latent policy by advantage-weighted maximum likelihood (AW-MLE), offline.

For each state M latents are drawn from the prior, decoded by the frozen base policy and scored by its critic
Q^A; the latent policy is fitted to the good ones and held near the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dsrl_offpolicy.agents.optimization import gradient_step
from dsrl_offpolicy.contracts import BasePolicy, Encoding
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import Gaussian, LatentPolicy
from dsrl_offpolicy.models.latent_q_network import LatentCritic

Metrics = dict[str, Tensor]


class Candidates(NamedTuple):
    """M latents for each of B states, from the prior."""

    u: Float[Tensor, "M B L"]
    """Before the squash."""
    latent: Float[Tensor, "M B L"]
    """w = squash(u)."""
    q_heads: Float[Tensor, "K M B"]
    """Q^A of what w decodes to."""


class AWMLEAgent(nn.Module):
    """Fits ``pi(w|s)`` and, if asked, distils Q^W from Q^A on the same candidates.

    Args:
        base_policy: frozen; decodes, and scores by its critic Q^A, which it must have.
        layout: which latents are steered.
        hidden_dims: of the latent policy.
        lr: Adam's learning rate.
        num_candidates: M.
        kappa: score ``q = mean_k Q^A_k - kappa * std_k Q^A_k`` (kappa > 0 is pessimistic).
        baseline_temperature: the seed's Stage 1 ``tau``: ``v = tau * log mean_m exp(q_m / tau)``.
        beta_latent: weights are ``softmax_m(A_m / beta_latent)``.
        advantage_clip: c, ``A = clip(q - v, -c, c)``.
        kl_coef: of KL(pi || prior).
        max_decode: latents decoded in one call at most; bounds memory.
        critic: the Q^W to distil into, or None.
        critic_lr: its learning rate.
        distill_chunks: critic steps per policy step, on disjoint parts of its candidates.
        generator: source of all randomness, on ``device``.
        device: where it computes.
    """

    def __init__(
        self,
        base_policy: BasePolicy,
        layout: LatentLayout,
        *,
        hidden_dims: Sequence[int],
        lr: float,
        num_candidates: int,
        kappa: float,
        baseline_temperature: float,
        beta_latent: float,
        advantage_clip: float,
        kl_coef: float,
        max_decode: int,
        generator: torch.Generator,
        critic: LatentCritic | None = None,
        critic_lr: float = 3e-4,
        distill_chunks: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self._base = (base_policy,)  # in a tuple: the frozen base is not one of this module's weights
        self.layout = layout
        self.policy = LatentPolicy(base_policy.info.feature_dim, hidden_dims, layout)
        self.critic = critic
        self.distill_chunks = distill_chunks
        self._distilled = False
        self.num_candidates = num_candidates
        self.kappa = kappa
        self.baseline_temperature = baseline_temperature
        self.beta_latent = beta_latent
        self.advantage_clip = advantage_clip
        self.kl_coef = kl_coef
        self.max_decode = max_decode
        self.generator = generator
        self.to(device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=lr, fused=True)
        self.critic_optimizer = (
            torch.optim.Adam(critic.online.parameters(), lr=critic_lr, fused=True) if critic else None
        )

    def update(self, features: Float[Tensor, "B D"], candidates: Candidates | None = None) -> Metrics:
        """Take one gradient step on a batch of states. Metrics are detached tensors.

        Args:
            features: of the states.
            candidates: of these states, out of a :class:`CandidatePool`; None draws and decodes fresh ones.
        """
        u, latent, q_heads = candidates or self.candidates(features)
        loss, metrics = self.policy_loss(features, u, q_heads)
        gradient_step(self.optimizer, loss)
        if self.critic_optimizer is not None:
            metrics["distill_loss"] = self._distill(self.critic_optimizer, features, latent, q_heads)
        return metrics

    def training_state(self) -> dict[str, Any]:
        """Return everything that the next ``update`` depends on but a pool: weights, optimisers, random state."""
        return {
            "networks": self.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict() if self.critic_optimizer is not None else None,
            "distilled": self._distilled,
            "generator": self.generator.get_state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        self.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.critic_optimizer is not None:
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self._distilled = state["distilled"]
        self.generator.set_state(state["generator"].cpu())

    def _distill(
        self,
        optimizer: torch.optim.Optimizer,
        features: Float[Tensor, "B D"],
        latent: Float[Tensor, "M B L"],
        q_heads: Float[Tensor, "K M B"],
    ) -> Tensor:
        """One pass over the candidates in ``distill_chunks`` gradient steps; the last one's loss."""
        assert self.critic is not None
        if not self._distilled:  # start at the mean of Q^A, far from which most of the training would be spent
            self.critic.set_output_offset(q_heads.mean((1, 2)))
            self._distilled = True
        chunks = min(self.distill_chunks, self.num_candidates)
        parts = zip(latent.chunk(chunks), q_heads.chunk(chunks, dim=1), strict=True)
        loss = features.new_zeros(())
        for part_latent, part_q in parts:
            loss = self.distillation_loss(features, part_latent, part_q)
            gradient_step(optimizer, loss)
        return loss.detach()

    @torch.no_grad()
    def candidates(self, features: Float[Tensor, "B D"]) -> Candidates:
        """Draw M candidates per state from the prior, decode and score them."""
        shape = (self.num_candidates, len(features), *self._base[0].info.latent_shape)
        noise = torch.randn(shape, generator=self.generator, device=features.device)
        flat = noise.flatten(0, 1)
        u = self.layout.select(flat).unflatten(0, shape[:2])
        latent = self.layout.prior(flat).unflatten(0, shape[:2])
        q = self.score(
            features.expand(self.num_candidates, *features.shape).flatten(0, 1), latent.flatten(0, 1), flat
        )
        return Candidates(u, latent, q.unflatten(1, shape[:2]))

    @torch.no_grad()
    def score(
        self, features: Float[Tensor, "N D"], latent: Float[Tensor, "N L"], noise: Float[Tensor, "N T A"]
    ) -> Float[Tensor, "K N"]:
        """Return Q^A of the chunks that latents decode to, ``max_decode`` at a time."""
        base, critic = self._base[0], self._base[0].critic
        assert critic is not None  # Stage 1 refuses a base policy without one
        full = self.layout.expand(latent, noise)
        scores = []
        for part_features, part in zip(features.split(self.max_decode), full.split(self.max_decode), strict=True):
            chunk = base.decode(Encoding(part_features), part)
            scores.append(critic.q_values(part_features, chunk[:, critic.rows]))
        return torch.cat(scores, dim=1)

    def pessimistic(self, q_heads: Float[Tensor, "K *N"]) -> Float[Tensor, "*N"]:
        """Return ``mean_k - kappa * std_k`` (population standard deviation)."""
        return q_heads.mean(0) - self.kappa * q_heads.std(0, correction=0)

    def advantages(self, q: Float[Tensor, "M B"]) -> Float[Tensor, "M B"]:
        """Return clipped ``q_m - v`` with the soft baseline v of the candidates."""
        tau = self.baseline_temperature
        v = tau * (torch.logsumexp(q / tau, dim=0) - math.log(len(q)))
        return (q - v).clamp(-self.advantage_clip, self.advantage_clip)

    def policy_loss(
        self, features: Float[Tensor, "B D"], u: Float[Tensor, "M B L"], q_heads: Float[Tensor, "K M B"]
    ) -> tuple[Tensor, Metrics]:
        """Return ``mean_s sum_m weight_m * -log pi(w_m|s) + kl_coef * KL(pi || prior)``."""
        advantage = self.advantages(self.pessimistic(q_heads))
        weight = torch.softmax(advantage / self.beta_latent, dim=0)
        dist: Gaussian = self.policy(features)
        log_prob = self.policy.log_prob(dist, u)
        nll = -(weight * log_prob).sum(0).mean()
        kl = self.policy.kl_to_prior(dist).mean()
        loss = nll + self.kl_coef * kl
        return loss, {
            "loss": loss.detach(),
            "nll_loss": nll.detach(),
            "kl_loss": kl.detach(),
            "eff_num": (1 / weight.square().sum(0)).mean(),
            "corr_A_logprob": _pearson(advantage, log_prob.detach()).mean(),
            "advantage_std": advantage.std(0).mean(),
        }

    def distillation_loss(
        self, features: Float[Tensor, "B D"], latent: Float[Tensor, "M B L"], q_heads: Float[Tensor, "K M B"]
    ) -> Tensor:
        """Return the MSE head by head: Q^W head j regresses Q^A head j and no other."""
        assert self.critic is not None
        repeated = features.expand(len(latent), *features.shape).flatten(0, 1)
        q = self.critic.online(repeated, latent.flatten(0, 1))
        return (q - q_heads.flatten(1)).square().mean(1).sum()

    @torch.no_grad()
    def paired_q(
        self, features: Float[Tensor, "B D"], samples: int
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return E[Q(s, w)] under the prior and under the policy, per state, with the same noise for both.

        Q is the mean over heads of Q^A of the decoded chunk.
        """
        totals = []
        repeated = features.repeat_interleave(samples, 0)
        noise = torch.randn(
            (len(repeated), *self._base[0].info.latent_shape), generator=self.generator, device=features.device
        )
        for latent in (self.layout.prior(noise), self.policy.act(repeated, noise)):
            q = self.score(repeated, latent, noise).mean(0)
            totals.append(q.view(len(features), samples).mean(1))
        return totals[0], totals[1]


class CandidatePool:
    """Candidates of a fixed set of states, decoded and scored once; every update draws M of a state's P.

    Memory: ``N * P * (L + K)`` floats for N states.

    Args:
        agent: draws, decodes and scores; its generator also draws from the pool.
        states: of all updates to come.
        size: P, at least M.
    """

    def __init__(self, agent: AWMLEAgent, states: Float[Tensor, "N D"], size: int) -> None:
        self.agent = agent
        self.size = size
        rounds = math.ceil(size / agent.num_candidates)
        at_once = max(agent.max_decode // agent.num_candidates, 1)
        u = states.new_empty(len(states), size, agent.layout.dim)
        heads = agent.candidates(states[:1]).q_heads.shape[0]
        q = states.new_empty(len(states), size, heads)
        for first in range(0, len(states), at_once):
            rows = slice(first, first + at_once)
            for round_ in range(rounds):
                columns = slice(round_ * agent.num_candidates, min((round_ + 1) * agent.num_candidates, size))
                found = agent.candidates(states[rows])
                count = columns.stop - columns.start
                u[rows, columns] = found.u[:count].transpose(0, 1)
                q[rows, columns] = found.q_heads[:, :count].permute(2, 1, 0)
        self._u, self._q = u, q

    def draw(self, index: Int[Tensor, " B"]) -> Candidates:
        """Draw M different candidates for each state at ``index``, beginning anywhere in the pool's ring."""
        agent = self.agent
        first = torch.randint(self.size, index.shape, generator=agent.generator, device=index.device)
        members = (first + torch.arange(agent.num_candidates, device=index.device)[:, None]) % self.size
        u = self._u[index, members]
        return Candidates(u, agent.policy.squash(u), self._q[index, members].permute(2, 0, 1))


def _pearson(x: Float[Tensor, "M B"], y: Float[Tensor, "M B"]) -> Float[Tensor, " B"]:
    x, y = x - x.mean(0), y - y.mean(0)
    return (x * y).sum(0) / (x.norm(dim=0) * y.norm(dim=0)).clamp(min=1e-12)
