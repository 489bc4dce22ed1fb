"""``--help``, which fits a screen, and ``--help_all``: from a job's fields and their docstrings."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

COLUMN = 30
"""Where explanations begin, on a terminal that is wide enough."""
NAMES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def help_text(config: Any, prog: str, *, everything: bool, presets: Sequence[str] = ()) -> str:
    """Return the help of a command.

    Args:
        config: a job's settings, whose values are the defaults to show. Its class says in ``usual`` which flags
            people set; where it does not, all are shown.
        prog: how the command is called.
        everything: all flags, grouped by the class that defines them, whose ``title`` is the heading.
        presets: what ``--preset`` takes; none where the command has no such flag.
    """
    job = type(config)
    width = max(50, min(shutil.get_terminal_size((80, 24)).columns, 115))
    usual: tuple[str, ...] = () if everything else getattr(job, "usual", ())
    shown = {field.name: field for field in fields(job)}
    about = " ".join((inspect.getdoc(job) or "").split())
    preset = " [--preset NAME]" if presets else ""
    usage = f"usage: {prog}{preset} [--config FILE.yaml] [--progress auto|plain|json|quiet] [--flags]"
    lines = [
        *textwrap.wrap(usage, width, subsequent_indent="  ", break_on_hyphens=False),
        "",
        *textwrap.wrap(about, width),
        *(textwrap.wrap(f"Presets: {', '.join(presets)}.", width, break_on_hyphens=False) if presets else ()),
        "",
    ]
    if usual:
        for name in usual:
            lines += _entry(config, shown[name], width)
        lines += ["", f"{len(shown) - len(usual)} more flags: {prog} --help_all"]
        return "\n".join(lines)
    groups: dict[str, list[Field]] = {}
    for field in shown.values():
        groups.setdefault(vars(_owner(job, field.name)).get("title", "This command"), []).append(field)
    for title, members in groups.items():
        lines += [f"{title}:", *(line for field in members for line in _entry(config, field, width)), ""]
    return "\n".join(lines).rstrip()


def _entry(config: Any, field: Field, width: int) -> Iterator[str]:
    """The lines of a flag."""
    kind = get_type_hints(type(config), include_extras=True)[field.name]
    flag = f"  --{field.name}"
    flag += f", --no_{field.name}" if kind is bool else f" {_metavar(kind)}"
    value = getattr(config, field.name)
    told = _docstrings(_owner(type(config), field.name)).get(field.name, "")
    if value is not None:
        told += f" [{_plain(value)}]"
    column = min(COLUMN, width // 3)
    explained = textwrap.wrap(told, width - column) or [""]
    if len(flag) < column - 1:
        yield flag.ljust(column) + explained.pop(0)
    else:
        yield flag
    yield from (" " * column + line for line in explained)


def _metavar(kind: Any) -> str:
    """How a value of this type is written."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _metavar(inner[0])
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(_metavar(k) for k in inner if k is not type(None)))
    if origin is tuple:
        return f"{_metavar(inner[0])} ..."
    return NAMES.get(kind, "VALUE")


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _owner(job: type, name: str) -> type:
    """The class that defines a field, and explains it."""
    return next((c for c in job.__mro__ if name in _docstrings(c)), job)


@functools.cache
def _docstrings(cls: type) -> dict[str, str]:
    """What stands under the fields in a class's source; nothing where that cannot be read."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in itertools.pairwise(body.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found
