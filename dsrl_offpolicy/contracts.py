"""The types that rooms exchange, and the legend of their shapes.

Shapes, as they stand in every annotation of this package:

=====  =====================================================================
``B``  batch
``D``  features of the frozen observation encoder (all stacked frames)
``S``  state dimensions of one frame, ``o`` frames (``obs_horizon``)
``V``  features of one frame's images (0 without); a frame is ``[visual, state]``
``F``  features of one frame, V + S, so that D = o * F
``T``  rows of a decoded chunk (``pred_horizon``, T_p)
``H``  rows that are executed (``act_horizon``)
``A``  action dimensions
``L``  latent dimensions that are steered (``LatentLayout.dim``)
``K``  critic heads
``M``  latent candidates per state
=====  =====================================================================

Units: an *env step* is one primitive simulator step; a *macro-step* is one executed chunk of at most H env
steps; a *gradient step* is one critic update. Entropies and divergences are in nats over all L dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Observation = Tensor | Mapping[str, Tensor]
"""A frame stack, oldest frame first: states ``[B, o, S]``, or a mapping with that tensor under ``"state"`` and,
for a policy of images, ``[B, o, H, W, 3k]`` uint8 of k cameras under ``"rgb"``."""


def observation_tensors(obs: Any, device: torch.device | str) -> Observation:
    """What a vector environment returned (arrays or tensors, or a mapping of them) as tensors on the device."""
    if isinstance(obs, Mapping):
        return {name: torch.as_tensor(part, device=device) for name, part in obs.items()}
    return torch.as_tensor(obs, device=device)


@dataclass(frozen=True)
class MacroBatch:
    """A batch of macro-transitions: what one gradient step of Stage 2 consumes.

    ``reward`` is ``sum_{i<n} gamma^i r_i`` over the n env steps that were really executed, and ``discount`` is
    ``gamma^n * (1 - terminated)``: a time limit is not a termination and keeps its bootstrap.
    """

    obs_features: Float[Tensor, "B D"]
    latent: Float[Tensor, "B L"]
    reward: Float[Tensor, " B"]
    discount: Float[Tensor, " B"]
    next_obs_features: Float[Tensor, "B D"]


@dataclass(frozen=True)
class MacroTransitions:
    """E macro-transitions as they happened: what a collector returns and a learner stores.

    ``reward`` is that of :class:`MacroBatch`; ``n_steps`` counts the env steps that were executed.
    """

    obs_features: Float[Tensor, "E D"]
    latent: Float[Tensor, "E L"]
    reward: Float[Tensor, " E"]
    next_obs_features: Float[Tensor, "E D"]
    terminated: Bool[Tensor, " E"]
    truncated: Bool[Tensor, " E"]
    n_steps: Int[Tensor, " E"]


class BasePolicy(ABC):
    """A frozen map ``(features, latent) -> action chunk``, deterministic given the latent.

    Attributes:
        feature_dim: D.
        latent_shape: (T, A); the latent is the initial noise of the chunk and has its shape.
        executed_rows: the rows of a chunk that an environment executes, ``o-1 : o-1+H``. Row ``o-1`` is the
            action that belongs to the newest frame.
        critic_rows: the H rows of a chunk that ``q_values`` was trained on.
        obs_horizon: o, stacked frames per observation.
        state_dim: S.
        image_channels: channels of a frame's images, 3 per camera; 0 for a policy of states alone.
        visual_dim: V.
        image_size: (height, width) in pixels; None for unknown or any.
    """

    feature_dim: int
    latent_shape: tuple[int, int]
    executed_rows: slice
    critic_rows: slice
    obs_horizon: int
    state_dim: int
    image_channels: int = 0
    visual_dim: int = 0
    image_size: tuple[int, int] | None = None

    @abstractmethod
    def encode(self, obs: Observation) -> Float[Tensor, "B D"]:
        """Features of a frame stack: those of its frames, oldest first."""

    def encode_frames(self, state: Tensor, rgb: Tensor | None = None) -> Float[Tensor, "N F"]:
        """Features of single frames, so that a frame that several stacks share is encoded once.

        Args:
            state: ``[N, S]``.
            rgb: ``[N, height, width, 3k]`` uint8; needed, and read, only by a policy of images.

        Raises:
            InputError: a wrong shape or dtype, missing images, or another number of cameras.
            NotImplementedError: a policy that encodes whole stacks only.
        """
        raise NotImplementedError(f"{type(self).__name__} encodes whole stacks only")

    @abstractmethod
    def decode(self, features: Float[Tensor, "B D"], latent: Float[Tensor, "B T A"]) -> Float[Tensor, "B T A"]:
        """Action chunks in [-1, 1]."""

    @abstractmethod
    def q_values(self, features: Float[Tensor, "B D"], actions: Float[Tensor, "B H A"]) -> Float[Tensor, "K B"]:
        """Q^A of executed actions, every head."""

    @property
    def act_horizon(self) -> int:
        """H, env steps per macro-step."""
        return int(self.executed_rows.stop - self.executed_rows.start)


@runtime_checkable
class LatentSource(Protocol):
    """Anything that chooses latents: the prior, a constant, a latent policy.

    ``noise`` is standard normal and the only source of randomness, so that whoever seeds the noise seeds the
    choice.
    """

    def __call__(
        self, features: Float[Tensor, "B D"], noise: Float[Tensor, "B T A"]
    ) -> Float[Tensor, "B T A"]: ...
