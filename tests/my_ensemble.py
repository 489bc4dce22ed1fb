"""An algorithm of a user's own, as it would stand in a file beside a run: REDQ's subset minimum over an ensemble
(Chen et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent, SACConfig


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig(SACConfig):
    """SAC's settings, and how much of the ensemble a target sees."""

    num_critics: int = 5
    """Heads of Q^W."""
    subset: int = 2
    """Heads drawn at random for each TD target."""
    utd_ratio: float = 1.0
    """Gradient steps per macro-transition stored."""


class Ensemble(DSRLSACAgent):
    """SAC whose target takes the least of a few heads, drawn anew at every step."""

    Config = EnsembleConfig

    def __init__(self, config: EnsembleConfig, *args, **options) -> None:
        super().__init__(config, *args, **options)
        self.subset = config.subset

    def lower_bound(self, q: Tensor) -> Tensor:
        """The least of ``subset`` heads."""
        drawn = torch.randperm(len(q), generator=self.generator, device=q.device)[: self.subset]
        return q[drawn].amin(0)

    def compiled(self, batch_size: int) -> None:
        """Drawing from a generator is nothing for a graph."""
        return None
