"""What algorithms with an action critic share: their settings, and the actions that latents decode to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dsrl_offpolicy.agents.dsrl_sac_agent import SACConfig
from dsrl_offpolicy.configs.ranges import Count, Positive, Widths
from dsrl_offpolicy.contracts import BasePolicy, Encoding, networks_of, observation_tensors
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.latent_layout import LatentLayout


@dataclass(frozen=True, kw_only=True)
class ActionCriticConfig(SACConfig):
    """SAC's settings, of which those of its critic are here Q^A's."""

    critic_lr: Positive = SACConfig.critic_lr
    """Learning rate of Q^A, and of Q^W where there is one."""
    critic_hidden_dims: Widths = SACConfig.critic_hidden_dims
    """Widths of the layers of Q^A, and of Q^W where there is one."""
    num_critics: Count = SACConfig.num_critics
    """Heads of Q^A, and of Q^W where there is one."""
    critic_layer_norm: bool = SACConfig.critic_layer_norm
    """LayerNorm in Q^A, and in Q^W where there is one."""


class ActionDecoder:
    """Decodes stored latents to the actions that were executed, flat: ``([B, D], [B, L]) -> [B, H * A]``.

    The base policy is deterministic given features and latent, so nothing need be stored. It is frozen here:
    gradients flow through it to the latents, never to its weights.

    Args:
        algo: the algorithm, to name in an error.
        base: the base policy.
        layout: which latents are steered.
        device: where it computes.
        differentiable: ask for a decode that passes gradients on to its latent.

    Raises:
        InputError: no base policy; one that decodes from more than features, or passes no gradient on where asked
            to; a ``steer_mode`` whose latents leave rows to noise that is not stored.
    """

    def __init__(
        self,
        algo: str,
        base: BasePolicy | None,
        layout: LatentLayout,
        device: torch.device | str,
        *,
        differentiable: bool = False,
    ) -> None:
        if base is None:
            raise InputError(f"algo: {algo} decodes latents and needs a base policy, got none")
        if layout.mode == "act_horizon":
            raise InputError(
                f"steer_mode: expected full or repeat with algo {algo}, got act_horizon, whose latents alone do "
                "not say which actions were executed"
            )
        self.base, self.layout = base, layout
        for network in networks_of(base):
            network.requires_grad_(False)
        with torch.no_grad():
            encoding = base.encode(observation_tensors(base.example_observation(1), device))
        if encoding.context is not None:
            raise InputError(
                f"algo: {algo} decodes latents from stored features, but this base policy decodes from a context "
                "besides; use sac"
            )
        latent = torch.zeros(1, layout.dim, device=device, requires_grad=True)
        if differentiable and not self(encoding.features, latent).requires_grad:
            raise InputError(
                f"algo: {algo} follows the gradient through the base policy, and the decode of this one passes "
                "none on; use na"
            )

    @property
    def dim(self) -> int:
        """H * A."""
        return self.base.info.act_horizon * self.base.info.action_dim

    def __call__(self, features: Float[Tensor, "B D"], latent: Float[Tensor, "B L"]) -> Float[Tensor, "B HA"]:
        # neither mode leaves rows to the prior, so any noise will do
        unused = latent.new_zeros(len(latent), *self.base.info.latent_shape)
        chunk = self.base.decode(Encoding(features), self.layout.expand(latent, unused))
        return chunk[:, self.base.info.executed_rows].flatten(1)
