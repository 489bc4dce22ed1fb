"""Macro-transitions that were there before the run: demonstrations as noise, beside the replay buffer."""

from __future__ import annotations

import torch
from torch import Tensor

from dsrl_offpolicy.contracts import MacroBatch


class OfflineTransitions:
    """N macro-transitions that stay as they are, sampled uniformly.

    Args:
        rows: all of them.
        generator: source of the sampling, on their device.
    """

    def __init__(self, rows: MacroBatch, *, generator: torch.Generator) -> None:
        self.rows = rows
        self.generator = generator

    def __len__(self) -> int:
        return len(self.rows.reward)

    def sample(self, batch_size: int) -> MacroBatch:
        """Draw a uniform batch, with replacement."""
        device = self.rows.reward.device
        index = torch.randint(len(self), (batch_size,), generator=self.generator, device=device)
        return MacroBatch(**{name: value.index_select(0, index) for name, value in vars(self.rows).items()})


def joined(first: MacroBatch, second: MacroBatch) -> MacroBatch:
    """Return one batch of two."""
    parts: dict[str, Tensor] = {
        name: torch.cat((value, getattr(second, name))) for name, value in vars(first).items()
    }
    return MacroBatch(**parts)
