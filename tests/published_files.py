"""Files in the published AWSC layout, written name by name from its description rather than by the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Dimensions of a file; the defaults make a small double critic over states."""

    action_dim: int = 3
    widths: tuple[int, ...] = (8, 16)
    embed_dim: int = 6
    obs_horizon: int = 2
    state_dim: int = 5
    act_horizon: int = 4
    hidden_dims: tuple[int, ...] = (10, 11, 12)
    critic_prefix: str = "critic"
    ensemble: int = 0
    """Heads of an ensemble; 0 for the double critic."""
    cameras: int = 0
    visual_dim: int = 0

    @property
    def feature_dim(self) -> int:
        """G."""
        return self.obs_horizon * (self.visual_dim + self.state_dim)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, inputs: int, outputs: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _residual(name: str, inputs: int, outputs: int, cond: int) -> Shapes:
    shapes: Shapes = {}
    for k, width in enumerate((inputs, outputs)):
        block = f"{name}.blocks.{k}.block"
        shapes |= _conv(f"{block}.0", width, outputs, 5) | _norm(f"{block}.1", outputs)
    shapes |= _linear(f"{name}.cond_encoder.1", cond, 2 * outputs)
    return shapes | (_conv(f"{name}.residual_conv", inputs, outputs, 1) if inputs != outputs else {})


def velocity_shapes(layout: Layout, net: str) -> Shapes:
    """The U-Net with the two embeddings that take no part in its forward pass."""
    e, cond, d = layout.embed_dim, layout.embed_dim + layout.feature_dim, layout.widths
    unet = f"{net}.unet"
    step = f"{unet}.diffusion_step_encoder"
    shapes = _linear(f"{step}.1", e, 4 * e) | _linear(f"{step}.3", 4 * e, e)
    for k in (0, 1):
        shapes |= _residual(f"{unet}.mid_modules.{k}", d[-1], d[-1], cond)
    for i, (narrow, wide) in enumerate(zip((layout.action_dim, *d[:-1]), d, strict=True)):
        level = f"{unet}.down_modules.{i}"
        shapes |= _residual(f"{level}.0", narrow, wide, cond) | _residual(f"{level}.1", wide, wide, cond)
        if i < len(d) - 1:
            shapes |= _conv(f"{level}.2.conv", wide, wide, 3)
    for j, (narrow, wide) in enumerate(reversed(list(itertools.pairwise(d)))):
        level = f"{unet}.up_modules.{j}"
        shapes |= _residual(f"{level}.0", 2 * wide, narrow, cond) | _residual(f"{level}.1", narrow, narrow, cond)
        shapes |= _conv(f"{level}.2.conv", narrow, narrow, 4)
    shapes |= _conv(f"{unet}.final_conv.0.block.0", d[0], d[0], 5) | _norm(f"{unet}.final_conv.0.block.1", d[0])
    shapes |= _conv(f"{unet}.final_conv.1", d[0], layout.action_dim, 1)
    shapes |= _linear(f"{net}.step_size_embed.0", 1, e) | _linear(f"{net}.step_size_embed.2", e, e)
    return shapes | _linear(f"{net}.combine_embed.0", 2 * e, e)


def critic_shapes(layout: Layout, prefix: str) -> Shapes:
    """Linear, LayerNorm, Mish for every hidden width, then Linear, per head."""
    if layout.ensemble:
        nets = [f"{prefix}.q_nets.{i}" for i in range(layout.ensemble)]
    else:
        nets = [f"{prefix}.q1_net", f"{prefix}.q2_net"]
    shapes: Shapes = {}
    for net in nets:
        inputs = layout.act_horizon * layout.action_dim + layout.feature_dim
        for k, width in enumerate(layout.hidden_dims):
            shapes |= _linear(f"{net}.{3 * k}", inputs, width) | _norm(f"{net}.{3 * k + 1}", width)
            inputs = width
        shapes |= _linear(f"{net}.{3 * len(layout.hidden_dims)}", inputs, 1)
    return shapes


def visual_shapes(layout: Layout) -> Shapes:
    """Four 3x3 convolutions, a 1x1 one and a linear layer."""
    shapes: Shapes = {}
    for index, inputs, outputs in ((0, 3 * layout.cameras, 16), (3, 16, 32), (6, 32, 64), (9, 64, 128)):
        shapes |= _conv(f"cnn.{index}", inputs, outputs, 3, 3)
    return shapes | _conv("cnn.12", 128, 128, 1, 1) | _linear("fc.0", 128, layout.visual_dim)


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Tensors whose layers neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        inputs = math.prod(shape[1:])
        return torch.randn(shape, generator=generator) / inputs**0.5

    return {name: draw(shape) for name, shape in shapes.items()}


def published_content(layout: Layout) -> dict[str, dict[str, Tensor]]:
    """A whole file: two agents with networks of their own, and a visual encoder where there are cameras."""
    content = {}
    for seed, agent in enumerate(("agent", "ema_agent")):
        shapes = velocity_shapes(layout, "velocity_net") | velocity_shapes(layout, "velocity_net_ema")
        shapes |= critic_shapes(layout, layout.critic_prefix) | critic_shapes(layout, "critic_target")
        content[agent] = random_tensors(shapes, seed)
    if layout.cameras:
        content["visual_encoder"] = random_tensors(visual_shapes(layout), 9)
    return content
