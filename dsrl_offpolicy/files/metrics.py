"""``metrics.jsonl`` of a run folder, as it is read: finite numbers by name and a group, a line a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import checked, is_finite_number, shown

NAME = "metrics.jsonl"

Group = Literal["stage0", "encoder", "stage1", "train", "eval", "diag", "stages"]
"""What a row is of: training in Stage 0, of its image encoder, in Stage 1, in Stage 2 (``train``); an evaluation
by episodes; a check of what was learnt (``diag``); the stages of a quickstart that are done."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a run. What a killed run left of a last line, without its end, is no row.

    Raises:
        InputError: no such file, or another line that is no row.
    """
    path = folder / NAME
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected rows of metrics, got: {error}") from error
    return [metrics_row(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], start=1)]


def metrics_row(line: str, where: str) -> dict[str, Any]:
    """Read a line: numbers by name, and its ``group``, which rows of earlier versions do not say.

    Raises:
        InputError: it holds something else, an unknown group, or a number that is not finite.
    """
    row = json_object(line, where)
    for name, value in row.items():
        if name == "group":
            checked(value, Group, f"{where}: group")
        elif not is_finite_number(value):
            raise InputError(f"{where}: {name}: expected a finite number, got {shown(value)}")
    return row


def rows_of(rows: Iterable[Mapping[str, Any]], group: Group, names: Iterable[str] = ()) -> list[Mapping[str, Any]]:
    """Return the rows of one group that hold all of ``names``."""
    return [row for row in rows if group_of(row) == group and all(name in row for name in names)]


def group_of(row: Mapping[str, Any]) -> str:
    """Return the group that a row says. Rows of earlier versions say none: it is told from their names."""
    if "group" in row:
        return str(row["group"])
    if any(name.endswith("success_once") for name in row):
        return "eval"
    if "stages_done" in row:
        return "stages"
    if any(name.startswith("verification/") for name in row):
        return "diag"
    if "env_steps" in row:
        return "train"
    if "nll_loss" in row:
        return "stage1"
    return "stage0" if "q_mean" in row else "encoder"


def json_object(text: str, where: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: no JSON, or no object.
    """
    try:
        content = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InputError(f"{where}: expected JSON, got: {error}") from error
    return checked(content, dict[str, Any], where)
