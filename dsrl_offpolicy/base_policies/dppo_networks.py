"""The noise networks of DPPO (Ren et al., 2024), built from the shapes of their weights.

Module names are those of DPPO's checkpoints. What no shape says (activations, groups of a GroupNorm) is an
argument.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.layers import SinusoidalEmbedding
from dsrl_offpolicy.models.unet1d import Resample

Tensors = Mapping[str, Tensor]
Activation = Literal["ReLU", "ELU", "GELU", "Tanh", "Mish", "Identity", "Softplus"]


def _activation(name: Activation) -> nn.Module:
    made: nn.Module = getattr(nn, name)()
    return made


class PlainMLP(nn.Module):
    """Linear layers, each with LayerNorm where it has one; the last is linear."""

    def __init__(self, tensors: Tensors, prefix: str, in_dim: int, out_dim: int, activation: Activation) -> None:
        super().__init__()
        layers = _numbered(tensors, f"{prefix}moduleList")
        widths = [_size(tensors, f"{prefix}moduleList.{i}.linear_1.bias") for i in range(layers - 1)]
        self.moduleList = nn.ModuleList()
        for i, (narrow, wide) in enumerate(itertools.pairwise((in_dim, *widths, out_dim))):
            parts: dict[str, nn.Module] = {"linear_1": nn.Linear(narrow, wide)}
            if f"{prefix}moduleList.{i}.norm_1.weight" in tensors:
                parts["norm_1"] = nn.LayerNorm(wide)
            self.moduleList.append(nn.ModuleDict(parts))
        self.activation = _activation(activation)

    def forward(self, x: Float[Tensor, "B i"]) -> Float[Tensor, "B j"]:
        for i, parts in enumerate(self.moduleList):
            assert isinstance(parts, nn.ModuleDict)
            for layer in parts.values():
                x = layer(x)
            if i < len(self.moduleList) - 1:
                x = self.activation(x)
        return x


class ResidualBlock(nn.Module):
    """``x + l2(act(l1(act(x))))``, with LayerNorm before each activation where there is one."""

    def __init__(self, width: int, activation: Activation, *, layer_norm: bool) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(width, width), nn.Linear(width, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) if layer_norm else nn.Identity() for _ in "12")
        self.activation = _activation(activation)

    def forward(self, x: Float[Tensor, "B i"]) -> Float[Tensor, "B i"]:
        h = self.l1(self.activation(self.norm1(x)))
        out: Tensor = x + self.l2(self.activation(self.norm2(h)))
        return out


class ResidualMLP(nn.Module):
    """A linear layer, residual blocks, a linear layer."""

    def __init__(self, tensors: Tensors, prefix: str, in_dim: int, out_dim: int, activation: Activation) -> None:
        super().__init__()
        layers, width = _numbered(tensors, f"{prefix}layers"), _size(tensors, f"{prefix}layers.0.bias")
        self.layers = nn.ModuleList([nn.Linear(in_dim, width)])
        for i in range(1, layers - 1):
            normed = f"{prefix}layers.{i}.norm1.weight" in tensors
            self.layers.append(ResidualBlock(width, activation, layer_norm=normed))
        self.layers.append(nn.Linear(width, out_dim))

    def forward(self, x: Float[Tensor, "B i"]) -> Float[Tensor, "B j"]:
        for layer in self.layers:
            x = layer(x)
        return x


def _mlp(
    tensors: Tensors, prefix: str, in_dim: int, out_dim: int, activation: Activation
) -> PlainMLP | ResidualMLP:
    plain = any(name.startswith(f"{prefix}moduleList.") for name in tensors)
    return (PlainMLP if plain else ResidualMLP)(tensors, prefix, in_dim, out_dim, activation)


class DiffusionMLP(nn.Module):
    """The flattened chunk, the time and the features through an MLP, in this order.

    Args:
        tensors: weights, whose shapes say widths and depths; a tensor that does not fit is found when they are
            loaded.
        features: o * S.
        rows: T.
        actions: A.
        activation: of its hidden layers.
    """

    def __init__(self, tensors: Tensors, features: int, rows: int, actions: int, activation: Activation) -> None:
        super().__init__()
        embed = _size(tensors, "time_embedding.3.bias")
        self.time_embedding = _time_network(embed, 2 * embed)
        self.cond_mlp: nn.Module = nn.Identity()
        if any(name.startswith("cond_mlp.") for name in tensors):
            wide = _size(
                tensors, f"cond_mlp.moduleList.{_numbered(tensors, 'cond_mlp.moduleList') - 1}.linear_1.bias"
            )
            self.cond_mlp = PlainMLP(tensors, "cond_mlp.", features, wide, activation)
            features = wide
        inputs, outputs = rows * actions + embed + features, rows * actions
        self.mlp_mean = _mlp(tensors, "mlp_mean.", inputs, outputs, activation)

    def forward(
        self, x: Float[Tensor, "B T A"], time: Float[Tensor, " B"], features: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B T A"]:
        inputs = (x.flatten(1), self.time_embedding(time), self.cond_mlp(features))
        noise: Tensor = self.mlp_mean(torch.cat(inputs, dim=1)).view_as(x)
        return noise


class DiffusionUNet(nn.Module):
    """The 1-D U-Net of Chi et al. (2023) in DPPO's variant: three linear layers make the FiLM of a block.

    Args:
        tensors: weights, as in :class:`DiffusionMLP`.
        features: o * S.
        rows: T, a multiple of 2 per halving of the time axis.
        actions: A.
        activation: Mish or ReLU.
        groups: of every GroupNorm.
        epsilon: of every GroupNorm.
    """

    def __init__(
        self, tensors: Tensors, features: int, rows: int, actions: int, activation: Activation,
        *, groups: int | None, epsilon: float,
    ) -> None:  # fmt: skip
        super().__init__()
        embed = _size(tensors, "time_mlp.3.bias")
        self.time_mlp = _time_network(embed, 4 * embed)
        self.cond_mlp: nn.Module = nn.Identity()
        if any(name.startswith("cond_mlp.") for name in tensors):
            wide = _size(tensors, f"cond_mlp.layers.{_numbered(tensors, 'cond_mlp.layers') - 1}.bias")
            self.cond_mlp = ResidualMLP(tensors, "cond_mlp.", features, wide, activation)
            features = wide
        levels = _numbered(tensors, "down_modules")
        widths = [_size(tensors, f"down_modules.{i}.0.blocks.0.block.0.bias") for i in range(levels)]
        if rows % 2 ** (levels - 1):
            raise InputError(
                f"horizon_steps: expected a multiple of {2 ** (levels - 1)} for {levels} levels, got {rows}"
            )
        sizes = _BlockSizes(tensors, embed + features, activation, groups, epsilon)
        pairs = list(itertools.pairwise((actions, *widths)))
        self.mid_modules = nn.ModuleList(sizes.block(widths[-1], widths[-1]) for _ in range(2))
        self.down_modules, self.up_modules = nn.ModuleList(), nn.ModuleList()
        for i, (narrow, wide) in enumerate(pairs):
            shrink = Resample(wide, up=False) if i < levels - 1 else nn.Identity()
            self.down_modules.append(nn.ModuleList([sizes.block(narrow, wide), sizes.block(wide, wide), shrink]))
        for narrow, wide in reversed(pairs[1:]):
            grow = Resample(narrow, up=True)
            self.up_modules.append(
                nn.ModuleList([sizes.block(2 * wide, narrow), sizes.block(narrow, narrow), grow])
            )
        self.final_conv = nn.Sequential(sizes.conv(widths[0], widths[0]), nn.Conv1d(widths[0], actions, 1))

    def forward(
        self, x: Float[Tensor, "B T A"], time: Float[Tensor, " B"], features: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B T A"]:
        cond = torch.cat((self.time_mlp(time), self.cond_mlp(features)), dim=1)
        h, skips = x.transpose(1, 2), []
        for level in self.down_modules:
            first, second, shrink = _three(level)
            h = second(first(h, cond), cond)
            skips.append(h)
            h = shrink(h)
        for block in self.mid_modules:
            h = block(h, cond)
        for level in self.up_modules:
            first, second, grow = _three(level)
            h = grow(second(first(torch.cat((h, skips.pop()), dim=1), cond), cond))
        noise: Tensor = self.final_conv(h).transpose(1, 2)
        return noise


class _BlockSizes:
    """What all blocks of a U-Net have in common, by the shapes of the first."""

    def __init__(
        self, tensors: Tensors, cond_dim: int, activation: Activation, groups: int | None, epsilon: float
    ) -> None:
        first = "mid_modules.0"
        self.activation, self.groups, self.epsilon, self.cond_dim = activation, groups, epsilon, cond_dim
        self.kernel = _size(tensors, f"{first}.blocks.0.block.0.weight", 2)
        self.normed = f"{first}.blocks.0.block.2.weight" in tensors
        self.deep = f"{first}.cond_encoder.4.weight" in tensors
        encoder = f"{first}.cond_encoder.{4 if self.deep else 1}.bias"
        self.scales = _size(tensors, encoder) != _size(tensors, f"{first}.blocks.0.block.0.bias")
        if self.normed and not groups:
            raise InputError("n_groups: expected the groups of its GroupNorm, got none")

    def conv(self, narrow: int, wide: int) -> nn.Module:
        return ConvBlock(narrow, wide, self)

    def block(self, narrow: int, wide: int) -> nn.Module:
        return FiLMBlock(narrow, wide, self)


class ConvBlock(nn.Module):
    """Conv1d, GroupNorm where there is one, activation."""

    def __init__(self, narrow: int, wide: int, sizes: _BlockSizes) -> None:
        super().__init__()
        norm: nn.Module = nn.Identity()
        if sizes.normed:
            assert sizes.groups is not None
            if wide % sizes.groups:
                raise InputError(f"n_groups: expected a divisor of the {wide} channels, got {sizes.groups}")
            norm = nn.GroupNorm(sizes.groups, wide, eps=sizes.epsilon)
        conv = nn.Conv1d(narrow, wide, sizes.kernel, padding=sizes.kernel // 2)
        # DPPO's block 1 and 3 reshape for the norm between them; tensors stand under 0 and 2.
        self.block = nn.Sequential(conv, nn.Identity(), norm, nn.Identity(), _activation(sizes.activation))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class FiLMBlock(nn.Module):
    """Two conv blocks; the conditions scale (where they do) and shift the channels between them."""

    def __init__(self, narrow: int, wide: int, sizes: _BlockSizes) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ConvBlock(narrow, wide, sizes), ConvBlock(wide, wide, sizes)])
        made, act = (2 if sizes.scales else 1) * wide, _activation(sizes.activation)
        layers = [act, nn.Linear(sizes.cond_dim, made)]
        if sizes.deep:
            layers = [nn.Linear(sizes.cond_dim, made), act, nn.Linear(made, made), act, nn.Linear(made, made)]
        self.cond_encoder = nn.Sequential(*layers)
        self.residual_conv = nn.Conv1d(narrow, wide, 1) if narrow != wide else nn.Identity()
        self.scales = sizes.scales

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h, film = self.blocks[0](x), self.cond_encoder(cond)[..., None]
        if self.scales:
            scale, shift = film.chunk(2, dim=1)
            h = scale * h + shift
        else:
            h = h + film
        out: Tensor = self.blocks[1](h) + self.residual_conv(x)
        return out


def _three(level: nn.Module) -> list[nn.Module]:
    assert isinstance(level, nn.ModuleList)
    return list(level)


def _time_network(embed: int, hidden: int) -> nn.Sequential:
    if embed < 4 or embed % 2:
        raise InputError(f"time embedding: expected an even width >= 4, got {embed}")
    return nn.Sequential(SinusoidalEmbedding(embed), nn.Linear(embed, hidden), nn.Mish(), nn.Linear(hidden, embed))


def _numbered(tensors: Tensors, prefix: str) -> int:
    """How many numbers follow ``prefix.`` in the names, from 0 on."""
    start = f"{prefix}."
    numbers = {name.removeprefix(start).split(".")[0] for name in tensors if name.startswith(start)}
    count = sum(number.isdecimal() for number in numbers)
    if count < 1:
        raise InputError(f"tensor {prefix}.0: expected one, got none")
    return count


def _size(tensors: Tensors, name: str, axis: int = 0) -> int:
    """The size of an axis of a tensor that must be there."""
    shape = tensors[name].shape if name in tensors else ()
    if len(shape) <= axis or not shape[axis]:
        got = "none" if name not in tensors else tuple(shape)
        raise InputError(f"tensor {name}: expected one with an axis {axis}, got {got}")
    return int(shape[axis])
