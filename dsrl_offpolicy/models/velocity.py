"""Velocity networks of flow and shortcut policies: v(x_t, t, d | features).

Flow time t runs from 0 (noise) to 1 (data); d is the step size that a shortcut model is asked to take
(Frans et al., *One Step Diffusion via Shortcut Models*).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.layers import SinusoidalEmbedding, mlp
from dsrl_offpolicy.models.unet1d import GROUPS, ConditionalUnet1d

VelocityKind = Literal["mlp", "unet"]


class MLPVelocity(nn.Module):
    """For small state tasks: the flattened chunk, the features and embeddings of t and d through an MLP."""

    def __init__(
        self, action_dim: int, pred_horizon: int, feature_dim: int, hidden_dims: Sequence[int], embed_dim: int
    ) -> None:
        super().__init__()
        self.embed_time = SinusoidalEmbedding(embed_dim)
        in_dim = pred_horizon * action_dim + feature_dim + 2 * embed_dim
        self.net = mlp(in_dim, hidden_dims, pred_horizon * action_dim, nn.Mish, layer_norm=False)

    def forward(
        self,
        x: Float[Tensor, "B T A"],
        t: Float[Tensor, " B"],
        d: Float[Tensor, " B"],
        features: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B T A"]:
        inputs = (x.flatten(1), features, self.embed_time(100 * t), self.embed_time(100 * d))
        velocity: Tensor = self.net(torch.cat(inputs, dim=-1)).view_as(x)
        return velocity


class UNetVelocity(nn.Module):
    """The published 1-D U-Net, with its step-size embedding in use.

    Args:
        use_step_size: the published code builds ``step_size_embed`` and ``combine_embed`` and leaves both out
            of the forward pass; False reproduces that, True conditions on d.
    """

    def __init__(
        self,
        action_dim: int,
        pred_horizon: int,
        feature_dim: int,
        widths: Sequence[int],
        embed_dim: int,
        *,
        use_step_size: bool = True,
    ) -> None:
        super().__init__()
        divisor = 2 ** (len(widths) - 1)
        if pred_horizon % divisor:
            raise InputError(
                f"pred_horizon: expected a multiple of {divisor} for a U-Net of {len(widths)} levels, "
                f"got {pred_horizon}"
            )
        if any(width % GROUPS for width in widths):
            raise InputError(f"velocity_widths: expected multiples of {GROUPS} for a U-Net, got {list(widths)}")
        self.use_step_size = use_step_size
        self.unet = ConditionalUnet1d(action_dim, feature_dim, widths, embed_dim)
        self.step_size_embed = nn.Sequential(nn.Linear(1, embed_dim), nn.Mish(), nn.Linear(embed_dim, embed_dim))
        self.combine_embed = nn.Sequential(nn.Linear(2 * embed_dim, embed_dim), nn.Mish())

    def forward(
        self,
        x: Float[Tensor, "B T A"],
        t: Float[Tensor, " B"],
        d: Float[Tensor, " B"],
        features: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B T A"]:
        embedding = self.unet.diffusion_step_encoder(torch.floor(100 * t))
        if self.use_step_size:
            embedding = self.combine_embed(torch.cat((embedding, self.step_size_embed(d[:, None])), dim=-1))
        velocity: Tensor = self.unet(x, embedding, features)
        return velocity


def build_velocity_network(
    kind: VelocityKind,
    action_dim: int,
    pred_horizon: int,
    feature_dim: int,
    widths: Sequence[int],
    embed_dim: int,
    *,
    use_step_size: bool = True,
) -> MLPVelocity | UNetVelocity:
    """Build the velocity network that a Stage 0 configuration names; only a U-Net can leave the step size out."""
    if kind == "unet":
        return UNetVelocity(action_dim, pred_horizon, feature_dim, widths, embed_dim, use_step_size=use_step_size)
    return MLPVelocity(action_dim, pred_horizon, feature_dim, widths, embed_dim)


def integrate(
    network: nn.Module,
    noise: Float[Tensor, "B T A"],
    features: Float[Tensor, "B D"],
    steps: int,
) -> Float[Tensor, "B T A"]:
    """Integrate by Euler from noise (t = 0) to an action chunk (t = 1) in ``steps`` equal steps, clamped."""
    x = noise
    step = torch.full((noise.shape[0],), 1 / steps, dtype=noise.dtype, device=noise.device)
    for i in range(steps):
        # i / steps in double precision: `floor(100 t)` of the U-Net would feel float32's rounding of `step * i`.
        x = x + network(x, torch.full_like(step, i / steps), step, features) / steps
    return x.clamp(-1, 1)


@torch.no_grad()
def invert_integration(
    network: nn.Module,
    actions: Float[Tensor, "B T A"],
    features: Float[Tensor, "B D"],
    steps: int,
    iterations: int,
    settled: float = 0.0,
) -> Float[Tensor, "B T A"]:
    """Run :func:`integrate` backward: find the noise of which it makes ``actions``.

    Each Euler step ``y = x + v(x, t) / N`` is solved for x by the fixed-point iteration ``x <- y - v(x, t) / N``,
    which converges where v / N is a contraction. What does not converge shows when the noise is integrated again.

    Args:
        network: the velocity.
        actions: chunks in [-1, 1]; one at a bound is taken as if it had not been clamped.
        features: of the observations.
        steps: N of the integration.
        iterations: of the fixed-point iteration, per step, at most.
        settled: largest change of any number below which an iteration is the last of its step.
    """
    x = actions
    step = torch.full((len(actions),), 1 / steps, dtype=actions.dtype, device=actions.device)
    for i in reversed(range(steps)):
        reached = x
        for _ in range(iterations):
            before = x
            x = reached - network(x, torch.full_like(step, i / steps), step, features) / steps
            if bool((x - before).abs().nan_to_num().max() < settled):  # chunks that diverged are not waited for
                break
    return x
