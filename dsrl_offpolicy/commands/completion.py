"""``dsrl completion SHELL``: a script that lets a shell complete commands and their flags."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import sys
from collections.abc import Mapping, Sequence

import shtab

from dsrl_offpolicy.commands.arguments import OneLineParser
from dsrl_offpolicy.errors import InputError

PROG = "dsrl completion"
TAKES = r"(?: (\{[^}]*\}|[\w|./]+))?"
ENTRY = re.compile(rf"^  (?:-\w, )?(--[a-z]\w*){TAKES}(?: \.\.\.)?(?:, (--no_\w+))?(?=  |$)", re.MULTILINE)
"""A line of a help text that explains a flag: the flag, what it takes, and what turns it off."""
USAGE = re.compile(rf"\[(--[a-z]\w*){TAKES}\]")
"""A flag in the line that says how a command is called."""


Commands = Mapping[str, tuple[str, str]]
"""Module and purpose of each command."""


def completed_parser(jobs: Commands, tools: Commands) -> argparse.ArgumentParser:
    """Return a parser of all commands with the flags that their help names, for ``shtab``."""
    parser = argparse.ArgumentParser("dsrl")
    commands = parser.add_subparsers()
    for name, (module, what) in {**jobs, **tools}.items():
        command = commands.add_parser(name, help=what.replace("%", "%%"), add_help=False)
        text = _help(module, "--help_all" if name in jobs else "--help")
        for flag, takes in _flags(text).items():
            if not takes:
                command.add_argument(flag, action="store_true")
            elif choices := _choices(takes):
                command.add_argument(flag, choices=choices)
            else:
                command.add_argument(flag).complete = shtab.FILE  # type: ignore[attr-defined]
        command.add_argument("rest", nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def _flags(text: str) -> dict[str, str]:
    """The flags of a help text, and what each takes; nothing where it takes none."""
    usage, _, _ = text.partition("\n\n")
    found = dict(USAGE.findall(" ".join(usage.split()).replace("[--flags]", "")))
    for flag, takes, off in ENTRY.findall(text):
        found |= {flag: takes, **({off: ""} if off else {})}
    return found


def _choices(takes: str) -> list[str]:
    """The words of ``{a,b}`` or ``a|b``, and of ``FLOAT|auto`` the second; ``PATH`` has none."""
    return [word for word in re.split(r"[|,]", takes.strip("{}")) if not word.isupper()]


def _help(module: str, flag: str) -> str:
    if module == __name__:
        return _parser().format_help()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(module).main([flag])
    return out.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(PROG, description="Print a script that completes commands and flags in a shell.")
    parser.add_argument(
        "shell", choices=shtab.SUPPORTED_SHELLS, metavar="SHELL", help=", ".join(shtab.SUPPORTED_SHELLS)
    )
    return parser


def main(argv: Sequence[str], jobs: Commands, tools: Commands) -> int:
    """Run ``dsrl completion SHELL`` for these commands; return the exit status."""
    try:
        shell = _parser().parse_args(argv).shell
    except InputError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    print(shtab.complete(completed_parser(jobs, tools), shell))
    return 0
