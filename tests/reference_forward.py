"""The published networks as plain functions of a file's tensors, written from their description."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]


def _linear(weights: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def visual_features(weights: Tensors, images: Tensor) -> Tensor:
    """``[N, H, W, C]`` uint8 to ``[N, V]``."""
    x = images.permute(0, 3, 1, 2).double() / 255
    weights = {name: value.double() for name, value in weights.items()}
    for index in (0, 3, 6, 9):
        x = F.conv2d(x, weights[f"cnn.{index}.weight"], weights[f"cnn.{index}.bias"], padding=1)
        x = F.max_pool2d(F.relu(x), 2)
    x = F.relu(F.conv2d(x, weights["cnn.12.weight"], weights["cnn.12.bias"]))
    return F.relu(_linear(weights, "fc.0", x.amax(dim=(2, 3)))).float()


def q_values(weights: Tensors, heads: list[str], rows: Tensor, features: Tensor) -> Tensor:
    """Three hidden layers ``Linear, LayerNorm, Mish`` and a Linear one, the actions first."""
    values = []
    for head in heads:
        x = torch.cat((rows.flatten(1), features), dim=1)
        for index in (0, 3, 6):
            x = _linear(weights, f"{head}.{index}", x)
            norm = f"{head}.{index + 1}"
            x = F.mish(F.layer_norm(x, x.shape[1:], weights[f"{norm}.weight"], weights[f"{norm}.bias"]))
        values.append(_linear(weights, f"{head}.9", x)[:, 0])
    return torch.stack(values)


def _conv_block(weights: Tensors, name: str, x: Tensor) -> Tensor:
    x = F.conv1d(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], padding=2)
    return F.mish(F.group_norm(x, 8, weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]))


def _residual(weights: Tensors, name: str, x: Tensor, cond: Tensor) -> Tensor:
    film = _linear(weights, f"{name}.cond_encoder.1", F.mish(cond))[:, :, None]
    half = film.shape[1] // 2
    h = film[:, :half] * _conv_block(weights, f"{name}.blocks.0.block", x) + film[:, half:]
    h = _conv_block(weights, f"{name}.blocks.1.block", h)
    if f"{name}.residual_conv.weight" in weights:
        x = F.conv1d(x, weights[f"{name}.residual_conv.weight"], weights[f"{name}.residual_conv.bias"])
    return h + x


def _velocity(weights: Tensors, levels: int, x: Tensor, hundredth: int, features: Tensor) -> Tensor:
    step = "diffusion_step_encoder"
    half = weights[f"{step}.1.weight"].shape[1] // 2
    angles = hundredth * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))
    embedding = torch.cat((angles.sin(), angles.cos())).expand(len(x), -1)
    embedding = _linear(weights, f"{step}.3", F.mish(_linear(weights, f"{step}.1", embedding)))
    cond = torch.cat((embedding, features), dim=1)
    x, skips = x.transpose(1, 2), []
    for i in range(levels):
        for block in "01":
            x = _residual(weights, f"down_modules.{i}.{block}", x, cond)
        skips.append(x)
        if i < levels - 1:
            conv = f"down_modules.{i}.2.conv"
            x = F.conv1d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride=2, padding=1)
    for block in "01":
        x = _residual(weights, f"mid_modules.{block}", x, cond)
    for j in range(levels - 1):
        x = torch.cat((x, skips.pop()), dim=1)
        for block in "01":
            x = _residual(weights, f"up_modules.{j}.{block}", x, cond)
        conv = f"up_modules.{j}.2.conv"
        x = F.conv_transpose1d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride=2, padding=1)
    x = _conv_block(weights, "final_conv.0.block", x)
    return F.conv1d(x, weights["final_conv.1.weight"], weights["final_conv.1.bias"]).transpose(1, 2)


def actions(weights: Tensors, net: str, levels: int, features: Tensor, latent: Tensor, steps: int = 8) -> Tensor:
    """Euler steps of 1/steps from the latent, at times ``floor(100 i / steps)``, clamped at the end."""
    start = f"{net}.unet."
    weights = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
    x = latent
    for i in range(steps):
        x = x + _velocity(weights, levels, x, 100 * i // steps, features) / steps
    return x.clamp(-1, 1)
