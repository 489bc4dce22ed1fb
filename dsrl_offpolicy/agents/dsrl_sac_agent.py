"""Stage 2: soft actor-critic (Haarnoja et al., 2018) on the latent MDP of a frozen base policy (DSRL,
Wagenmaker et al., 2025).

Two regularisers share every line. With ``entropy`` the *cost* of a latent is ``log pi(w|s)``, in nats of w, the
squash's Jacobian included: the bonus measures against the uniform distribution. With ``kl`` it is
``KL(pi(.|s) || anchor)`` in closed form. The anchor is the prior, the noise the base policy was trained with, or
the policy of Stage 1 that the run starts from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.agents.optimization import adam_state, gradient_step
from dsrl_offpolicy.agents.steering_agent import Metrics, SteeringAgent, Update
from dsrl_offpolicy.configs.ranges import Finite, NotNegative, Positive, Rate
from dsrl_offpolicy.configs.shared import LatentCriticConfig, SteeringConfig
from dsrl_offpolicy.contracts import BasePolicy, MacroBatch
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import check_weights
from dsrl_offpolicy.files.plain import reading
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import Gaussian, LatentPolicy, kl_divergence
from dsrl_offpolicy.models.latent_q_network import LatentCritic

Regularizer = Literal["entropy", "kl"]


@dataclass(frozen=True, kw_only=True)
class SACConfig(SteeringConfig, LatentCriticConfig):
    """The settings of SAC in latent space."""

    actor_lr: Positive = 1e-4
    """Learning rate of the latent policy."""
    critic_lr: Positive = 3e-4
    """Learning rate of Q^W."""
    temp_lr: Positive = 1e-4
    """Learning rate of log alpha."""
    tau: Rate = 0.005
    """Polyak rate of the target networks."""
    regularizer: Regularizer = "kl"
    """KL to the prior or the start (--kl_to), or the entropy bonus of plain SAC."""
    kl_to: Literal["auto", "start", "prior"] = "auto"
    """What regularizer=kl measures to: the policy of --stage1_checkpoint, or the prior, which is the same without
    one. auto: the prior, unless Stage 1 found its policy more than target_kl from it."""
    init_temperature: NotNegative = 0.1
    """Initial alpha, in return per nat."""
    learn_temperature: bool = True
    """Adjust alpha to reach the target."""
    target_entropy: Finite | Literal["auto"] = "auto"
    """Target entropy in nats of w; auto is -0.5 * latent_dim."""
    target_kl: NotNegative = 10.0
    """Target KL in nats, for regularizer=kl."""
    backup_entropy: bool = False
    """Count the regulariser in the TD target."""


class Networks(NamedTuple):
    """What the losses are computed with: functions, since the compiled update calls networks by their weights."""

    actor: Callable[[Tensor], Gaussian]
    online: Callable[[Tensor, Tensor], Tensor]
    target: Callable[[Tensor, Tensor], Tensor]
    alpha: Tensor
    anchor: Callable[[Tensor], Gaussian] | None = None
    """What KL is measured to; None is the prior."""


class DSRLSACAgent(SteeringAgent):
    """Actor, critics, temperature and their optimisers.

    ``init_temperature`` 0 together with ``learn_temperature=False`` switches the regulariser off.

    Args:
        critic_input_dim: width of what the critics value beside the features; default: L, latents.

    Raises:
        InputError: a temperature that cannot be learned.
    """

    Config = SACConfig
    judged_by: ClassVar[tuple[str, ...]] = ("q_mean", "alpha", "td_error", "actor_loss", "entropy", "kl")
    critic: LatentCritic

    def __init__(
        self,
        config: SACConfig,
        feature_dim: int,
        layout: LatentLayout,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        base: BasePolicy | None = None,
        critic_input_dim: int | None = None,
    ) -> None:
        super().__init__(config, feature_dim, layout, generator=generator, device=device, base=base)
        temperature, learned = config.init_temperature, config.learn_temperature
        if temperature < 0 or (learned and temperature == 0):
            bound = "> 0 where it is learned" if learned else ">= 0"
            raise InputError(f"init_temperature: expected {bound}, got {temperature}")
        self.actor = LatentPolicy(feature_dim, config.actor_hidden_dims, layout)
        self.critic = LatentCritic(
            feature_dim,
            layout.dim if critic_input_dim is None else critic_input_dim,
            config.critic_hidden_dims,
            config.num_critics,
            layer_norm=config.critic_layer_norm,
        )
        # log 0 = -inf, and exp(-inf) = 0 exactly: a fixed temperature of 0 needs no special case.
        log_alpha = math.log(temperature) if temperature > 0 else -math.inf
        self.log_alpha = nn.Parameter(torch.tensor(log_alpha), requires_grad=learned)
        self.to(device)
        self.anchor: LatentPolicy | None = None
        self.kl_to = config.kl_to
        self.polyak_tau = config.tau
        self.regularizer = config.regularizer
        self.target_entropy = -0.5 * layout.dim if config.target_entropy == "auto" else config.target_entropy
        self.target_kl = config.target_kl
        self.backup_entropy = config.backup_entropy
        self._learning_rates = (config.actor_lr, config.critic_lr)
        groups: list[dict[str, Any]] = [{"params": list(self.actor.parameters()), "lr": config.actor_lr}]
        if learned:  # in the actor's optimiser: a second one would cost a second backward and step
            groups.append({"params": [self.log_alpha], "lr": config.temp_lr})
        self.actor_optimizer = torch.optim.Adam(groups, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.online.parameters(), lr=config.critic_lr, fused=True)

    @property
    def alpha(self) -> Tensor:
        """The temperature, without gradient."""
        return self.log_alpha.detach().exp()

    @property
    def networks(self) -> Networks:
        """The agent's own."""
        return Networks(self.actor, self.critic.online, self.critic.target, self.alpha, self.anchor)

    def started(self, kl_to_prior: float | None = None) -> None:
        """Keep the actor as it is for what KL is measured to, where the settings say so."""
        far = kl_to_prior is None or kl_to_prior > self.target_kl
        if self.regularizer == "kl" and (self.kl_to == "start" or (self.kl_to == "auto" and far)):
            self.anchor = copy.deepcopy(self.actor).requires_grad_(False)

    @property
    def cost_target(self) -> float:
        """What the temperature holds the mean cost at, in nats."""
        return self.target_kl if self.regularizer == "kl" else -self.target_entropy

    def update(self, batch: MacroBatch, *, update_actor: bool = True) -> Metrics:
        """Take one critic step and, unless told otherwise, one actor and one temperature step.

        Returns:
            Detached scalars: ``td_error``, ``q_mean``, ``critic_loss`` and, with the actor, ``alpha``,
            ``entropy``, ``kl``, ``actor_loss``.
        """
        loss, metrics = self.critic_loss(batch)
        gradient_step(self.critic_optimizer, loss)
        self.critic.polyak_update(self.polyak_tau)
        if update_actor:
            loss, actor_metrics, cost = self.actor_loss(batch)
            if self.log_alpha.requires_grad:  # of the two losses each has its own parameters
                loss = loss + self.temperature_loss(cost)
            gradient_step(self.actor_optimizer, loss)
            metrics |= actor_metrics
        return metrics

    def critic_loss(self, batch: MacroBatch) -> tuple[Tensor, Metrics]:
        """Return ``sum_j mean (Q_j(s, w) - y)^2`` with
        ``y = reward + discount * (min_j Qbar_j(s', w') - backup_entropy * alpha * cost(s', w'))``."""
        return self.critic_terms(batch, self.draw_noise(batch), self.networks)

    def critic_terms(self, batch: MacroBatch, noise: Tensor, networks: Networks) -> tuple[Tensor, Metrics]:
        """Compute :meth:`critic_loss` as a pure function of batch, noise of the next latents and networks."""
        target = self.td_target(batch, noise, networks)
        q = networks.online(batch.obs_features, batch.latent)
        error = q - target
        loss = error.square().mean(1).sum()
        detached = error.detach()
        return loss, {
            "critic_loss": loss.detach(),
            "td_error": detached.abs().mean(),
            "q_mean": q.detach().mean(),
        }

    @torch.no_grad()
    def td_target(self, batch: MacroBatch, noise: Tensor, networks: Networks) -> Float[Tensor, " B"]:
        """Return y of :meth:`critic_loss`."""
        dist = networks.actor(batch.next_obs_features)
        latent, log_prob = self.actor.sample(dist, noise)
        value = self.lower_bound(networks.target(batch.next_obs_features, latent))
        if self.backup_entropy:
            is_kl = self.regularizer == "kl"
            cost = self._kl(dist, batch.next_obs_features, networks) if is_kl else log_prob
            value = value - networks.alpha * cost
        target: Tensor = batch.reward + batch.discount * value
        return target

    def lower_bound(self, q: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
        """Return what the TD target takes of the heads: the least."""
        return q.amin(0)

    def actor_loss(self, batch: MacroBatch) -> tuple[Tensor, Metrics, Float[Tensor, " B"]]:
        """Return ``mean (alpha * cost(s, w) - min_j Q_j(s, w))``, w reparameterised; also the detached cost.

        The gradient reaches the actor through the *online* critics, whose parameters are left alone.
        """
        with _frozen(self.critic.online):
            return self.actor_terms(batch, self.draw_noise(batch), self.networks)

    def actor_terms(self, batch: MacroBatch, noise: Tensor, networks: Networks) -> tuple[Tensor, Metrics, Tensor]:
        """Compute :meth:`actor_loss` as a pure function of batch, noise of its latents and networks."""
        dist = networks.actor(batch.obs_features)
        latent, log_prob = self.actor.sample(dist, noise)
        q = networks.online(batch.obs_features, latent).amin(0)
        kl = self._kl(dist, batch.obs_features, networks)
        cost = kl if self.regularizer == "kl" else log_prob
        loss = (networks.alpha * cost - q).mean()
        return (
            loss,
            {
                "actor_loss": loss.detach(),
                "alpha": networks.alpha,
                "entropy": -log_prob.detach().mean(),
                "kl": kl.detach().mean(),
            },
            cost.detach(),
        )

    def temperature_loss(self, cost: Float[Tensor, " B"]) -> Tensor:
        """Return ``-log_alpha * (cost - target)``: alpha rises while the cost is above its target."""
        return -self.log_alpha * (cost.mean() - self.cost_target)

    def compiled(self, batch_size: int) -> Update | None:
        """Return one graph of the whole step; None for an algorithm that replaces ``update``."""
        from dsrl_offpolicy.agents.compiled_update import CompiledUpdate  # which builds on this module

        return CompiledUpdate(self, batch_size) if type(self).update is DSRLSACAgent.update else None

    def scale_learning_rates(self, scale: float) -> None:
        """Set the actor's and the critics' learning rates to ``scale`` times what they began with."""
        optimizers = (self.actor_optimizer, self.critic_optimizer)
        for optimizer, lr in zip(optimizers, self._learning_rates, strict=True):
            optimizer.param_groups[0]["lr"] = scale * lr

    def act(
        self, features: Float[Tensor, "B D"], noise: Float[Tensor, "B T A"], deterministic: bool = False
    ) -> Float[Tensor, "B L"]:
        """Return steered latents, squashed."""
        return self.actor.act(features, noise, deterministic)

    def training_state(self) -> dict[str, Any]:
        """Return everything that the next ``update`` depends on: weights, optimisers, random state."""
        return {
            "networks": self.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned.

        Raises:
            InputError: saved with a learned temperature and loaded without, or the reverse; or of another learner.
                Nothing is loaded.
        """
        with reading("resume: training", "the state of a learner"):
            learned = len(state["actor_optimizer"]["param_groups"]) == 2
            if learned != self.log_alpha.requires_grad:
                raise InputError(f"learn_temperature: expected {learned} as when saved")
            anchor = {name: w for name, w in self.state_dict().items() if name.startswith("anchor.")}
            has_anchor = any(name in state["networks"] for name in anchor)  # runs of earlier versions have none
            check_weights(self, ({} if has_anchor else anchor) | state["networks"], "resume: networks")
            actor = adam_state(self.actor_optimizer, state["actor_optimizer"], "resume: actor_optimizer")
            critic = adam_state(self.critic_optimizer, state["critic_optimizer"], "resume: critic_optimizer")
            self.generator.set_state(state["generator"].cpu())
        if not has_anchor:
            self.anchor = None
        self.load_state_dict(state["networks"])
        self.actor_optimizer.load_state_dict(actor)
        self.critic_optimizer.load_state_dict(critic)

    def draw_noise(self, batch: MacroBatch) -> Float[Tensor, "B L"]:
        """Return standard-normal noise for the latents of one batch."""
        shape = (len(batch.reward), self.layout.dim)
        return torch.randn(shape, generator=self.generator, device=batch.reward.device)

    def _kl(self, dist: Gaussian, features: Tensor, networks: Networks) -> Tensor:
        if networks.anchor is None:
            return self.actor.kl_to_prior(dist)
        return kl_divergence(dist, networks.anchor(features))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients flow through the module and not to its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
