"""Demonstrations as noise: the latents from which a base policy makes the chunks that somebody executed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy, Encoding
from dsrl_offpolicy.models.latent_layout import LatentLayout

AT_ONCE = 2048
"""Windows in one call of the policy."""

GRADIENT_STEPS, GRADIENT_RATE, GRADIENT_SETTLED = 200, 0.1, 1e-4
"""Of Adam, and the error (root mean square over a chunk) below which it leaves a window."""


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


def invert_by_gradient(
    decode: Callable[[Tensor, Tensor], Tensor],
    actions: Float[Tensor, "B T A"],
    start: Float[Tensor, "B T W"],
    *,
    steps: int = GRADIENT_STEPS,
    rate: float = GRADIENT_RATE,
    settled: float = GRADIENT_SETTLED,
) -> tuple[Float[Tensor, "B T W"], Float[Tensor, " B"]]:
    """Find latents by Adam on the squared error, from 0, for windows whose ``start`` is not good enough.

    This inverts any decode that gradients flow through, clipped ones too. Windows that are good enough cost
    nothing more.

    Args:
        decode: from latents ``[b, T, W]`` and the indices ``[b]`` of their windows to chunks. Its weights should
            take no gradient.
        actions: whole chunks.
        start: latents to try first; need not be finite.
        steps: of Adam.
        rate: of Adam; falls linearly to 0.
        settled: error below which a window is left as it is.

    Returns:
        The best latents met, and the root mean square of what they decode to against ``actions``.
    """
    rows = torch.arange(len(actions), device=actions.device)
    best = start.nan_to_num(0.0, 0.0, 0.0)
    with torch.no_grad():
        least = _squares(decode(best, rows), actions).sqrt()
    latent = torch.zeros_like(best)
    first, second = torch.zeros_like(best), torch.zeros_like(best)
    for step in range(1, steps + 1):
        left = least[rows] > settled
        if not bool(left.any()):
            break
        rows, latent, first, second = rows[left], latent[left], first[left], second[left]
        with torch.enable_grad():
            wanted = latent.detach().requires_grad_()
            squares = _squares(decode(wanted, rows), actions[rows])
            (gradient,) = torch.autograd.grad(squares.sum(), wanted)
        error = squares.detach().sqrt()
        better = error < least[rows]
        least[rows[better]], best[rows[better]] = error[better], latent[better]
        first = first.lerp(gradient, 0.1)
        second = second.lerp(gradient.square(), 0.001)
        falling = rate * (1 - (step - 1) / steps)
        latent = latent - falling * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return best, least


def _squares(decoded: Tensor, actions: Tensor) -> Float[Tensor, " B"]:
    return (decoded - actions).square().mean((1, 2))
