"""The base policy that Stage 0 trains: a shortcut flow over action chunks, with its action critic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.checkpoint import load_weights
from dsrl_offpolicy.contracts import BasePolicy, Observation
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.action_q_network import ActionQNetwork
from dsrl_offpolicy.models.velocity import build_velocity_network, integrate

FEATURE_LIMIT = 10.0
"""Normalised features are clamped to this many standard deviations of the demonstrations."""


@dataclass(frozen=True)
class ShortcutFlowSpec:
    """All that is needed to rebuild a base policy from its weights.

    ``reward_mode``, ``reward_scale``, ``gamma`` and ``end_on_success`` are those Q^A was trained with; a critic
    distilled from it is only right under the same ones.
    """

    env_id: str
    control_mode: str
    state_dim: int
    action_dim: int
    obs_horizon: int
    pred_horizon: int
    act_horizon: int
    velocity_net: str
    velocity_widths: tuple[int, ...]
    embed_dim: int
    denoising_steps: int
    critic_hidden_dims: tuple[int, ...]
    critic_heads: int
    gamma: float
    reward_mode: str
    reward_scale: float
    end_on_success: bool

    @property
    def obs_mode(self) -> str:
        """``state``."""
        return "state"

    @property
    def feature_dim(self) -> int:
        """D."""
        return self.obs_horizon * self.state_dim

    @property
    def executed_rows(self) -> slice:
        """``o-1 : o-1+H``."""
        return slice(self.obs_horizon - 1, self.obs_horizon - 1 + self.act_horizon)

    def build_velocity(self) -> nn.Module:
        """A fresh velocity network of this shape."""
        return build_velocity_network(
            self.velocity_net,  # type: ignore[arg-type]
            self.action_dim,
            self.pred_horizon,
            self.feature_dim,
            self.velocity_widths,
            self.embed_dim,
        )

    def build_critic(self) -> ActionQNetwork:
        """A fresh Q^A of this shape."""
        return ActionQNetwork(
            self.feature_dim, self.act_horizon, self.action_dim, self.critic_hidden_dims, self.critic_heads
        )

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], where: str) -> ShortcutFlowSpec:
        """Rebuild from what a checkpoint holds.

        Raises:
            InputError: missing or unknown fields.
        """
        expected = {f.name for f in fields(cls)}
        if set(values) != expected:
            difference = sorted(expected ^ set(values))
            raise InputError(f"{where}: expected the fields of a base policy, {difference[0]} does not fit")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class StateEncoder(nn.Module):
    """Normalises every frame by the demonstrations' mean and standard deviation, and flattens the stack."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, " S"], std: Float[Tensor, " S"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def fit(cls, states: Float[Tensor, "N S"]) -> StateEncoder:
        """From the demonstrations' states; dimensions that never vary are only centred."""
        std = states.std(0)
        return cls(states.mean(0), torch.where(std > 1e-4, std, torch.ones_like(std)))

    def forward(self, state: Float[Tensor, "B o S"]) -> Float[Tensor, "B D"]:
        normal = ((state - self.mean) / self.std).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
        return normal.flatten(1)


class ShortcutFlowPolicy(BasePolicy, nn.Module):
    """Frozen: its parameters take no gradient, though gradients flow through it to features and latents."""

    def __init__(
        self, spec: ShortcutFlowSpec, encoder: StateEncoder, velocity: nn.Module, critic: ActionQNetwork
    ) -> None:
        nn.Module.__init__(self)
        self.spec = spec
        self.encoder = encoder
        self.velocity = velocity
        self.critic = critic
        self.requires_grad_(False)
        self.eval()
        self.feature_dim = spec.feature_dim
        self.latent_shape = (spec.pred_horizon, spec.action_dim)
        self.executed_rows = spec.executed_rows
        self.critic_rows = spec.executed_rows
        self.obs_horizon = spec.obs_horizon
        self.state_dim = spec.state_dim

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any], where: str) -> ShortcutFlowPolicy:
        """Rebuild from a ``base_policy`` checkpoint (EMA weights).

        Raises:
            InputError: the content does not fit together.
        """
        for key in ("spec", "encoder", "velocity_net_ema", "critic"):
            if not isinstance(content.get(key), Mapping):
                raise InputError(f"{where}: expected an entry {key!r} in a base_policy checkpoint, got none")
        spec = ShortcutFlowSpec.from_plain(content["spec"], where)
        encoder = StateEncoder(torch.zeros(spec.state_dim), torch.ones(spec.state_dim))
        velocity, critic = spec.build_velocity(), spec.build_critic()
        load_weights(encoder, content["encoder"], f"{where}: encoder")
        load_weights(velocity, content["velocity_net_ema"], f"{where}: velocity_net_ema")
        load_weights(critic, content["critic"], f"{where}: critic")
        return cls(spec, encoder, velocity, critic)

    def encode(self, obs: Observation) -> Float[Tensor, "B D"]:
        state = obs if isinstance(obs, Tensor) else obs["state"]
        expected = (self.obs_horizon, self.state_dim)
        if state.ndim != 3 or tuple(state.shape[1:]) != expected:
            raise InputError(f"obs: expected [B, {expected[0]}, {expected[1]}], got {list(state.shape)}")
        features: Tensor = self.encoder(state)
        return features

    def decode(self, features: Float[Tensor, "B D"], latent: Float[Tensor, "B T A"]) -> Float[Tensor, "B T A"]:
        return integrate(self.velocity, latent, features, self.spec.denoising_steps)

    def q_values(self, features: Float[Tensor, "B D"], actions: Float[Tensor, "B H A"]) -> Float[Tensor, "K B"]:
        q: Tensor = self.critic(features, actions)
        return q
