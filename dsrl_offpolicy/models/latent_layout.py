"""Which part of the noise is steered: the latent of Stage 1 and 2 against the noise of the base policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dsrl_offpolicy.configs.shared import SteerMode


def squash(u: Tensor, magnitude: float) -> Tensor:
    """Return ``b * tanh(u / b)``: the identity for |u| << b, and exactly the identity for b = inf."""
    return u if math.isinf(magnitude) else magnitude * torch.tanh(u / magnitude)


def unsquash(w: Tensor, magnitude: float, within: float) -> Tensor:
    """Return the u whose squash is ``w``, with w drawn in to ``within`` (below 1) of the magnitude."""
    if math.isinf(magnitude):
        return w
    return magnitude * torch.atanh((w / magnitude).clamp(-within, within))


@dataclass(frozen=True)
class LatentLayout:
    """Maps between steered latents ``[B, L]`` and the noise ``[B, T, A]`` that the base policy decodes.

    Modes: ``full`` steers all T rows; ``act_horizon`` only the rows that are executed (the others come from
    the prior and are seen by neither log pi nor Q); ``repeat`` steers one row that stands in all T rows.
    """

    mode: SteerMode
    pred_horizon: int
    action_dim: int
    executed_rows: slice
    magnitude: float

    @property
    def rows(self) -> int:
        """Number of steered rows."""
        if self.mode == "full":
            return self.pred_horizon
        if self.mode == "act_horizon":
            return int(self.executed_rows.stop - self.executed_rows.start)
        return 1

    @property
    def dim(self) -> int:
        """L."""
        return self.rows * self.action_dim

    def select(self, full: Float[Tensor, "B T A"]) -> Float[Tensor, "B L"]:
        """Return the steered part of a full noise tensor."""
        if self.mode == "full":
            part = full
        elif self.mode == "act_horizon":
            part = full[:, self.executed_rows]
        else:
            part = full[:, :1]
        return part.reshape(full.shape[0], self.dim)

    def expand(self, latent: Float[Tensor, "B L"], noise: Float[Tensor, "B T A"]) -> Float[Tensor, "B T A"]:
        """Return the noise to decode: ``latent`` where it steers, the prior elsewhere.

        Args:
            latent: steered part, already squashed.
            noise: standard normal; rows that are not steered are its squashed values.
        """
        part = latent.reshape(-1, self.rows, self.action_dim)
        if self.mode == "full":
            return part
        if self.mode == "repeat":
            return part.expand(-1, self.pred_horizon, -1)
        full = squash(noise, self.magnitude).clone()
        full[:, self.executed_rows] = part
        return full

    def prior(self, noise: Float[Tensor, "B T A"]) -> Float[Tensor, "B L"]:
        """Draw steered latents from the prior: the squashed standard normal (its push-forward)."""
        return squash(self.select(noise), self.magnitude)
