"""The results page of benchmarks/steering.py: for each task a plot, a table, and the commands that made it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsrl_offpolicy.analysis.aggregate import area_under_curve, estimate, mean_of_runs
from dsrl_offpolicy.analysis.comparison import Comparison, CurvePoint, EvaluatedRun, GroupNumbers, compare
from dsrl_offpolicy.analysis.curves import draw_success
from dsrl_offpolicy.analysis.run_folder import RATES, RunFolder, read_runs
from dsrl_offpolicy.analysis.stage2_runs import evaluated
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.intervals import Interval

if TYPE_CHECKING:
    from steering import Cell, Plan

NAME = "steering.md"
NONE = "-"
DRAWN = ("base (prior noise)", "w = 0")
"""Baselines that the plots show."""
INTRODUCTION = """# Ways to steer, compared

Success is that of the last evaluation, in per cent; that of the baselines is from `dsrl eval`. Intervals are
95 %: percentile bootstrap over seeds, or Wilson's over the episodes where there is one seed. The area is the mean
success in per cent over the env steps that all variants of the task have. Env steps to {level} % are those of the
first evaluation at that level or above, seed by seed; {none} where there is none. Minutes are wall-clock of the
variant's own run, on a machine that ran others at the same time.

    python benchmarks/steering.py run YAML --out FOLDER
    python benchmarks/steering.py page FOLDER
"""


@dataclass(frozen=True)
class Member:
    """The run of one seed."""

    cell: Cell
    folder: RunFolder
    curve: EvaluatedRun


def write_page(to: Path, plan: Plan, cells: Sequence[Cell]) -> Path:
    """Write the page and its plots; returns the page's path.

    Raises:
        InputError: nothing has ended, or the folder cannot be written.
    """
    if not any(cell.ended for cell in cells if cell.part != "shared"):
        raise InputError("FOLDER: expected a variant or a table that has ended, there is none yet")
    try:
        to.mkdir(parents=True, exist_ok=True)
        parts = [INTRODUCTION.format(level=f"{100 * plan.level:g}", none=NONE)]
        parts += [_section(to, plan, task, [c for c in cells if c.task == task]) for task in plan.tasks]
        (to / NAME).write_text("\n".join(parts))
    except OSError as error:
        raise InputError(f"--to: expected a folder to write to, {to}: {error.strerror}") from error
    return to / NAME


def _section(to: Path, plan: Plan, task: str, cells: Sequence[Cell]) -> str:
    """Everything about one task."""
    notes = [f"{cell.name}, seed {cell.seed}: has not ended" for cell in cells if not cell.ended]
    ended = [cell for cell in cells if cell.ended]
    groups: dict[str, list[Member]] = {}
    for cell in ended:
        if cell.part == "variants":
            try:
                member = _read(cell)
                groups.setdefault(cell.name, []).append(member)
            except InputError as error:
                notes.append(f"{cell.name}, seed {cell.seed}: left out, {error}")
    baselines = _baselines([cell for cell in ended if cell.part == "tables"])
    table = [
        f"| | seeds | success | area | env steps | env steps to {100 * plan.level:g} % | env steps for choosing "
        "| minutes |",
        "|---" * 8 + "|",
        *(_baseline_line(name, rows) for name, rows in baselines.items()),
    ]
    text = [f"## {task}", ""]
    if groups:
        curves = [member.curve for members in groups.values() for member in members]
        bounds = max(c.env_steps[0] for c in curves), min(c.env_steps[-1] for c in curves)
        found = {name: compare(_by_name(name, members), plan.level) for name, members in groups.items()}
        for name, comparison in found.items():
            notes += comparison.notes
            table.append(_line(groups[name], comparison, bounds))
        levels = {name: _success(rows) for name, rows in baselines.items() if name in DRAWN}
        path = to / f"{Path(NAME).stem}-{task}.png"
        _plot(path, groups, {name: comparison.groups[0] for name, comparison in found.items()}, levels, bounds[1])
        text += [f"![Success of each variant]({path.name})", ""]
        text += [f"The area is from {bounds[0]:,.0f} to {bounds[1]:,.0f} env steps.", ""]
    seed = plan.seeds[0]
    commands = [f"    dsrl {cell.command}" for cell in cells if cell.seed == seed]
    text += [*table, "", *(f"- {note}" for note in dict.fromkeys(notes)), ""]
    return "\n".join([*text, f"Made by (seed {seed}; the other seeds likewise):", "", *commands, ""])


def _read(cell: Cell) -> Member:
    """Read a variant's run; raises InputError where there are not two evaluations to make a curve of."""
    run = read_runs(cell.out)[0]
    if len(run.evaluations) < 2:
        raise InputError(f"expected two evaluations or more, got {len(run.evaluations)}")
    return Member(cell, run, replace(evaluated(run), name=f"{cell.name}, seed {cell.seed}"))


def _by_name(name: str, members: Sequence[Member], over: str = "env_steps") -> dict[str, list[EvaluatedRun]]:
    """A group for :func:`compare`, along another column of the evaluations if need be."""
    columns = [np.array([row[over] for row in m.folder.evaluations], dtype=float) for m in members]
    return {name: [replace(m.curve, env_steps=c) for m, c in zip(members, columns, strict=True)]}


def _line(members: Sequence[Member], comparison: Comparison, bounds: tuple[float, float]) -> str:
    """A variant's row of the table."""
    (numbers,) = comparison.groups
    area, (first, last) = NONE, bounds
    if first < last:
        areas = [area_under_curve(m.curve.env_steps, m.curve.success, first, last) for m in members]
        area = percent(estimate([np.array(areas)], mean_of_runs))
    reached = [NONE if r.env_steps_to_level is None else f"{r.env_steps_to_level:,}" for r in numbers.runs]
    minutes = [m.folder.summary["minutes"] for m in members if "minutes" in m.folder.summary]
    cells = [
        numbers.name,
        _seeds(m.cell for m in members),
        percent(numbers.success_mean),
        area,
        f"{comparison.last_env_step:,}",
        ", ".join(reached),
        _choosing([m.cell for m in members]),
        f"{np.mean(minutes):.1f}" if minutes else NONE,
    ]
    return f"| {' | '.join(cells)} |"


def _baselines(tables: Sequence[Cell]) -> dict[str, dict[Cell, Mapping[str, Any]]]:
    """Rows of ``dsrl eval`` by policy. What several tables have is taken once; a stage's say whose they are."""
    found: dict[str, dict[Cell, Mapping[str, Any]]] = {}
    for cell in tables:
        for row in json.loads((cell.out / "evaluation.json").read_text()):
            name = f"{row['policy']}, {cell.name}" if row["policy"].startswith("stage") else row["policy"]
            rows = found.setdefault(name, {})
            if cell.seed not in {other.seed for other in rows}:
                rows[cell] = row
    return found


def _success(rows: Mapping[Cell, Mapping[str, Any]]) -> Interval:
    """Over the seeds, or over the episodes of the only one."""
    if len(rows) == 1:
        (row,) = rows.values()
        return Interval(*(row[rate] for rate in RATES))
    return estimate([np.array([row["success_once"] for row in rows.values()])], mean_of_runs)


def _baseline_line(name: str, rows: Mapping[Cell, Mapping[str, Any]]) -> str:
    choosing = _choosing(list(rows)) if name.startswith("stage") else NONE
    return f"| {name} | {_seeds(rows)} | {percent(_success(rows))} | | | | {choosing} | |"


def _seeds(cells: Iterable[Cell]) -> str:
    return " ".join(str(cell.seed) for cell in cells)


def _choosing(cells: Sequence[Cell]) -> str:
    """Env steps, seed by seed, that the ``choice`` of a run and of those whose files it reads took, if any."""

    def files(cell: Cell) -> set[Cell]:
        return {cell}.union(*(files(need) for need in cell.needs))

    def spent(cell: Cell) -> str:
        paths = [other.out / "summary.json" for other in files(cell)]
        found = [
            json.loads(path.read_text()).get("choice", {}).get("env_steps") for path in paths if path.is_file()
        ]
        said = [steps for steps in found if steps is not None]
        return f"{sum(said):,}" if said else NONE

    each = [spent(cell) for cell in cells]
    return ", ".join(each) if len(set(each)) > 1 else each[0]


def percent(rate: Interval) -> str:
    """A rate with its interval, in per cent."""
    text = f"{100 * rate.value:.0f}"
    if rate.low is None or rate.high is None:
        return text
    return f"{text} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def _plot(
    path: Path,
    groups: Mapping[str, Sequence[Member]],
    numbers: Mapping[str, GroupNumbers],
    levels: Mapping[str, Interval],
    common: float,
) -> None:
    """Plot success over env steps, beyond those that all runs have on a logarithmic scale, and over minutes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    draw_success(left, {name: _points(group.curve, "env_steps") for name, group in numbers.items()}, levels)
    if any(group.curve[-1].env_steps > 1.5 * common for group in numbers.values()):
        left.set_xscale("symlog", linthresh=common)
    by_minutes: dict[str, list[dict[str, float]]] = {name: [] for name in groups}
    for name, members in groups.items():
        with suppress(InputError):  # seeds so unlike in speed that no minute has all of them
            curve = compare(_by_name(name, members, "minutes"), 1.0).groups[0].curve
            by_minutes[name] = _points(curve, "minutes")
    draw_success(right, by_minutes, levels, "minutes")
    left.legend(loc="best", fontsize="small")
    left.set(title=path.stem.removeprefix(f"{Path(NAME).stem}-"))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _points(curve: Sequence[CurvePoint], over: str) -> list[dict[str, float]]:
    """The means of a curve as ``draw_success`` takes them; without an interval the band has no width."""
    return [
        {over: p.env_steps}
        | {rate: p.mean.value if v is None else v for rate, v in zip(RATES, asdict(p.mean).values(), strict=True)}
        for p in curve
    ]
