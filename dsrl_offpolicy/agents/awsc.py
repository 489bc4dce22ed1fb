"""Stage 0: an advantage-weighted shortcut flow and its action critic Q^A, from demonstrations alone.

Flow: Frans et al., *One Step Diffusion via Shortcut Models* (flow matching at the smallest step, and
self-consistency: one step of size d must land where two steps of d/2 of the EMA network do).
Critic: implicit Q-learning (Kostrikov et al., 2021) over macro-steps. It never asks Q about actions that the
demonstrations do not hold, which is what makes it safe offline.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dsrl_offpolicy.agents.optimization import gradient_step
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowSpec
from dsrl_offpolicy.models.layers import mlp

Metrics = dict[str, Tensor]

LOWEST_EXPONENT = -60.0
"""Of the largest weight in a batch at least: exp underflows in float32 at -103."""


@dataclass(frozen=True)
class DemoBatch:
    """Windows of demonstrations as tensors (see ``demos.windows.Windows``)."""

    features: Float[Tensor, "B D"]
    chunk: Float[Tensor, "B T A"]
    reward: Float[Tensor, " B"]
    discount: Float[Tensor, " B"]
    next_features: Float[Tensor, "B D"]

    def __len__(self) -> int:
        return len(self.features)

    def gather(self, index: Tensor) -> DemoBatch:
        """Return the windows at ``index``."""
        return DemoBatch(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class AWSCAgent(nn.Module):
    """Trains velocity network (with EMA), Q^A (with targets) and V.

    Args:
        spec: shapes of the base policy.
        lr: learning rate, decayed to zero by a cosine over ``total_iters``.
        total_iters: gradient steps.
        ema_decay: of the velocity network's average, which is what the policy uses.
        consistency_fraction: share of the batch that trains self-consistency, in [0, 1).
        advantage_temperature: beta of the weights ``exp(A / beta)``; infinity weighs all windows alike.
        max_weight: weights are clipped to it, then normalised to mean 1.
        expectile: of V, in [0.5, 1).
        polyak_tau: of Q^A's targets.
        generator: source of all randomness in ``update``, on ``device``.
        device: where it computes.
    """

    def __init__(
        self,
        spec: ShortcutFlowSpec,
        *,
        lr: float,
        total_iters: int,
        ema_decay: float,
        consistency_fraction: float,
        advantage_temperature: float,
        max_weight: float,
        expectile: float,
        polyak_tau: float,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.spec = spec
        self.velocity_net = spec.build_velocity()
        self.velocity_net_ema = copy.deepcopy(self.velocity_net).requires_grad_(False)
        self.critic = spec.build_critic()
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.value = mlp(spec.feature_dim, spec.critic_hidden_dims, 1, nn.Mish, layer_norm=True)
        self.to(device)
        self.ema_decay = ema_decay
        self.consistency_fraction = consistency_fraction
        self.advantage_temperature = advantage_temperature
        self.max_weight = max_weight
        self.expectile = expectile
        self.polyak_tau = polyak_tau
        self.generator = generator
        trained = (self.velocity_net, self.critic, self.value)
        parameters = [p for module in trained for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4, fused=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total_iters)

    def update(self, batch: DemoBatch) -> Metrics:
        """Take one gradient step of all networks. Metrics are detached tensors."""
        actions = batch.chunk[:, self.spec.executed_rows]
        critic_loss, critic_info = self.critic_loss(batch, actions)
        value_loss, value_info, advantage = self.value_loss(batch, actions)
        flow_loss, flow_info = self.flow_loss(batch.features, batch.chunk, self.weights(advantage))
        gradient_step(self.optimizer, critic_loss + value_loss + flow_loss)
        self.scheduler.step()
        with torch.no_grad():
            _ema(self.velocity_net_ema, self.velocity_net, 1 - self.ema_decay)
            _ema(self.critic_target, self.critic, self.polyak_tau)
        return {**critic_info, **value_info, **flow_info}

    def training_state(self) -> dict[str, Any]:
        """Return everything that the next ``update`` depends on: weights, optimiser, schedule, random state."""
        return {
            "networks": self.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        self.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"].cpu())

    def critic_loss(self, batch: DemoBatch, actions: Tensor) -> tuple[Tensor, Metrics]:
        """Return ``sum_k (Q_k(s, a) - r - discount V(s'))^2``, IQL eq. 6 over macro-steps."""
        with torch.no_grad():
            target = batch.reward + batch.discount * self.value(batch.next_features).squeeze(-1)
        q = self.critic(batch.features, actions)
        loss = (q - target).square().mean(1).sum()
        return loss, {"critic_loss": loss.detach(), "q_mean": q.detach().mean()}

    def value_loss(self, batch: DemoBatch, actions: Tensor) -> tuple[Tensor, Metrics, Tensor]:
        """Regress the expectile of V towards ``min_k`` of the target critics, IQL eq. 5; also the advantage."""
        with torch.no_grad():
            q = self.critic_target(batch.features, actions).min(0).values
        v = self.value(batch.features).squeeze(-1)
        advantage = q - v
        weight = torch.where(advantage > 0, self.expectile, 1 - self.expectile)
        loss = (weight * advantage.square()).mean()
        advantage = advantage.detach()
        return loss, {"value_loss": loss.detach(), "advantage_std": advantage.std()}, advantage

    def weights(self, advantage: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return ``exp(A / beta)``, clipped, of mean 1."""
        if math.isinf(self.advantage_temperature):
            return torch.ones_like(advantage)
        exponent = (advantage / self.advantage_temperature).clamp(min=torch.finfo(advantage.dtype).min)
        # Raising all of them changes nothing in the end, and keeps a batch of tiny ones from being 0 / 0.
        exponent = exponent + (LOWEST_EXPONENT - exponent.max()).clamp(min=0)
        weight = torch.exp(exponent).clamp(max=self.max_weight)
        return weight / weight.mean()

    def flow_loss(
        self, features: Float[Tensor, "B D"], chunk: Float[Tensor, "B T A"], weight: Float[Tensor, " B"]
    ) -> tuple[Tensor, Metrics]:
        """Return weighted flow matching and self-consistency on disjoint parts of the batch."""
        size = len(chunk)
        split = size - int(size * self.consistency_fraction)
        noise = torch.randn(chunk.shape, generator=self.generator, device=chunk.device, dtype=chunk.dtype)
        uniform = torch.rand(size, generator=self.generator, device=noise.device)
        smallest = 1 / self.spec.denoising_steps

        t = uniform[:split]
        x0, x1 = noise[:split], chunk[:split]
        x_t = torch.lerp(x0, x1, t[:, None, None])
        v = self.velocity_net(x_t, t, torch.full_like(t, smallest), features[:split])
        matching = (v - (x1 - x0)).square().mean((1, 2))
        loss = (weight[:split] * matching).sum() / size
        info = {"flow_loss": matching.detach().mean(), "weight_max": weight.max()}

        if split < size and self.spec.denoising_steps > 1:
            consistency = self._consistency(noise[split:], chunk[split:], uniform[split:], features[split:])
            loss = loss + (weight[split:] * consistency).sum() / size
            info["consistency_loss"] = consistency.detach().mean()
        return loss, info

    def _consistency(self, x0: Tensor, x1: Tensor, uniform: Tensor, features: Tensor) -> Tensor:
        """``(v(x_t, t, d) - (v1 + v2) / 2)^2``, v1 and v2 being two EMA steps of d/2 (Frans et al., eq. 4)."""
        levels = int(math.log2(self.spec.denoising_steps))
        power = torch.randint(1, levels + 1, uniform.shape, generator=self.generator, device=x0.device)
        d = 2.0**power / self.spec.denoising_steps
        t = torch.floor(uniform / d) * d  # starts that whole steps of d reach
        x_t = torch.lerp(x0, x1, t[:, None, None])
        with torch.no_grad():
            half = d / 2
            v1 = self.velocity_net_ema(x_t, t, half, features)
            v2 = self.velocity_net_ema(x_t + half[:, None, None] * v1, t + half, half, features)
        v = self.velocity_net(x_t, t, d, features)
        error: Tensor = v - (v1 + v2) / 2
        return error.square().mean((1, 2))


class EncoderTraining:
    """Trains an image encoder through the flow, all demonstrations weighing alike, before Stage 0 freezes it.

    The velocity network is trained along and stays as it comes out. Two heads that are thrown away
    afterwards tell the encoder what to look for, since the flow's target is mostly noise: one regresses the chunk
    from the features, the other the poses of the objects, where the demonstrations hold them, from what the
    encoder makes of the newest image. Images can be shifted at random by a few pixels (Yarats et al., *Image
    Augmentation Is All You Need*), which helps only where absolute positions do not matter.

    Args:
        agent: whose velocity network and flow loss are used.
        encoder: learns; it must have a visual part.
        pose_dim: P, standardised numbers of the objects' poses; 0 where there are none.
        lr: learning rate of all, decayed to zero by a cosine over ``total_iters``.
        total_iters: gradient steps.
        shift: pixels, at most, in each direction.
    """

    def __init__(
        self,
        agent: AWSCAgent,
        encoder: ObservationEncoder,
        *,
        pose_dim: int,
        lr: float,
        total_iters: int,
        shift: int,
    ) -> None:
        self.agent = agent
        self.encoder = encoder
        self.shift = shift
        spec = agent.spec
        device = encoder.mean.device
        outputs = spec.pred_horizon * spec.action_dim
        self.chunk_head = mlp(spec.feature_dim, (256,), outputs, nn.Mish, layer_norm=False).to(device)
        self.pose_head = nn.Linear(spec.visual_dim, pose_dim, device=device) if pose_dim else None
        trained = [encoder, agent.velocity_net, self.chunk_head, *([self.pose_head] if self.pose_head else [])]
        parameters = [p for module in trained for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4, fused=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total_iters)

    def update(
        self,
        state: Float[Tensor, "B o S"],
        rgb: UInt8[Tensor, "B o height width C"],
        chunk: Float[Tensor, "B T A"],
        poses: Float[Tensor, "B P"] | None = None,
    ) -> Metrics:
        """Take one gradient step.

        Args:
            state: frame stacks.
            rgb: frame stacks.
            chunk: of the demonstrator.
            poses: of the objects in the newest frame, standardised; None only where ``pose_dim`` is 0.
        """
        agent = self.agent
        features = self.encoder(state, random_shift(rgb, self.shift, agent.generator))
        flow, info = agent.flow_loss(features, chunk, torch.ones(len(chunk), device=chunk.device))
        regression = (self.chunk_head(features).view_as(chunk) - chunk).square().mean()
        metrics = {"encoder_flow_loss": info["flow_loss"], "encoder_regression_loss": regression.detach()}
        loss = flow + regression
        if self.pose_head is not None:
            newest = features.unflatten(1, (agent.spec.obs_horizon, -1))[:, -1, : agent.spec.visual_dim]
            pose_loss = (self.pose_head(newest) - poses).square().mean()
            metrics["encoder_pose_loss"] = pose_loss.detach()
            loss = loss + pose_loss
        gradient_step(self.optimizer, loss)
        self.scheduler.step()
        with torch.no_grad():
            _ema(agent.velocity_net_ema, agent.velocity_net, 1 - agent.ema_decay)
        return metrics

    def training_state(self) -> dict[str, Any]:
        """Return what the next ``update`` depends on besides agent and encoder: heads, optimiser, schedule."""
        return {
            "chunk_head": self.chunk_head.state_dict(),
            "pose_head": self.pose_head.state_dict() if self.pose_head is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        self.chunk_head.load_state_dict(state["chunk_head"])
        if self.pose_head is not None:
            self.pose_head.load_state_dict(state["pose_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def random_shift(
    images: UInt8[Tensor, "B o height width C"], pixels: int, generator: torch.Generator
) -> UInt8[Tensor, "B o height width C"]:
    """Move every stack by its own whole number of pixels, up to ``pixels`` each way; edges repeat."""
    batch, _, height, width, _ = images.shape
    moves = torch.randint(-pixels, pixels + 1, (2, batch, 1), generator=generator, device=images.device)
    rows = (torch.arange(height, device=images.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[1]).clamp(0, width - 1)
    stack = torch.arange(batch, device=images.device)[:, None, None]
    return images.transpose(1, 3)[stack, columns[:, :, None], rows[:, None]].transpose(1, 3)


def _ema(average: nn.Module, source: nn.Module, rate: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), rate)
