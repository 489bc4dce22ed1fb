"""``dsrl report RUN_DIR...``: everything that run folders tell, as one HTML file to look at and to send."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dsrl_offpolicy.analysis.report import make_report
from dsrl_offpolicy.analysis.report_page import check_installed, render
from dsrl_offpolicy.commands.arguments import OneLineParser
from dsrl_offpolicy.errors import InputError

PROG = "dsrl report"
LEVEL = 0.8


def check_free(path: Path) -> None:
    """Refuse to write over anything.

    Raises:
        InputError: the file exists.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"--out: expected a new file, {path} exists (pass another --out)")


def write_report(folders: Sequence[Path], out: Path, level: float = LEVEL) -> None:
    """Write the report of these folders; nothing where something is wrong.

    Raises:
        InputError: a folder that is none of a run, a file that exists or cannot be written, or no library to draw.
    """
    check_installed()
    check_free(out)
    page = render(make_report(folders, level))
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise InputError(f"--out: expected a file to write, {out}: {error.strerror}") from error


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROG,
        description="Write one HTML file about runs: verdict, curves, health, settings. It needs no network.",
        epilog="Runs of the same settings are taken together, over seeds. Unfinished and broken ones are told of.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="RUN_DIR",
        help="run folder of a stage, of a quickstart or of dsrl eval",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="a new file; default report.html"
    )
    parser.add_argument("--level", type=float, default=LEVEL, help=f"success to reach, in (0, 1]; default {LEVEL}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dsrl report RUN_DIR... [--flags]``; return the exit status, 2 where something given is wrong."""
    try:
        options = _parser().parse_intermixed_args(argv)
        if not 0 < options.level <= 1:
            raise InputError(f"--level: expected a number in (0, 1], got {options.level}")
        out = options.out.expanduser()
        write_report(options.folders, out, options.level)
        print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB, needs no network)")
    except InputError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
