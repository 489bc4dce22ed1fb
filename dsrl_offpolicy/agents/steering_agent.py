"""The contract of a Stage 2 algorithm: what the loop asks of whatever learns to choose latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dsrl_offpolicy.contracts import BasePolicy, LatentSource, MacroBatch
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_policy import LatentPolicy
from dsrl_offpolicy.models.latent_q_network import LatentCritic
from dsrl_offpolicy.models.latent_sources import policy_source

Metrics = dict[str, Tensor]
Update = Callable[..., Metrics]
"""``update(batch, *, update_actor)``, as :meth:`SteeringAgent.update`."""


class SteeringAgent(nn.Module, ABC):
    """A latent policy and whatever trains it.

    A subclass builds its networks and optimisers in ``__init__``, moves them to ``device``, and sets ``actor``
    and, if it has one, ``critic``.

    Attributes:
        Config: a frozen dataclass; each of its fields becomes a flag of ``dsrl stage2`` beside those of the loop.
            Where a field has the name of one of the loop's, it changes that one's default.
        judged_by: the metrics that tell its health, first those worth seeing while it trains.
        takes_distilled_critic: whether ``critic`` may start from the Q^W that Stage 1 distilled (``init_critic``).
        actor: the latent policy that acts, is saved and is evaluated. Stage 1 can start it.
        critic: Q^W, which burn-in trains; None where there is none.

    Args:
        config: has at least the fields of ``Config``.
        feature_dim: D.
        layout: which latents are steered; L = ``layout.dim``.
        generator: source of all randomness in ``update``, on ``device``.
        device: where it computes.
        base: the frozen policy, for an algorithm that decodes latents or asks its critic Q^A. To be kept out of
            the weights: ``self._base = (base,)``.
    """

    Config: ClassVar[type]
    judged_by: ClassVar[tuple[str, ...]] = ()
    takes_distilled_critic: ClassVar[bool] = True
    actor: LatentPolicy
    critic: LatentCritic | None

    def __init__(
        self,
        config: Any,
        feature_dim: int,
        layout: LatentLayout,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        base: BasePolicy | None = None,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.layout = layout
        self.generator = generator
        self.critic = None

    def started(self, kl_to_prior: float | None = None) -> None:
        """Be told that ``actor`` has been given the weights of Stage 1. Nothing follows from it by default.

        Args:
            kl_to_prior: KL(actor || prior) in nats on the states of demonstrations, as Stage 1 measured it; None
                where it did not.
        """

    @abstractmethod
    def update(self, batch: MacroBatch, *, update_actor: bool = True) -> Metrics:
        """Take one gradient step; without ``update_actor`` only the critic's. Return detached scalars."""

    @abstractmethod
    def scale_learning_rates(self, scale: float) -> None:
        """Set the learning rates of actor and critic to ``scale`` times what they began with."""

    @abstractmethod
    def training_state(self) -> dict[str, Any]:
        """Return everything that the next ``update`` depends on: ``networks`` (the ``state_dict``), optimisers,
        random state."""

    @abstractmethod
    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned.

        Raises:
            InputError: the state of another learner. Nothing is loaded.
        """

    def source(self, deterministic: bool = False) -> LatentSource:
        """Return who chooses latents: a sample of the latent policy, or its mean."""
        return policy_source(self.actor, deterministic=deterministic)

    def compiled(self, batch_size: int) -> Update | None:
        """Return a faster ``update`` for batches of that size, or None where there is none.

        Raises:
            RuntimeError: it cannot be compiled here; the agent is as it was.
        """
        return None
