"""``dsrl checkpoint inspect FILE``: what a checkpoint holds, without loading it into networks."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from dsrl_offpolicy.base_policies.published_layout import (
    AGENTS,
    VELOCITY_NETS,
    WEIGHTS,
    VelocityLayout,
    VisualLayout,
    critic_layout,
    entry,
    is_published,
    part,
    velocity_layout,
    visual_layout,
)
from dsrl_offpolicy.commands.arguments import OneLineParser
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import check_kind, read_tensors

PROG = "dsrl checkpoint"
NETWORKS = {
    "base_policy": ("encoder", "velocity_net_ema", "critic"),
    "stage1": ("policy", "critic"),
    "stage2": ("policy",),
    "snapshot": (),
    "unfinished_stage0": (),
    "unfinished_stage1": (),
}
"""Networks that a checkpoint of each kind is there for; optimisers, targets and buffers are not among them."""
SHOWN = ("spec", "steering", "counters", "critic_shape", "env_id", "gradient_steps", "base_fingerprint", "message")
"""Plain values of our checkpoints that say what they are."""


def inspect(path: Path) -> dict[str, Any]:
    """Return what a checkpoint is, as plain values.

    Args:
        path: a base policy (ours or published) or a latent policy of Stage 1 or 2.

    Raises:
        InputError: no such file, damaged, or no checkpoint of these kinds.
    """
    path = path.expanduser()
    content = read_tensors(path, "checkpoint", "FILE")
    about = {"file": str(path), "bytes": path.stat().st_size}
    if is_published(content):
        return about | _published(content, f"FILE: {path}")
    kind = content.get("kind") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise InputError(f"FILE: expected a checkpoint ({', '.join(NETWORKS)} or published), {path} is not one")
    ours = _ours(check_kind(content, path, kind, "FILE"), kind)
    return about | _plain(ours) | {"format_version": content["format_version"]}


def _ours(content: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Of content that was brought to this package's format version."""
    return {
        "kind": kind,
        "format": "dsrl_offpolicy",
        "format_version": content["format_version"],
        **{name: content[name] for name in SHOWN if name in content},
        "entries": [name for name in content if name not in ("kind", "format_version")],
        "tensors": sum(1 for _ in _tensors(content)),
        "parameters": {
            name: sum(value.numel() for value in _tensors(content[name]))
            for name in NETWORKS[kind]
            if name in content
        },
    }


def _published(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = [agent for agent in AGENTS if agent in content]
    first = found[-1]  # ema_agent, where it is there: the default choice
    tensors = entry(content, first, where)
    inside = f"{where}: {first}"
    nets = [net for net in VELOCITY_NETS if part(tensors, net)]
    velocity = velocity_layout(tensors, nets[0] if nets else VELOCITY_NETS[0], inside)
    critic = critic_layout(tensors, inside)
    images = entry(content, "visual_encoder", where) if "visual_encoder" in content else None
    visual = visual_layout(images, f"{where}: visual_encoder") if images is not None else None
    parameters = {
        f"{agent}.{net}": sum(value.numel() for value in part(entry(content, agent, where), net).values())
        for agent in found
        for net in (*VELOCITY_NETS, critic.prefix)
    }
    if images is not None:
        parameters["visual_encoder"] = sum(value.numel() for value in images.values())
    return {
        "kind": "base_policy",
        "format": "published AWSC",
        "weights": [weights for weights in WEIGHTS if parameters.get(weights)],
        "action_dim": velocity.action_dim,
        "velocity_widths": list(velocity.widths),
        "embed_dim": velocity.embed_dim,
        "feature_dim": velocity.feature_dim,
        "critic": {
            "class": critic.kind,
            "prefix": critic.prefix,
            "heads": critic.heads,
            "hidden_dims": list(critic.hidden_dims),
            "act_horizon": critic.act_horizon(velocity),
        },
        "visual_encoder": (
            {"channels": visual.channels, "cameras": visual.channels // 3, "visual_dim": visual.visual_dim}
            if visual is not None
            else None
        ),
        "possible_obs_horizon_and_state_dim": possible_frames(velocity, visual),
        "tensors": sum(1 for _ in _tensors(content)),
        "parameters": parameters,
    }


def possible_frames(velocity: VelocityLayout, visual: VisualLayout | None) -> list[list[int]]:
    """Return every [obs_horizon, state_dim] that the width of the features allows: G = o * (V + S)."""
    visual_dim = visual.visual_dim if visual is not None else 0
    width = velocity.feature_dim
    horizons = range(1, width // (visual_dim + 1) + 1)
    return [[o, width // o - visual_dim] for o in horizons if width % o == 0]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def print_table(report: Mapping[str, Any]) -> None:
    """Print the report for a person."""
    table = Table(show_header=False)
    for name, value in report.items():
        if isinstance(value, Mapping):
            for inner, content in value.items():
                table.add_row(f"{name}.{inner}", _cell(content))
        else:
            table.add_row(name, _cell(value))
    Console(width=None if sys.stdout.isatty() else 110, markup=False, highlight=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"({_cell(inner)})" if isinstance(inner, list) else _cell(inner) for inner in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Values that JSON knows; a number that it does not (an unbounded action_magnitude) as text, and of anything
    else the type."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else f"({type(value).__name__})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dsrl checkpoint inspect FILE [--json]``; return the exit status, 2 where something given is wrong."""
    parser = OneLineParser(prog=PROG, description="Show what a checkpoint holds.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="inspect")
    command = actions.add_parser("inspect", help="kind, shapes, counters and sizes", allow_abbrev=False)
    command.add_argument("file", type=Path, metavar="FILE", help="a base policy or a latent policy")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    try:
        options = parser.parse_args(argv)
        report = inspect(options.file)
    except InputError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_table(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
