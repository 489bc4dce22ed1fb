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
FLAG = re.compile(r"(?<![\w-])(--[a-z]\w*)((?: [A-Z|]+)?)")
"""A flag in a help text, and what it takes."""


Commands = Mapping[str, tuple[str, str]]
"""Module and purpose of each command."""


def completed_parser(jobs: Commands, tools: Commands) -> argparse.ArgumentParser:
    """Return a parser of all commands with the flags that their help names, for ``shtab``."""
    parser = argparse.ArgumentParser("dsrl")
    commands = parser.add_subparsers()
    for name, (module, what) in {**jobs, **tools}.items():
        command = commands.add_parser(name, help=what.replace("%", "%%"), add_help=False)
        text = _help(module, "--help_all" if name in jobs else "--help")
        for flag, takes in dict(FLAG.findall(text)).items():
            if takes:
                command.add_argument(flag).complete = shtab.FILE  # type: ignore[attr-defined]
            else:
                command.add_argument(flag, action="store_true")
        command.add_argument("rest", nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


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
