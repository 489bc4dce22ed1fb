"""The base policy that Stage 0 trains: a shortcut flow over action chunks, with its action critic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.base_policies.observation_encoder import FEATURE_LIMIT, ObservationEncoder, check_images
from dsrl_offpolicy.contracts import (
    ActionCritic,
    BasePolicy,
    Encoding,
    Observation,
    PolicyInfo,
    RewardMode,
    RewardTerms,
    weights_digest,
)
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import check_weights, load_checkpoint, load_weights
from dsrl_offpolicy.files.plain import from_plain, reading, shown
from dsrl_offpolicy.models.action_q_network import ActionQNetwork
from dsrl_offpolicy.models.velocity import VelocityKind, build_velocity_network, integrate, invert_integration
from dsrl_offpolicy.models.visual_encoder import VisualEncoder

VisualPool = Literal["max", "flatten"]

DEFAULT_WEIGHTS = "ema_agent.velocity_net"
"""Weights that are taken from a published file where nothing is said."""

INVERSION_ITERATIONS, INVERSION_SETTLED = 60, 3e-5
"""Most fixed-point iterations per Euler step, and the change at which they end. On one task 10 left an rmse of
1e-4, on another 1e-3, where 20 left 1e-4 and 40 left 3e-6 (MLP, 8 steps)."""

MOST_REPEATS, LARGEST = 1024, 100_000
"""Bounds on what a damaged file can ask for: of horizons, heads and Euler steps, and of a network's dimensions."""


@dataclass(frozen=True)
class ShortcutFlowSpec:
    """All that is needed to rebuild a base policy from its weights.

    ``reward_mode``, ``reward_scale``, ``gamma`` and ``end_on_success`` are those Q^A was trained with; a critic
    distilled from it is only right under the same ones. They are None, and ``env_id`` and ``control_mode`` empty,
    where the file does not say (published checkpoints).

    Attributes:
        image_channels: of a frame's images, 3 per camera; 0 for a policy of states alone.
        visual_dim: V, features of a frame's images.
        image_size: (height, width) in pixels; None for unknown or any.
        visual_pool: how the image encoder ends (see ``VisualEncoder``): ``max`` is the published way, ``flatten``
            keeps positions.
        published: a published AWSC checkpoint: the U-Net takes no step size, Q^A scores rows 0:H, and states are
            neither normalised nor clamped.
    """

    env_id: str
    control_mode: str
    state_dim: int
    action_dim: int
    obs_horizon: int
    pred_horizon: int
    act_horizon: int
    velocity_net: VelocityKind
    velocity_widths: tuple[int, ...]
    embed_dim: int
    denoising_steps: int
    critic_hidden_dims: tuple[int, ...]
    critic_heads: int
    gamma: float | None
    reward_mode: RewardMode | None
    reward_scale: float | None
    end_on_success: bool | None
    image_channels: int = 0
    visual_dim: int = 0
    image_size: tuple[int, int] | None = None
    visual_pool: VisualPool = "max"
    published: bool = False

    @property
    def feature_dim(self) -> int:
        """D."""
        return self.obs_horizon * (self.visual_dim + self.state_dim)

    @property
    def rewards(self) -> RewardTerms:
        """What Q^A was trained with, as far as the file says."""
        return RewardTerms(self.gamma, self.reward_mode, self.reward_scale, self.end_on_success)

    @property
    def info(self) -> PolicyInfo:
        """What other rooms need of it."""
        chunk = (self.pred_horizon, self.action_dim)
        return PolicyInfo(
            obs_horizon=self.obs_horizon,
            state_dim=self.state_dim,
            feature_dim=self.feature_dim,
            latent_shape=chunk,
            action_shape=chunk,
            executed_rows=self.executed_rows,
            env_id=self.env_id,
            control_mode=self.control_mode,
            image_channels=self.image_channels,
            image_size=self.image_size,
        )

    @property
    def executed_rows(self) -> slice:
        """``o-1 : o-1+H``."""
        return slice(self.obs_horizon - 1, self.obs_horizon - 1 + self.act_horizon)

    @property
    def critic_rows(self) -> slice:
        """The rows that Q^A was trained on."""
        return slice(0, self.act_horizon) if self.published else self.executed_rows

    def build_visual(self) -> VisualEncoder | None:
        """Build a fresh image encoder of this shape; None for a policy of states alone."""
        if not self.image_channels:
            return None
        size = self.image_size if self.visual_pool == "flatten" else None
        return VisualEncoder(self.image_channels, self.visual_dim, size)

    def build_encoder(self) -> ObservationEncoder:
        """Build a fresh encoder of this shape that leaves states as they are (a published one clamps nothing)."""
        limit = math.inf if self.published else FEATURE_LIMIT
        mean, std = torch.zeros(self.state_dim), torch.ones(self.state_dim)
        return ObservationEncoder(mean, std, self.build_visual(), limit=limit)

    def build_velocity(self) -> nn.Module:
        """Build a fresh velocity network of this shape."""
        return build_velocity_network(
            self.velocity_net,
            self.action_dim,
            self.pred_horizon,
            self.feature_dim,
            self.velocity_widths,
            self.embed_dim,
            use_step_size=not self.published,
        )

    def build_critic(self) -> ActionQNetwork:
        """Build a fresh Q^A of this shape."""
        return ActionQNetwork(
            self.feature_dim, self.act_horizon, self.action_dim, self.critic_hidden_dims, self.critic_heads
        )

    @classmethod
    def from_plain(cls, values: Any, where: str) -> ShortcutFlowSpec:
        """Rebuild from what a checkpoint holds.

        Raises:
            InputError: fields that are missing, unknown, of another type or out of range.
        """
        spec = from_plain(cls, values, where)
        for name in ("obs_horizon", "pred_horizon", "act_horizon", "denoising_steps", "critic_heads"):
            _check_range(where, name, getattr(spec, name), 1, MOST_REPEATS)
        for name in (
            "state_dim",
            "action_dim",
            "embed_dim",
            "velocity_widths",
            "critic_hidden_dims",
            "image_size",
        ):
            value = getattr(spec, name)
            for width in value if isinstance(value, tuple) else (value,):
                _check_range(where, name, 1 if width is None else width, 1, LARGEST)
        for name in ("image_channels", "visual_dim"):
            _check_range(where, name, getattr(spec, name), 0, LARGEST)
        if bool(spec.image_channels) != bool(spec.visual_dim):
            raise InputError(
                f"{where}: expected image_channels and visual_dim to be both 0 or both not, got "
                f"{spec.image_channels} and {spec.visual_dim}"
            )
        if spec.embed_dim < 4 or spec.embed_dim % 2 or not spec.velocity_widths:
            raise InputError(f"{where}: expected an even embed_dim >= 4 and at least one of velocity_widths")
        if spec.executed_rows.stop > spec.pred_horizon:
            raise InputError(
                f"{where}: pred_horizon: expected at least obs_horizon - 1 + act_horizon = "
                f"{spec.executed_rows.stop}, got {spec.pred_horizon}"
            )
        return spec

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _check_range(where: str, name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{where}: {name}: expected a whole number from {least} to {most}, got {shown(value)}")


class FlowCritic(ActionCritic, nn.Module):
    """Q^A as Stage 0 trains it and published checkpoints hold it."""

    def __init__(self, network: ActionQNetwork, spec: ShortcutFlowSpec) -> None:
        nn.Module.__init__(self)
        self.network = network
        self.rows, self.heads, self.rewards = spec.critic_rows, spec.critic_heads, spec.rewards

    def q_values(self, features: Float[Tensor, "B D"], actions: Float[Tensor, "B H A"]) -> Float[Tensor, "K B"]:
        q: Tensor = self.network(features, actions)
        return q


class ShortcutFlowPolicy(BasePolicy, nn.Module):
    """Frozen: its parameters take no gradient, though gradients flow through it to features and latents."""

    def __init__(
        self, spec: ShortcutFlowSpec, encoder: ObservationEncoder, velocity: nn.Module, critic: ActionQNetwork
    ) -> None:
        nn.Module.__init__(self)
        self.spec = spec
        self.info = spec.info
        self.encoder = encoder
        self.velocity = velocity
        self.critic = FlowCritic(critic, spec)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, argument: str | None, device: torch.device, **options: Any) -> ShortcutFlowPolicy:
        """Load a file that ``dsrl pretrain`` wrote.

        Args:
            argument: the file.
            device: where it computes.
            options: may only repeat what the file says (see :meth:`from_checkpoint`); ``flag`` is the setting to
                name in an error.
        """
        flag = options.pop("flag", "base")
        path = Path(argument or "")
        content = load_checkpoint(path, "base_policy", flag, device)
        return cls.from_checkpoint(content, f"{flag}: {path}", **options).to(device)

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any], where: str, **options: Any) -> ShortcutFlowPolicy:
        """Rebuild from a ``base_policy`` checkpoint (EMA weights).

        Args:
            content: of the file.
            where: setting and path to name in an error.
            options: fields of the spec, which must be those of the file.

        Raises:
            InputError: the content does not fit together, or an option contradicts it.
        """
        names = ("encoder", "velocity_net_ema", "critic")
        for key in ("spec", *names):
            if not isinstance(content.get(key), Mapping):
                raise InputError(f"{where}: expected an entry {key!r} in a base_policy checkpoint, got none")
        spec = ShortcutFlowSpec.from_plain(content["spec"], where)
        weights = options.pop("weights", DEFAULT_WEIGHTS)
        if weights != DEFAULT_WEIGHTS:
            raise InputError(
                f"weights: expected the default {DEFAULT_WEIGHTS}, since {where} holds one set, got {weights!r}"
            )
        for name, given in options.items():
            if given != getattr(spec, name):
                raise InputError(f"{name}: expected {getattr(spec, name)} as in {where}, got {given}")
        builders = (spec.build_encoder, spec.build_velocity, spec.build_critic)
        # First without memory: what the spec says may be any size, until the tensors are seen to be of it.
        with torch.device("meta"), reading(where, "dimensions that make networks"):
            for name, build in zip(names, builders, strict=True):
                check_weights(build(), content[name], f"{where}: {name}")
        networks = [build() for build in builders]
        for name, network in zip(names, networks, strict=True):
            load_weights(network, content[name], f"{where}: {name}")
        encoder, velocity, critic = networks
        return cls(spec, encoder, velocity, critic)  # type: ignore[arg-type]

    def encode(self, obs: Observation) -> Encoding:
        info = self.info
        state, rgb = (obs, None) if isinstance(obs, Tensor) else (obs.get("state"), obs.get("rgb"))
        expected = f"[B, {info.obs_horizon}, {info.state_dim}]"
        if state is None:
            raise InputError(f"obs: expected a mapping with 'state' {expected}, got {sorted(obs)}")
        if state.ndim != 3 or tuple(state.shape[1:]) != (info.obs_horizon, info.state_dim):
            raise InputError(f"obs: expected {expected}, got {list(state.shape)}")
        if info.image_channels:
            rgb = check_images(rgb, info.image_channels, tuple(state.shape[:2]), info.image_size)
        return Encoding(self.encoder(state, rgb))

    def encode_frames(self, state: Tensor, rgb: Tensor | None = None) -> Float[Tensor, "N F"]:
        if self.info.image_channels:
            rgb = check_images(rgb, self.info.image_channels, tuple(state.shape[:1]), self.info.image_size)
        return self.encoder.encode_frames(state, rgb)

    def decode(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T A"]:
        return integrate(self.velocity, latent, encoding.features, self.spec.denoising_steps)

    def invert(
        self, encoding: Encoding, actions: Float[Tensor, "B T A"]
    ) -> tuple[Float[Tensor, "B T W"], Float[Tensor, " B"]]:
        features, steps = encoding.features, self.spec.denoising_steps
        latent = invert_integration(
            self.velocity, actions, features, steps, INVERSION_ITERATIONS, INVERSION_SETTLED
        )
        with torch.no_grad():
            error = (self.decode(encoding, latent) - actions).square().mean((1, 2)).sqrt()
        return latent, error

    def fingerprint(self) -> str:
        return weights_digest(self.encoder, self.velocity)
