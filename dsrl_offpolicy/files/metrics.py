"""``metrics.jsonl`` of a run folder, as it is read: a JSON object of finite numbers a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import Number, checked

NAME = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run. What a killed run left of a last line, without its end, is no row.

    Raises:
        InputError: no such file, or another line that is no JSON object of finite numbers.
    """
    path = folder / NAME
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected rows of metrics, got: {error}") from error
    return [metrics_row(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], start=1)]


def metrics_row(line: str, where: str) -> dict[str, Any]:
    """The numbers by name that a line holds.

    Raises:
        InputError: it holds something else, or a number that is not finite.
    """
    row = json_object(line, where)
    for name, value in row.items():
        checked(value, Number, f"{where}: {name}")
    return row


def json_object(text: str, where: str) -> dict[str, Any]:
    """What a text of JSON holds.

    Raises:
        InputError: no JSON, or no object.
    """
    try:
        content = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InputError(f"{where}: expected JSON, got: {error}") from error
    return checked(content, dict[str, Any], where)
