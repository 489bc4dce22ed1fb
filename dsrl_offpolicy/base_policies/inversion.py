"""Demonstrations as noise: the latents from which a base policy makes the chunks that somebody executed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy, Encoding
from dsrl_offpolicy.models.latent_layout import LatentLayout

AT_ONCE = 2048
"""Windows in one call of the policy."""


@dataclass(frozen=True)
class Inversion:
    """N windows as latents.

    Attributes:
        latent: ``[N, L]``, steered part of the latents, of any magnitude.
        error: ``[N]``, root mean square of what they decode to against the chunk.
        accepted: ``[N]``, whether that is within the tolerance.
        beyond: share of the accepted latents' entries that no latent policy reaches (``action_magnitude``).
    """

    latent: Float[Tensor, "N L"]
    error: Float[Tensor, " N"]
    accepted: Bool[Tensor, " N"]
    beyond: float

    def report(self) -> dict[str, float]:
        """Return its numbers for a log: windows, how many were left out, finite errors, share beyond. At least one
        window must be accepted."""
        finite = self.error[self.error.isfinite()]  # some windows may diverge
        quantiles = finite.quantile(torch.tensor([0.5, 0.9], device=finite.device))
        return {
            "windows": float(len(self.error)),
            "left_out": float((~self.accepted).sum()),
            "error_median": float(quantiles[0]),
            "error_p90": float(quantiles[1]),
            "beyond_magnitude": self.beyond,
        }


@torch.no_grad()
def invert_windows(
    policy: BasePolicy,
    features: Float[Tensor, "N D"],
    chunks: Float[Tensor, "N T A"],
    layout: LatentLayout,
    tolerance: float,
    generator: torch.Generator,
) -> Inversion:
    """Find the latents of chunks, and decode them again to see which ones are right.

    Where only a part of the noise is steered, the rest comes from the prior, as it does online, and the executed
    rows alone are held against the chunk.

    Args:
        policy: can be inverted, and decodes from features alone.
        features: of the windows' observations.
        chunks: whole chunks.
        layout: which part of the noise is steered.
        tolerance: largest error of a window that is accepted.
        generator: of the rows that are not steered.

    Raises:
        NotImplementedError: a policy that cannot be inverted.
    """
    latents, errors = [], []
    for part, chunk in zip(features.split(AT_ONCE), chunks.split(AT_ONCE), strict=True):
        encoding = Encoding(part)
        full, error = policy.invert(encoding, chunk)
        latent = layout.select(full)
        latents.append(latent)
        if layout.mode == "full":
            errors.append(error)
            continue
        noise = torch.randn((len(part), *policy.info.latent_shape), generator=generator, device=part.device)
        decoded = policy.decode(encoding, layout.expand(latent, noise))
        errors.append((decoded - chunk)[:, layout.executed_rows].square().mean((1, 2)).sqrt())
    latent, error = torch.cat(latents), torch.cat(errors)
    accepted = (error <= tolerance) & latent.isfinite().all(1)
    kept = latent[accepted]
    beyond = float((kept.abs() >= layout.magnitude).float().mean()) if len(kept) else 0.0
    return Inversion(latent, error.nan_to_num(torch.inf, torch.inf), accepted, beyond)
