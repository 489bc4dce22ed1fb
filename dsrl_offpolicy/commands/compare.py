"""``dsrl compare RUN_DIR...``: what Stage 2 comes to over seeds, and whether one group of runs beats another."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from dsrl_offpolicy.analysis.comparison import Comparison, GroupNumbers, compare
from dsrl_offpolicy.analysis.curves import plot_success
from dsrl_offpolicy.analysis.run_folder import RunFolder
from dsrl_offpolicy.analysis.stage2_runs import (
    check_distinct,
    differing_settings,
    evaluated,
    group_runs,
    read_run,
)
from dsrl_offpolicy.commands.arguments import OneLineParser
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.intervals import percent

PROG = "dsrl compare"
FILES = ("compare.json", "compare.csv", "compare.png")


def read_groups(folders: Sequence[Path], named: Sequence[Sequence[str]]) -> dict[str, list[RunFolder]]:
    """Return runs by group: told apart by their settings, or as named.

    Args:
        folders: run folders to be grouped.
        named: instead of them, groups as a name and its folders.

    Raises:
        InputError: nothing or both given, a name twice, or a folder that cannot be read or is given twice.
    """
    if bool(folders) == bool(named):
        came = "both" if named else "neither"
        raise InputError(f"RUN_DIR: expected run folders or --group NAME RUN_DIR..., got {came}")
    groups: dict[str, list[RunFolder]] = {}
    for name, *members in named:
        if not members:
            raise InputError(f"--group: expected a name and run folders, got {name!r} alone")
        if name in groups:
            raise InputError(f"--group: expected every name once, got {name!r} twice")
        groups[name] = [read_run(Path(folder)) for folder in members]
    runs = [read_run(folder) for folder in folders] or [run for members in groups.values() for run in members]
    check_distinct(runs)
    return groups or group_runs(runs)


def write(comparison: Comparison, folder: Path) -> None:
    """Write ``compare.json``, ``compare.csv`` (the curves of the groups) and ``compare.png``.

    Raises:
        InputError: one of them exists, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "compare.json").open("x") as file:
            file.write(json.dumps(asdict(comparison), indent=2) + "\n")
        with (folder / "compare.csv").open("x", newline="") as file:
            _write_curves(comparison, file)
        tasks = ", ".join(sorted({run.task for group in comparison.groups for run in group.runs}))
        curves = {f"{group.name} ({_runs(group)})": _curve(group) for group in comparison.groups}
        title = f"{tasks}: interquartile mean over runs, 95 % intervals"
        plot_success(folder / "compare.png", curves, {}, title)
    except OSError as error:
        raise InputError(f"--out: expected a folder to write to, {folder}: {error.strerror}") from error


def _write_curves(comparison: Comparison, file: IO[str]) -> None:
    rows = csv.writer(file)
    rows.writerow(["group", "env_steps", "mean", "mean_low", "mean_high", "iqm", "iqm_low", "iqm_high"])
    for group in comparison.groups:
        for point in group.curve:
            numbers = [*asdict(point.mean).values(), *asdict(point.iqm).values()]
            rows.writerow([group.name, round(point.env_steps), *numbers])


def _curve(group: GroupNumbers) -> list[dict[str, float]]:
    """As ``plot_success`` takes it; without an interval the band has no width."""
    return [
        {
            "env_steps": point.env_steps,
            "success_once": point.iqm.value,
            "success_once_low": point.iqm.value if point.iqm.low is None else point.iqm.low,
            "success_once_high": point.iqm.value if point.iqm.high is None else point.iqm.high,
        }
        for point in group.curve
    ]


def check_free(folder: Path) -> None:
    """Refuse to write over anything.

    Raises:
        InputError: a file that would be written exists.
    """
    for name in FILES:
        if (folder / name).exists():
            raise InputError(f"--out: expected a folder without {name}, {folder / name} exists")


def print_tables(comparison: Comparison) -> None:
    """Print the comparison for a person."""
    console = Console(width=None if sys.stdout.isatty() else 130, markup=False, highlight=False)
    first, last = f"{comparison.first_env_step:,}", f"{comparison.last_env_step:,}"
    console.print(f"Success at {last} env steps, and its mean from {first} to {last} (area), in per cent")
    console.print(_group_table(comparison))
    if comparison.pairs:
        console.print("Probability of improvement in per cent, and difference of means in points")
        console.print(_pair_table(comparison))
    for note in comparison.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(
        f"[low, high]: {100 * comparison.confidence:g} % intervals, percentile bootstrap over runs, "
        f"{comparison.resamples:,} resamples from seed {comparison.bootstrap_seed}; docs/statistics.md"
    )


def _group_table(comparison: Comparison) -> Table:
    groups = comparison.groups
    what, names = _heading([group.name for group in groups])
    # Of fewer than four runs the IQM is the mean.
    columns = {"mean": ("success_mean", "area_mean"), "IQM": ("success_iqm", "area_iqm")}
    if all(len(group.runs) < 4 for group in groups):
        del columns["IQM"]
    table = Table()
    table.add_column(what, overflow="fold")
    table.add_column("seeds", overflow="fold")
    for score in ("success", "area"):
        for statistic in columns:
            table.add_column(f"{score}, {statistic}", justify="right")
    table.add_column(f"{100 * comparison.level:g} % reached, median at", justify="right")
    for group, name in zip(groups, names, strict=True):
        seeds = ", ".join(dict.fromkeys(str(run.seed) for run in group.runs))
        cells = [percent(getattr(group, pair[score])) for score in (0, 1) for pair in columns.values()]
        table.add_row(name, seeds, *cells, _reached(group))
    return table


def _pair_table(comparison: Comparison) -> Table:
    what, names = _heading([group.name for group in comparison.groups])
    short = dict(zip((group.name for group in comparison.groups), names, strict=True))
    table = Table()
    table.add_column(what, overflow="fold")
    table.add_column("against", overflow="fold")
    for name in ("P(success higher)", "points", "P(area higher)", "points"):
        table.add_column(name, justify="right")
    for pair in comparison.pairs:
        table.add_row(
            short[pair.name],
            short[pair.than],
            percent(pair.probability_success),
            percent(pair.difference_success, "+"),
            percent(pair.probability_area),
            percent(pair.difference_area, "+"),
        )
    return table


def _heading(names: Sequence[str]) -> tuple[str, list[str]]:
    """``k=1`` and ``k=2`` as the heading ``k`` over ``1`` and ``2``; other names under ``group``."""
    parts = [name.split("=") for name in names]
    if len({part[0] for part in parts}) == 1 and all(len(part) == 2 for part in parts):
        return parts[0][0], [part[1] for part in parts]
    return "group", list(names)


def _reached(group: GroupNumbers) -> str:
    text = f"{group.reached_level} of {len(group.runs)}"
    median = group.median_env_steps_to_level
    return text if median is None else f"{text}, {median:,}"


def _runs(group: GroupNumbers) -> str:
    return f"{len(group.runs)} run{'s' if len(group.runs) > 1 else ''}"


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROG,
        description="Compare Stage 2 runs over seeds: groups with intervals, and against each other.",
        epilog="Runs are grouped by their settings; --group says which belong together instead.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", type=Path, nargs="*", metavar="RUN_DIR", help="run folder of Stage 2 or of a quickstart"
    )
    parser.add_argument(
        "--group", action="append", nargs="+", default=[], metavar=("NAME", "RUN_DIR"),
        help="a group's name and its run folders; once per group",
    )  # fmt: skip
    parser.add_argument("--level", type=float, default=0.8, help="success to reach, in (0, 1]; default 0.8")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"also write {', '.join(FILES)} into this folder"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def run(options: argparse.Namespace) -> Comparison:
    """Read, compare, print and, asked for, write."""
    if not 0 < options.level <= 1:
        raise InputError(f"--level: expected a number in (0, 1], got {options.level}")
    if options.out is not None:
        check_free(options.out.expanduser())
    groups = read_groups(options.folders, options.group)
    runs = {name: [evaluated(member) for member in members] for name, members in groups.items()}
    comparison = compare(runs, options.level)
    comparison.notes.extend(_mixtures(groups))
    if options.out is not None:
        folder = options.out.expanduser()
        write(comparison, folder)
        print(f"wrote {', '.join(FILES)} in {folder}", file=sys.stderr)
    if options.json:
        print(json.dumps(asdict(comparison), indent=2))
    else:
        print_tables(comparison)
    return comparison


def _mixtures(groups: Mapping[str, Sequence[RunFolder]]) -> list[str]:
    return [
        f"{label}: runs differ in {name} ({', '.join(values)})"
        for label, members in groups.items()
        for name, values in differing_settings(members).items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dsrl compare RUN_DIR... [--flags]``; return the exit status, 2 where something given is wrong."""
    try:
        run(_parser().parse_intermixed_args(argv))
    except InputError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
