"""What the shapes in a published AWSC checkpoint say about the networks in it.

The file is ``{"agent": tensors, "ema_agent": tensors, "visual_encoder"?: tensors}`` without hyperparameters. A
dimension that several tensors share is what most of them say, so that one wrong tensor is found by the comparison
with the networks, under its own name, rather than by all the others that it contradicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dsrl_offpolicy.errors import InputError

Tensors = Mapping[str, Tensor]

AGENTS = ("agent", "ema_agent")
VELOCITY_NETS = ("velocity_net", "velocity_net_ema")
WEIGHTS = tuple(f"{agent}.{net}" for agent in AGENTS for net in VELOCITY_NETS)
CRITICS = ("critic", "q_network")
PARTS = (*VELOCITY_NETS, *CRITICS, "critic_target")
"""What the tensors of an agent belong to, by the first part of their names."""


@dataclass(frozen=True)
class VelocityLayout:
    """Dimensions of the U-Net; ``feature_dim`` is G."""

    action_dim: int
    widths: tuple[int, ...]
    embed_dim: int
    feature_dim: int


@dataclass(frozen=True)
class CriticLayout:
    """Dimensions of Q^A.

    Attributes:
        prefix: first part of its tensors' names, ``critic`` or ``q_network``.
        kind: ``double`` (``q1_net``, ``q2_net``) or ``ensemble`` (``q_nets.i``).
        heads: K.
        hidden_dims: widths of its hidden layers.
        input_dims: what each head's first layer takes, H * A + G; one value where all heads agree.
    """

    prefix: str
    kind: Literal["double", "ensemble"]
    heads: int
    hidden_dims: tuple[int, ...]
    input_dims: tuple[int, ...]

    def head_name(self, head: int) -> str:
        """Return where the tensors of a head are."""
        return f"{self.prefix}.q{head + 1}_net" if self.kind == "double" else f"{self.prefix}.q_nets.{head}"

    def act_horizon(self, velocity: VelocityLayout) -> int | None:
        """Return H by the input of the first head for which it is a whole number; None where there is none."""
        for rest in (width - velocity.feature_dim for width in self.input_dims):
            if rest > 0 and rest % velocity.action_dim == 0:
                return rest // velocity.action_dim
        return None


@dataclass(frozen=True)
class VisualLayout:
    """Dimensions of the visual encoder: input channels (3 per camera) and V."""

    channels: int
    visual_dim: int


def is_published(content: Any) -> bool:
    """Return whether the content of a file is in the published layout."""
    return isinstance(content, Mapping) and "kind" not in content and any(agent in content for agent in AGENTS)


def entry(content: Mapping[str, Any], name: str, where: str) -> Tensors:
    """Return one entry of a published file: its tensors by name.

    Raises:
        InputError: no such entry, or something other than tensors in it; unknown entries in the file.
    """
    unknown = [key for key in content if key not in (*AGENTS, "visual_encoder")]
    if unknown:
        raise InputError(
            f"{where}: expected the entries {', '.join(AGENTS)} and visual_encoder, got {unknown[0]!r}"
        )
    tensors = content.get(name)
    if not isinstance(tensors, Mapping):
        got = "none" if tensors is None else type(tensors).__name__
        raise InputError(f"{where}: expected an entry {name!r} of tensors, got {got}")
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{where}: {name}: tensor {key}: expected a tensor, got {type(value).__name__}")
        if name in AGENTS and key.split(".")[0] not in PARTS:
            raise InputError(
                f"{where}: {name}: tensor {key}: expected shape none, got {tuple(value.shape)} "
                f"(parts of an agent: {', '.join(PARTS)})"
            )
    return tensors


def part(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors under ``prefix``, by their full names."""
    return {name: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def velocity_layout(tensors: Tensors, net: str, where: str) -> VelocityLayout:
    """Return dimensions of the U-Net ``net`` (``velocity_net`` or ``velocity_net_ema``).

    Raises:
        InputError: tensors that say it are missing.
    """
    unet = f"{net}.unet"
    sizes = _Sizes(part(tensors, unet), where)
    blocks = [
        f"{unet}.down_modules.{i}.{{}}.blocks.{{}}.block" for i in range(sizes.count(f"{unet}.down_modules"))
    ]
    widths = tuple(
        sizes.most((block.format(j, k) + name, 0) for j in "01" for k in "01" for name in (".0.bias", ".1.bias"))
        for block in blocks
    )
    step = f"{unet}.diffusion_step_encoder"
    action_dim = sizes.most(
        [
            (f"{unet}.final_conv.1.bias", 0),
            (f"{unet}.final_conv.1.weight", 0),
            (f"{unet}.down_modules.0.0.blocks.0.block.0.weight", 1),
        ]
    )
    embed_dim = sizes.most([(f"{step}.3.bias", 0), (f"{step}.3.weight", 0), (f"{step}.1.weight", 1)])
    cond_dim = sizes.most((name, 1) for name in sizes.tensors if name.endswith(".cond_encoder.1.weight"))
    if not widths:
        raise InputError(
            f"{where}: tensor {unet}.down_modules.0.0.blocks.0.block.0.weight: expected one, got none"
        )
    if embed_dim < 4 or embed_dim % 2:
        raise InputError(f"{where}: tensor {step}.3.weight: expected an even width >= 4, got {embed_dim}")
    if cond_dim <= embed_dim:
        raise InputError(
            f"{where}: {unet}: expected conditions wider than the step embedding {embed_dim}, got {cond_dim}"
        )
    return VelocityLayout(action_dim, widths, embed_dim, cond_dim - embed_dim)


def critic_layout(tensors: Tensors, where: str) -> CriticLayout:
    """Return dimensions of an agent's Q^A (never of its target).

    Raises:
        InputError: no critic, two of them, or tensors that say its dimensions are missing.
    """
    present = [prefix for prefix in CRITICS if part(tensors, prefix)]
    if len(present) != 1:
        found = " and ".join(present) or "none"
        raise InputError(f"{where}: expected tensors under one of {' and '.join(CRITICS)}, got {found}")
    prefix = present[0]
    sizes = _Sizes(part(tensors, prefix), where)
    ensemble = sizes.count(f"{prefix}.q_nets")
    kind: Literal["double", "ensemble"] = "ensemble" if ensemble else "double"
    heads = ensemble or 2
    nets = [CriticLayout(prefix, kind, heads, (), ()).head_name(head) for head in range(heads)]
    # Linear, LayerNorm, (Mish), ..., Linear: two layers with tensors per hidden width, and the last one.
    layers = Counter((sizes.count(net) - 1) // 2 for net in nets if sizes.count(net)).most_common(1)
    if not layers:
        raise InputError(f"{where}: expected tensors under {nets[0]} or {prefix}.q_nets.0, got none")
    hidden_dims = tuple(
        sizes.most((f"{net}.{3 * layer + k}.bias", 0) for net in nets for k in (0, 1))
        for layer in range(layers[0][0])
    )
    inputs = sizes.all((f"{net}.0.weight", 1) for net in nets)
    return CriticLayout(prefix, kind, heads, hidden_dims, tuple(dict.fromkeys(inputs)))


def visual_layout(tensors: Tensors, where: str) -> VisualLayout:
    """Return dimensions of the visual encoder.

    Raises:
        InputError: tensors that say them are missing, or channels that are no cameras of three.
    """
    sizes = _Sizes(tensors, where)
    channels = sizes.most([("cnn.0.weight", 1)])
    if channels % 3:
        raise InputError(f"{where}: tensor cnn.0.weight: expected 3 input channels per camera, got {channels}")
    return VisualLayout(channels, sizes.most([("fc.0.bias", 0), ("fc.0.weight", 0)]))


@dataclass(frozen=True)
class _Sizes:
    """Sizes of axes of tensors, as far as the tensors are there."""

    tensors: Tensors
    where: str

    def all(self, axes: Iterable[tuple[str, int]]) -> list[int]:
        """Return sizes of (name, axis), of those that exist.

        Raises:
            InputError: none exists.
        """
        wanted = list(axes)
        shapes = [(self.tensors[name].shape, axis) for name, axis in wanted if name in self.tensors]
        sizes = [shape[axis] for shape, axis in shapes if len(shape) > axis and shape[axis]]
        if not sizes:
            name = wanted[0][0] if wanted else "cond_encoder.1.weight"
            raise InputError(f"{self.where}: tensor {name}: expected one of the published layout, got none")
        return sizes

    def most(self, axes: Iterable[tuple[str, int]]) -> int:
        """Return the size that most of (name, axis) have; the first named where they tie."""
        return Counter(self.all(axes)).most_common(1)[0][0]

    def count(self, prefix: str) -> int:
        """Return how many different numbers follow ``prefix.`` in the names."""
        start = f"{prefix}."
        numbers = {name.removeprefix(start).split(".")[0] for name in self.tensors if name.startswith(start)}
        return sum(number.isdecimal() for number in numbers)
