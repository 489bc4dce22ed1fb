"""DDIM (Song et al., 2021) as DPPO's own code computes it, bit for bit on a CPU, and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

NoiseNetwork = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x [B, T, A], time [B], features [B, D]) -> noise [B, T, A]``."""


@dataclass(frozen=True)
class Clips:
    """Bounds that hold numbers within +- their value; None leaves them.

    Attributes:
        denoised: of the chunk that a step predicts, x0. The noise is then computed anew from it.
        eps: of the noise.
        final: of the chunk that comes out.
    """

    denoised: float | None = 1.0
    eps: float | None = None
    final: float | None = None


@dataclass(frozen=True)
class Step:
    """One step of DDIM with eta = 0.

    Attributes:
        time: t of the K steps of training, what the network is told.
        signal, noise: sqrt(abar_t) and sqrt(1 - abar_t).
        next_signal, next_noise: those that it goes to; 1 and 0 in the last step.
    """

    time: int
    signal: float
    noise: float
    next_signal: float
    next_noise: float


def ddim_steps(training_steps: int, steps: int) -> tuple[Step, ...]:
    """Return S of K steps, t = (S-1 .. 0) * (K // S), of the cosine schedule (Nichol and Dhariwal, 2021).

    Args:
        training_steps: K.
        steps: S, at most K.
    """
    x = np.linspace(0, training_steps + 1, training_steps + 1)
    f = np.cos((x / (training_steps + 1) + 0.008) / 1.008 * np.pi * 0.5) ** 2
    f = f / f[0]
    betas = torch.tensor(np.clip(1 - f[1:] / f[:-1], 0, 0.999), dtype=torch.float32)
    signal_share = torch.cumprod(1 - betas, dim=0)
    times = torch.arange(steps).flip(0) * (training_steps // steps)
    now = signal_share[times]
    following = torch.cat((now[1:], torch.ones(1)))
    columns = (now.sqrt(), (1 - now).sqrt(), following.sqrt(), (1 - following).sqrt())
    # Floats hold float32 numbers exactly, and an operation rounds them to the type of its tensors.
    return tuple(Step(t, *row) for t, *row in zip(times.tolist(), *(c.tolist() for c in columns), strict=True))


def sample(
    networks: Sequence[NoiseNetwork],
    noise: Float[Tensor, "B T A"],
    features: Float[Tensor, "B D"],
    steps: Sequence[Step],
    clips: Clips,
) -> list[Float[Tensor, "B T A"]]:
    """Denoise, and return the chain: the noise, and what every step makes of it (the last not clipped yet).

    Args:
        networks: one for each step.
        noise: where it starts.
        features: of the observations.
        steps: from the noisiest on.
        clips: bounds on what is computed between.
    """
    chain = [noise]
    for network, step in zip(networks, steps, strict=True):
        x = chain[-1]
        time = torch.full((x.shape[0],), float(step.time), dtype=x.dtype, device=x.device)
        eps = network(x, time, features)
        x0 = (x - step.noise * eps) / step.signal
        if clips.denoised is not None:
            x0 = x0.clamp(-clips.denoised, clips.denoised)
            eps = (x - step.signal * x0) / step.noise
        if clips.eps is not None:
            eps = eps.clamp(-clips.eps, clips.eps)
        chain.append(step.next_signal * x0 + step.next_noise * eps)
    return chain


@torch.no_grad()
def invert_sampling(
    networks: Sequence[NoiseNetwork],
    chunk: Float[Tensor, "B T A"],
    features: Float[Tensor, "B D"],
    steps: Sequence[Step],
    iterations: int,
    settled: float,
) -> Float[Tensor, "B T A"]:
    """Run :func:`sample` backward, as if it clipped nothing: find the noise of which it makes ``chunk``.

    A step ``y = b (x - s e(x)) / a + r e(x)``, with (a, s) the signal and noise before and (b, r) after it, is
    solved for x by the fixed-point iteration ``x <- a / b (y - r e(x)) + s e(x)``. What does not converge, or is
    clipped, shows when the noise is denoised again.

    Args:
        networks: one for each step.
        chunk: as it comes out of the last step.
        features: of the observations.
        steps: from the noisiest on.
        iterations: at most, per step.
        settled: largest change of any number below which an iteration is the last of its step.
    """
    x = chunk
    for network, step in zip(reversed(networks), reversed(steps), strict=True):
        reached = x
        time = torch.full((len(x),), float(step.time), dtype=x.dtype, device=x.device)
        for _ in range(iterations):
            before = x
            eps = network(x, time, features)
            x = step.signal / step.next_signal * (reached - step.next_noise * eps) + step.noise * eps
            if bool((x - before).abs().nan_to_num().max() < settled):
                break
    return x
