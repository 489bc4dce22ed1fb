"""The 1-D U-Net of diffusion policies (Janner et al., 2022; Chi et al., 2023), conditioned by FiLM.

Module names and shapes are those of the published AWSC checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsrl_offpolicy.models.layers import SinusoidalEmbedding

KERNEL = 5
GROUPS = 8


class ConvBlock(nn.Module):
    """Conv1d, GroupNorm, Mish."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, KERNEL, padding=KERNEL // 2),
            nn.GroupNorm(GROUPS, out_channels),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class ResidualBlock(nn.Module):
    """Two conv blocks with FiLM after the first: ``scale * h + bias`` (no ``1 + scale``)."""

    def __init__(self, in_channels: int, out_channels: int, cond_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ConvBlock(in_channels, out_channels), ConvBlock(out_channels, out_channels)])
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * out_channels))
        self.residual_conv = (
            nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, bias = self.cond_encoder(cond)[..., None].chunk(2, dim=1)
        h = scale * self.blocks[0](x) + bias
        out: Tensor = self.blocks[1](h) + self.residual_conv(x)
        return out


class Resample(nn.Module):
    """Halves (stride-2 convolution) or doubles (transposed convolution) the time axis."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.conv: nn.Module = (
            nn.ConvTranspose1d(channels, channels, 4, 2, 1) if up else nn.Conv1d(channels, channels, 3, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class ConditionalUnet1d(nn.Module):
    """Maps a chunk, a step embedding ``[B, E]`` and features to a chunk of the same shape."""

    def __init__(self, action_dim: int, feature_dim: int, widths: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        cond_dim = embed_dim + feature_dim
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(embed_dim),
            nn.Linear(embed_dim, 4 * embed_dim),
            nn.Mish(),
            nn.Linear(4 * embed_dim, embed_dim),
        )
        channels = [action_dim, *widths]
        levels = list(itertools.pairwise(channels))
        self.down_modules = nn.ModuleList()
        for i, (narrow, wide) in enumerate(levels):
            last = i == len(levels) - 1
            self.down_modules.append(
                nn.ModuleList(
                    [
                        ResidualBlock(narrow, wide, cond_dim),
                        ResidualBlock(wide, wide, cond_dim),
                        nn.Identity() if last else Resample(wide, up=False),
                    ]
                )
            )
        self.mid_modules = nn.ModuleList([ResidualBlock(widths[-1], widths[-1], cond_dim) for _ in range(2)])
        self.up_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    ResidualBlock(2 * wide, narrow, cond_dim),
                    ResidualBlock(narrow, narrow, cond_dim),
                    Resample(narrow, up=True),
                ]
            )
            for narrow, wide in reversed(levels[1:])
        )
        self.final_conv = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv1d(widths[0], action_dim, 1))

    def forward(
        self,
        x: Float[Tensor, "B T A"],
        step_embedding: Float[Tensor, "B E"],
        features: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B T A"]:
        cond = torch.cat((step_embedding, features), dim=-1)
        h = x.transpose(1, 2)
        skips = []
        for level in self.down_modules:
            first, second, down = _level(level)
            h = second(first(h, cond), cond)
            skips.append(h)
            h = down(h)
        for block in self.mid_modules:
            h = block(h, cond)
        for level in self.up_modules:
            first, second, up = _level(level)
            h = torch.cat((h, skips.pop()), dim=1)
            h = up(second(first(h, cond), cond))
        out: Tensor = self.final_conv(h).transpose(1, 2)
        return out


def _level(level: nn.Module) -> list[nn.Module]:
    assert isinstance(level, nn.ModuleList)
    return list(level)
