"""Replay of macro-transitions: features, not images, in contiguous tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsrl_offpolicy.contracts import MacroBatch, MacroTransitions
from dsrl_offpolicy.errors import InputError, NonFiniteError


class MacroReplayBuffer:
    """A ring of the last ``capacity`` macro-transitions, sampled uniformly.

    ``terminated`` and ``truncated`` are kept apart beside the ``discount`` that learning reads, so that a file
    of transitions can be checked and a discount recomputed.

    Args:
        capacity: macro-transitions.
        feature_dim: D.
        latent_dim: L.
        device: where the tensors live.
        generator: source of the sampling, on ``device``.
    """

    def __init__(
        self,
        capacity: int,
        feature_dim: int,
        latent_dim: int,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1:
            raise InputError(f"replay_buffer_size: expected at least 1, got {capacity}")
        self.capacity = capacity
        self.generator = generator
        self.device = torch.device(device)

        def rows(*width: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros((capacity, *width), dtype=dtype, device=self.device)

        self.obs_features = rows(feature_dim)
        self.latent = rows(latent_dim)
        self.reward = rows()
        self.discount = rows()
        self.next_obs_features = rows(feature_dim)
        self.terminated = rows(dtype=torch.bool)
        self.truncated = rows(dtype=torch.bool)
        self.n_steps = rows(dtype=torch.int32)
        self.size = 0
        self.total_added = 0

    _FIELDS = (
        "obs_features", "latent", "reward", "discount", "next_obs_features", "terminated", "truncated", "n_steps",
    )  # fmt: skip

    def __len__(self) -> int:
        return self.size

    def add(self, transitions: MacroTransitions, *, gamma: float) -> None:
        """Store E transitions; the oldest make room.

        The discount is ``gamma^n * (1 - terminated)``: a truncated transition bootstraps from its
        ``next_obs_features``, which must be those of the true last observation.

        Raises:
            NonFiniteError: in features, latents or rewards; nothing is stored.
            InputError: more transitions than the ring has rows.
        """
        count = len(transitions.reward)
        if count > self.capacity:
            raise InputError(
                f"replay_buffer_size: expected at least the {count} rows that come at once, got {self.capacity}"
            )
        discount = gamma ** transitions.n_steps.to(torch.float32) * ~transitions.terminated
        added = {name: discount if name == "discount" else getattr(transitions, name) for name in self._FIELDS}
        for name in ("obs_features", "latent", "reward", "next_obs_features"):
            if not bool(torch.isfinite(added[name]).all()):
                raise NonFiniteError(
                    f"replay buffer: expected finite numbers, got NaN or infinity in {name}",
                    {"transitions": added},
                )
        index = (self.total_added + torch.arange(count, device=self.device)) % self.capacity
        for name, value in added.items():
            column: Tensor = getattr(self, name)
            column[index] = value.to(column)
        self.total_added += count
        self.size = min(self.size + count, self.capacity)

    def sample(self, batch_size: int) -> MacroBatch:
        """Draw a uniform batch, with replacement.

        Raises:
            InputError: the buffer is empty.
        """
        if self.size == 0:
            raise InputError("replay buffer: expected at least one transition to sample, got an empty buffer")
        index = torch.randint(self.size, (batch_size,), generator=self.generator, device=self.device)
        return MacroBatch(
            self.obs_features.index_select(0, index),
            self.latent.index_select(0, index),
            self.reward.index_select(0, index),
            self.discount.index_select(0, index),
            self.next_obs_features.index_select(0, index),
        )

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        """Return copies of the transitions that were added as number ``start`` to ``stop - 1``, in that order.

        Raises:
            InputError: the ring no longer holds them, or does not yet.
        """
        if not self.total_added - self.size <= start <= stop <= self.total_added:
            raise InputError(
                f"replay buffer: expected transitions between {self.total_added - self.size} and "
                f"{self.total_added}, got {start} to {stop}"
            )
        index = torch.arange(start, stop, device=self.device) % self.capacity
        return {name: getattr(self, name)[index].cpu() for name in self._FIELDS}

    def put_rows(self, start: int, stop: int, rows: Mapping[str, Any]) -> None:
        """Put transitions back where number ``start`` to ``stop - 1`` were; :meth:`restore_counters` comes last.

        Raises:
            InputError: fields that are missing, of another shape or type, or not finite; nothing is put.
        """
        for name in self._FIELDS:
            column, found = getattr(self, name), rows.get(name)
            expected = (stop - start, *column.shape[1:])
            got = (tuple(found.shape), found.dtype) if isinstance(found, Tensor) else ("none", "none")
            if got != (expected, column.dtype):
                raise InputError(
                    f"replay buffer: {name}: expected shape {expected} of {column.dtype}, got {got[0]} of {got[1]}"
                )
            if column.is_floating_point() and not bool(rows[name].isfinite().all()):
                raise InputError(f"replay buffer: {name}: expected finite numbers, got NaN or infinity")
        index = torch.arange(start, stop, device=self.device) % self.capacity
        for name in self._FIELDS:
            column = getattr(self, name)
            column[index] = rows[name].to(column)

    def restore_counters(self, total_added: int, generator_state: Tensor) -> None:
        """Restore how many transitions were ever added, and the sampler's state."""
        self.generator.set_state(generator_state.cpu())
        self.total_added = total_added
        self.size = min(total_added, self.capacity)
