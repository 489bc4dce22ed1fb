"""Stage 2: noise aliasing (DSRL-NA; Wagenmaker et al., CoRL 2025).

The critic Q^A that learns from rewards values executed *actions*. Many latents decode to nearly the same action,
so what is learned from one holds for all; and Q^A can learn from actions that no latent decodes to. The latent
policy ascends Q^W, which is distilled from Q^A and needs no transitions, only states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dsrl_offpolicy.agents.decoded_actions import ActionCriticConfig, ActionDecoder
from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.agents.steering_agent import Metrics
from dsrl_offpolicy.configs.ranges import Share
from dsrl_offpolicy.contracts import BasePolicy, MacroBatch
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_q_network import LatentCritic


@dataclass(frozen=True, kw_only=True)
class NoiseAliasingConfig(ActionCriticConfig):
    """The settings of noise aliasing."""

    distill_actor_fraction: Share = 0.5
    """Share of the latents of the distillation that the actor draws; the prior draws the others."""


class NoiseAliasingAgent(DSRLSACAgent):
    """SAC whose Q^W is distilled from an action critic Q^A, head by head.

    ``critic`` is Q^W, whose targets nobody asks; ``action_critic`` is Q^A with its targets.

    Raises:
        InputError: a base policy or ``steer_mode`` that cannot be decoded anew (see :class:`ActionDecoder`).
    """

    Config = NoiseAliasingConfig
    judged_by = ("q_mean", "alpha", "td_error", "distill_loss", "actor_loss", "entropy", "kl")
    takes_distilled_critic = False

    def __init__(
        self,
        config: NoiseAliasingConfig,
        feature_dim: int,
        layout: LatentLayout,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        base: BasePolicy | None = None,
    ) -> None:
        decoder = ActionDecoder("na", base, layout, device)
        super().__init__(config, feature_dim, layout, generator=generator, device=device, base=base)
        self.decoder = decoder
        self.distill_actor_fraction = config.distill_actor_fraction
        self.action_critic = LatentCritic(
            feature_dim,
            decoder.dim,
            config.critic_hidden_dims,
            config.num_critics,
            layer_norm=config.critic_layer_norm,
        ).to(device)
        # Each loss has its own parameters, so one optimiser and one backward pass serve both.
        both = [*self.critic.online.parameters(), *self.action_critic.online.parameters()]
        self.critic_optimizer = torch.optim.Adam(both, lr=config.critic_lr, fused=True)

    def update(self, batch: MacroBatch, *, update_actor: bool = True) -> Metrics:
        """Take one gradient step of Q^A and of Q^W and, unless told otherwise, one of actor and temperature.

        Returns:
            Detached scalars: SAC's, of which ``td_error`` and ``q_mean`` are of Q^A and ``critic_loss`` is the sum
            of both losses; and ``distill_loss``, Q^W's alone.
        """
        metrics = super().update(batch, update_actor=update_actor)
        self.action_critic.polyak_update(self.polyak_tau)
        return metrics

    def critic_loss(self, batch: MacroBatch) -> tuple[Tensor, Metrics]:
        """Return ``sum_j mean (Q^A_j(s, a) - y)^2``, with a the executed actions and
        ``y = reward + discount * min_j Qbar^A_j(s', base(s', w'))``, plus :meth:`distillation_loss`."""
        actions = self.executed_actions(batch)
        networks = self.networks._replace(
            online=lambda s, w: self.action_critic.online(s, actions),
            target=lambda s, w: self.action_critic.target(s, self.decoder(s, w)),
        )
        loss, metrics = self.critic_terms(batch, self.draw_noise(batch), networks)
        distillation = self.distillation_loss(batch.obs_features, self.distillation_latents(batch))
        loss = loss + distillation
        return loss, metrics | {"critic_loss": loss.detach(), "distill_loss": distillation.detach()}

    @torch.no_grad()
    def executed_actions(self, batch: MacroBatch) -> Float[Tensor, "B HA"]:
        """Return the actions that Q^A learns from: what the stored latents decode to."""
        return self.decoder(batch.obs_features, batch.latent)

    @torch.no_grad()
    def distillation_latents(self, batch: MacroBatch) -> Float[Tensor, "B L"]:
        """Draw a latent for each state, some from the actor and the others from the prior.

        The prior alone would leave Q^W undefined where the actor goes, the actor alone where it might go.
        """
        noise = self.draw_noise(batch)
        # Spread over the batch, whose halves may be of other origin (what happened, demonstrations).
        count = torch.arange(len(noise) + 1, device=noise.device) * self.distill_actor_fraction
        acts = (count + 1e-4).floor().diff() > 0
        latent, _ = self.actor.sample(self.actor(batch.obs_features), noise)
        return torch.where(acts[:, None], latent, self.actor.squash(noise))

    def distillation_loss(self, features: Float[Tensor, "B D"], latent: Float[Tensor, "B L"]) -> Tensor:
        """Return ``sum_j mean (Q^W_j(s, w) - Q^A_j(s, base(s, w)))^2``: head by head, from the online Q^A."""
        with torch.no_grad():
            q = self.action_critic.online(features, self.decoder(features, latent))
        return (self.critic.online(features, latent) - q).square().mean(1).sum()
