"""The types that rooms exchange, and the legend of their shapes.

Shapes, as they stand in every annotation of this package:

=====  =====================================================================
``B``  batch
``D``  features of the frozen observation encoder (all stacked frames)
``S``  state dimensions of one frame, ``o`` frames (``obs_horizon``)
``V``  features of one frame's images (0 without); a frame is ``[visual, state]``
``F``  features of one frame, V + S, so that D = o * F
``T``  rows of a decoded chunk (``pred_horizon``, T_p)
``W``  width of the latent, A for most policies
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

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dsrl_offpolicy.rewards import RewardMode

Observation = Tensor | Mapping[str, Any]
"""A frame stack, oldest frame first: states ``[B, o, S]``, or a mapping with that tensor under ``"state"``, for a
policy of images ``[B, o, H, W, 3k]`` uint8 of k cameras under ``"rgb"``, and whatever keys the environment family
adds: numbers stacked as frames are, strings as a sequence of one per environment."""


def observation_tensors(obs: Any, device: torch.device | str) -> Any:
    """Turn what a vector environment returned (arrays, tensors, or a mapping of them) into tensors on the device.

    A batch of strings, such as instructions, stays as it is. Doubles become floats before they leave the host, for
    some devices have no doubles.
    """
    if isinstance(obs, Mapping):
        return {name: observation_tensors(part, device) for name, part in obs.items()}
    is_text = isinstance(obs, list | tuple) and bool(obs) and isinstance(obs[0], str)
    if is_text:
        return obs
    tensor = torch.as_tensor(obs)
    return (tensor.float() if tensor.dtype == torch.float64 else tensor).to(device)


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


@dataclass(frozen=True)
class RewardTerms:
    """What the rewards are that a critic learned; the fields mean what they mean in ``EnvSpec``. None: unknown."""

    gamma: float | None = None
    reward_mode: RewardMode | None = None
    reward_scale: float | None = None
    end_on_success: bool | None = None

    def known(self) -> RewardTerms:
        """Return the same terms with 0.99, sparse, 1 and True where they are unknown."""
        held = {name: value for name, value in vars(self).items() if value is not None}
        return RewardTerms(**{**vars(DEFAULT_REWARDS), **held})


DEFAULT_REWARDS = RewardTerms(0.99, "sparse", 1.0, True)


@dataclass(frozen=True)
class PolicyInfo:
    """What the other rooms need to know of a base policy.

    Attributes:
        obs_horizon: o, stacked frames per observation.
        state_dim: S.
        feature_dim: D.
        latent_shape: (T, W), rows and width of the initial noise.
        action_shape: (T, A), rows and width of a decoded chunk.
        executed_rows: rows of a chunk that an environment executes. The first belongs to the newest frame.
        env_id: the task it was trained on; empty for unknown.
        control_mode: the controller its actions are for; empty for unknown.
        image_channels: channels of a frame's images, 3 per camera; 0 for a policy of states alone.
        image_size: (height, width) in pixels; None for unknown or any.
    """

    obs_horizon: int
    state_dim: int
    feature_dim: int
    latent_shape: tuple[int, int]
    action_shape: tuple[int, int]
    executed_rows: slice
    env_id: str = ""
    control_mode: str = ""
    image_channels: int = 0
    image_size: tuple[int, int] | None = None

    @property
    def act_horizon(self) -> int:
        """H, env steps per macro-step."""
        return int(self.executed_rows.stop - self.executed_rows.start)

    @property
    def action_dim(self) -> int:
        """A."""
        return self.action_shape[1]

    @property
    def obs_mode(self) -> Literal["state", "rgb"]:
        """What a frame holds: a state, or images and a state."""
        return "rgb" if self.image_channels else "state"


@dataclass(frozen=True)
class Encoding:
    """What a base policy makes of observations.

    Attributes:
        features: ``[B, D]``, read by latent policies and critics, and stored in the replay buffer.
        context: whatever else the policy itself needs to decode (the prefix of a VLA), batch first; None where the
            features say it all.
    """

    features: Float[Tensor, "B D"]
    context: Any = None


class ActionCritic(ABC):
    """Q^A: values of executed actions.

    Attributes:
        rows: the H rows of a chunk that it scores.
        heads: K.
        rewards: those it was trained with.
    """

    rows: slice
    heads: int
    rewards: RewardTerms = RewardTerms()

    @abstractmethod
    def q_values(self, features: Float[Tensor, "B D"], actions: Float[Tensor, "B H A"]) -> Float[Tensor, "K B"]:
        """Return the values of executed actions, every head."""

    def fingerprint(self) -> str:
        """Return a hash of all weights."""
        return weights_digest(*networks_of(self))


class BasePolicy(ABC):
    """A frozen map ``(observation, latent) -> action chunk``, deterministic given the latent.

    Subclasses set ``info`` and define ``encode`` and ``decode``; everything else has a default. They may be
    ``nn.Module``s, which are moved to the device and hashed.

    Attributes:
        info: its task, shapes and rows.
    """

    info: PolicyInfo

    @property
    def critic(self) -> ActionCritic | None:
        """Q^A, where the policy was given one."""
        held = vars(self)  # torch keeps modules in a mapping of their own, which a class attribute would hide
        return held.get("_modules", {}).get("critic", held.get("_critic"))

    @critic.setter
    def critic(self, critic: ActionCritic | None) -> None:
        vars(self)["_critic"] = critic

    @classmethod
    def load(cls, argument: str | None, device: torch.device, **options: Any) -> BasePolicy:
        """Make the policy that ``--base module:Class:argument`` names.

        Args:
            argument: what follows the second colon, or None.
            device: where it computes.
            options: settings that were given for the base policy, such as ``denoising_steps``.
        """
        policy = cls(*(() if argument is None else (argument,)), **options)
        return policy.to(device) if isinstance(policy, nn.Module) else policy

    @abstractmethod
    def encode(self, obs: Observation) -> Encoding:
        """Encode a frame stack: its frames' features, oldest first, and what else decoding needs."""

    @abstractmethod
    def decode(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T A"]:
        """Decode latents to action chunks in [-1, 1]."""

    def encode_frames(self, state: Tensor, rgb: Tensor | None = None) -> Float[Tensor, "N F"]:
        """Encode single frames, so that a frame that several stacks share is encoded once.

        Args:
            state: ``[N, S]``.
            rgb: ``[N, height, width, 3k]`` uint8; needed, and read, only by a policy of images.

        Raises:
            InputError: a wrong shape or dtype, missing images, or another number of cameras.
            NotImplementedError: a policy that encodes whole stacks only.
        """
        raise NotImplementedError(f"{type(self).__name__} encodes whole stacks only")

    def invert(
        self, encoding: Encoding, actions: Float[Tensor, "B T A"]
    ) -> tuple[Float[Tensor, "B T W"], Float[Tensor, " B"]]:
        """Find the latents that decode to ``actions``, and the error that is left of each chunk.

        Args:
            encoding: of the observations.
            actions: whole chunks in [-1, 1].

        Returns:
            The latents, of any magnitude, and the root mean square of ``decode(encoding, latents) - actions`` over
            each chunk. Chunks that the policy cannot make keep a large error; no error is raised for them.

        Raises:
            NotImplementedError: a policy that cannot be inverted.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be inverted")

    def example_observation(self, batch: int) -> Observation:
        """Return a frame stack of the right shapes, for a trial when the policy is loaded. A policy that reads
        more than ``"state"`` and ``"rgb"`` overrides this."""
        info, frames = self.info, (batch, self.info.obs_horizon)
        state = torch.linspace(-1, 1, batch * info.obs_horizon * info.state_dim).reshape(*frames, info.state_dim)
        if not info.image_channels:
            return state
        rgb = torch.full((*frames, *(info.image_size or (64, 64)), info.image_channels), 128, dtype=torch.uint8)
        return {"state": state, "rgb": rgb}

    def fingerprint(self) -> str:
        """Return a hash of what decodes: a latent policy means nothing over another base policy. By default, of
        all weights of the policy and its networks."""
        return weights_digest(*networks_of(self))


def networks_of(thing: object) -> list[nn.Module]:
    """Return the networks that a policy or critic is made of: itself, or what it holds."""
    return (
        [thing] if isinstance(thing, nn.Module) else [v for v in vars(thing).values() if isinstance(v, nn.Module)]
    )


def weights_digest(*modules: nn.Module) -> str:
    """Return the SHA-256 of modules' tensors and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in [item for module in modules for item in module.state_dict().items()]:
        digest.update(name.encode())
        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:  # which numpy does not have
            value = value.view(torch.int16)
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


@runtime_checkable
class LatentSource(Protocol):
    """Anything that chooses latents: the prior, a constant, a latent policy.

    ``noise`` is standard normal and the only source of randomness, so that whoever seeds the noise seeds the
    choice.
    """

    def __call__(
        self, features: Float[Tensor, "B D"], noise: Float[Tensor, "B T W"]
    ) -> Float[Tensor, "B T W"]: ...
