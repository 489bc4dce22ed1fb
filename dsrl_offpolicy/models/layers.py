"""Small layers that several networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sinusoidal embedding of a scalar, sines first (Vaswani et al., 2017). ``[B] -> [B, width]``."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        frequencies, scale = torch.empty(half), -math.log(10000) / (half - 1)
        if not frequencies.is_meta:  # on which arithmetic imports torch's compiler, seconds of a process's start
            frequencies = torch.exp(torch.arange(half) * scale)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angles = x[:, None] * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Layers(nn.Sequential):
    """Layers in a row, the last of which is linear.

    Attributes:
        products: what all matrix products but the last are done in, where that is not the weights' own type
            (``models/precision.py``). Their sums are float32 inside; normalisations and the last layer get and do
            float32.
    """

    products: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.products is None:
            return self.exact(x)
        *hidden, last = self
        # One forward uses each weight once, so autocast's cache of cast weights would only hold memory.
        with torch.autocast(x.device.type, self.products, cache_enabled=False):
            for layer in hidden:
                x = layer(x.float() if isinstance(layer, nn.LayerNorm | EnsembleLayerNorm) else x)
        out: Tensor = last(x.float())
        return out

    def exact(self, x: Tensor) -> Tensor:
        """Return what the layers make of ``x`` in the weights' own type."""
        out: Tensor = super().forward(x)
        return out


def mlp(
    in_dim: int, hidden_dims: Sequence[int], out_dim: int, activation: type[nn.Module], *, layer_norm: bool
) -> Layers:
    """Build linear layers with an activation (and optionally LayerNorm before it) between them."""
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers.append(nn.Linear(in_dim, width))
        if layer_norm:
            layers.append(nn.LayerNorm(width))
        layers.append(activation())
        in_dim = width
    layers.append(nn.Linear(in_dim, out_dim))
    return Layers(*layers)


class EnsembleLinear(nn.Module):
    """K independent linear layers evaluated as one batched matrix multiplication.

    Each head is initialised as ``nn.Linear`` would be.
    """

    def __init__(self, heads: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(heads, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "K B i"]) -> Float[Tensor, "K B j"]:
        return torch.bmm(x, self.weight) + self.bias  # a sum that the compiler fuses, unlike that of baddbmm


class EnsembleLayerNorm(nn.Module):
    """LayerNorm over the last dimension with a gain and an offset for each of K heads."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, 1, width))
        self.bias = nn.Parameter(torch.zeros(heads, 1, width))

    def forward(self, x: Float[Tensor, "K B i"]) -> Float[Tensor, "K B i"]:
        return torch.addcmul(self.bias, nn.functional.layer_norm(x, x.shape[-1:]), self.weight)
