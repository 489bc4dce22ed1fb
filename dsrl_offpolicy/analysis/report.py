"""What a report tells of run folders, whatever state they are in: success, verdicts on health, settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from dsrl_offpolicy.analysis.aggregate import estimate, mean_of_runs
from dsrl_offpolicy.analysis.comparison import Comparison, compare
from dsrl_offpolicy.analysis.report_videos import Videos, read_videos
from dsrl_offpolicy.analysis.run_folder import RATES, STAGES, RunFolder, read_runs
from dsrl_offpolicy.analysis.run_health import check_run
from dsrl_offpolicy.analysis.stage2_runs import check_distinct, evaluated, group_runs, read_run
from dsrl_offpolicy.analysis.verdict import Row, Verdict
from dsrl_offpolicy.configs.loading import to_plain
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.intervals import Interval, difference_interval, percent
from dsrl_offpolicy.files.plain import checked, reading
from dsrl_offpolicy.files.run_kind import read_kind

BASE, START, END = "base policy", "start of Stage 2", "Stage 2"
OF_TABLE = {"base (prior noise)": BASE, "stage1 deterministic": START, "stage2 deterministic": END}
"""The rows of ``dsrl eval`` that the verdict is about; others that begin with base or stage are no controls."""
ONLINE = ("stage2", "ppo")
LONGEST_SETTING = 160
"""Characters of a setting that are shown."""


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A row of ``evaluation.json``."""

    policy: str
    episodes: Annotated[int, Meta(ge=1)]
    success_once: Annotated[float, Meta(ge=0, le=1)]
    success_once_low: Annotated[float, Meta(ge=-1e-9, le=1)]
    success_once_high: Annotated[float, Meta(ge=0, le=1 + 1e-9)]


@dataclass(frozen=True)
class Source:
    """A folder that the report is about: of one stage, of a quickstart, or of an evaluation.

    Attributes:
        path: the folder.
        name: its own name, or its path where several folders have the same name.
        runs: the stages in it that can be read.
        table: of ``dsrl eval``, by policy; empty without one.
        problems: what could not be read, a line each.
        minutes: wall-clock of everything in the folder; None where nothing says.
    """

    path: Path
    name: str
    runs: list[RunFolder]
    table: dict[str, EvaluatedPolicy] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    minutes: float | None = None

    @property
    def online(self) -> RunFolder | None:
        """The run that learned online, if any."""
        return next((run for run in self.runs if run.kind in ONLINE), None)


@dataclass(frozen=True)
class PolicyRow:
    """Success of one policy: a source's own, with Wilson's interval, or the mean over ``per_source``."""

    name: str
    success: Interval
    per_source: dict[str, float]
    measured: str


@dataclass(frozen=True)
class Group:
    """Sources whose settings are the same but for the seed, and what they come to.

    ``tone`` is ``better``, ``worse``, ``unclear`` or ``unknown``: Stage 2 against the base policy, or where that
    was not evaluated, against its own start.
    """

    name: str
    sources: list[Source]
    policies: list[PolicyRow]
    tone: str
    headline: str
    sentences: list[str]


@dataclass(frozen=True)
class Health:
    """The doctor's verdicts on one run, or why there are none."""

    source: str
    run: RunFolder
    verdicts: list[Verdict]
    problem: str = ""

    @property
    def failed(self) -> int:
        """How many checks fail."""
        return sum(verdict.ok is False for verdict in self.verdicts)


@dataclass(frozen=True)
class Setting:
    """A setting of all runs of one kind: a value per run, and the default where it is known."""

    name: str
    default: str
    values: list[str]
    differs: bool
    changed: bool


@dataclass(frozen=True)
class Settings:
    """The settings of all runs of one kind, in the order of ``runs``."""

    kind: str
    runs: list[str]
    rows: list[Setting]


@dataclass(frozen=True)
class Report:
    """Everything a report says; ``comparison`` is there where runs have two evaluations or more in common."""

    title: str
    sources: list[Source]
    groups: list[Group]
    comparison: Comparison | None
    notes: list[str]
    health: list[Health]
    settings: list[Settings]
    videos: Videos


def make_report(folders: Sequence[Path], level: float) -> Report:
    """Read folders and tell what is in them.

    Args:
        folders: run folders of any stage, of quickstarts, of evaluations; unfinished, broken or not.
        level: success to reach, in (0, 1].

    Raises:
        InputError: no folder, one that is none of a run, or one given twice.
    """
    if not folders:
        raise InputError("RUN_DIR: expected run folders, got none")
    paths = [folder.expanduser() for folder in folders]
    sources = [read_source(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    check_distinct([RunFolder(source.path, "", {}) for source in sources])
    grouped, comparable, notes = _group(sources)
    comparison, said = _compared(comparable, level)
    tasks = {str(run.settings["env_id"]) for s in sources for run in s.runs if run.settings.get("env_id")}
    return Report(
        title=", ".join(sorted(tasks)) or ", ".join(source.name for source in sources),
        sources=sources,
        groups=[conclude(name, members) for name, members in grouped.items()],
        comparison=comparison,
        notes=list(dict.fromkeys([*notes, *said])),
        health=[_health(source, run) for source in sources for run in source.runs if run.kind != "ppo"],
        settings=list(_settings(sources)),
        videos=read_videos({s.name: [s.path, s.path / "eval", *(run.path for run in s.runs)] for s in sources}),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    short = [path.resolve().name for path in paths]
    return [str(path) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


def read_source(path: Path, name: str) -> Source:
    """Read what can be read of a folder; the rest is among its problems.

    Raises:
        InputError: no folder of a run.
    """
    if not path.is_dir():
        raise InputError(
            f"RUN_DIR: expected a run folder, {path} {'is not one' if path.exists() else 'is not there'}"
        )
    if not any((path / file).exists() for file in ("config.yaml", "run.json", "metrics.jsonl")):
        raise InputError(f"RUN_DIR: expected a run folder, {path} has no config.yaml, run.json or metrics.jsonl")
    runs: list[RunFolder] = []
    problems: list[str] = []
    table: dict[str, EvaluatedPolicy] = {}
    try:
        kind = read_kind(path)
        runs = [] if kind == "eval" else read_runs(path)
    except InputError as error:
        problems.append(str(error))
        for stage in STAGES:  # what is whole of a quickstart
            if (path / stage / "config.yaml").is_file():
                try:
                    runs += read_runs(path / stage)
                except InputError as damage:
                    problems.append(str(damage))
    try:
        table = read_table(path / "evaluation.json")
    except InputError as error:
        problems.append(str(error))
    return Source(path, name, runs, table, list(dict.fromkeys(problems)), _minutes(path, runs))


def read_table(path: Path) -> dict[str, EvaluatedPolicy]:
    """Read the table of ``dsrl eval`` by policy; empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return {}
    with reading(str(path), "the table of dsrl eval"):
        rows = json.loads(path.read_text())
    found: list[EvaluatedPolicy] = checked(rows, list[EvaluatedPolicy], str(path))
    return {row.policy: row for row in found}


def _minutes(path: Path, runs: Sequence[RunFolder]) -> float | None:
    """Of a quickstart its own count, which has demonstrations and the final table; of stages their sum."""
    try:
        own = json.loads((path / "summary.json").read_text())["minutes"]
        return float(checked(own, Annotated[float, Meta(ge=0, le=1e9)], "minutes"))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        last = [run.rows[-1]["minutes"] for run in runs if run.rows and "minutes" in run.rows[-1]]
        return float(sum(last)) if last else None


def _group(sources: Sequence[Source]) -> tuple[dict[str, list[Source]], dict[str, list[RunFolder]], list[str]]:
    """Sources by group, the runs of them that have evaluations to compare, and notes."""
    notes: list[str] = []
    runs: dict[Path, Source] = {}
    readable: list[RunFolder] = []
    for source in sources:
        if source.online is None or source.online.kind != "stage2":
            continue
        try:
            run = read_run(source.online.path)
        except InputError as error:
            notes.append(str(error))
            continue
        runs[run.path] = source
        readable.append(run)
    try:
        comparable = group_runs(readable) if readable else {}
    except InputError as error:
        notes.append(str(error))
        comparable = {runs[run.path].name: [run] for run in readable}
    grouped = {name: [runs[run.path] for run in members] for name, members in comparable.items()}
    rest = [source for source in sources if source not in runs.values()]
    for source in rest:
        name = source.name if source.name not in grouped else str(source.path)
        grouped[name] = [source]
    return grouped, comparable, notes


def _compared(groups: Mapping[str, Sequence[RunFolder]], level: float) -> tuple[Comparison | None, list[str]]:
    if sum(len(members) for members in groups.values()) < 2:
        return None, []
    try:
        found = compare({name: [evaluated(run) for run in members] for name, members in groups.items()}, level)
    except InputError as error:
        return None, [f"no comparison: {error}"]
    return found, found.notes


def policies_of(source: Source) -> dict[str, tuple[Interval, str]]:
    """Success by policy and how it was measured: from the table of ``dsrl eval``; without one, from the stages."""
    if source.table:
        return {
            OF_TABLE.get(row.policy, row.policy): (
                Interval(row.success_once, row.success_once_low, row.success_once_high),
                f"dsrl eval, {row.episodes} episodes",
            )
            for row in source.table.values()
        }
    found: dict[str, tuple[Interval, str]] = {}
    for run in source.runs:
        if run.kind == "stage1":
            found |= _of_choice(run.summary.get("choice"))
        if run.kind in ONLINE and run.evaluations:
            first, last = run.evaluations[0], run.evaluations[-1]
            learned = END if run.kind == "stage2" else "PPO"
            if len(run.evaluations) > 1:
                found[START] = (_success(first), f"first evaluation, {_steps(first)}")
            found[learned] = (_success(last), f"last evaluation, {_steps(last)}")
    return found


def _of_choice(choice: Any) -> dict[str, tuple[Interval, str]]:
    """The prior and what was chosen, on the starts of Stage 1's choice."""
    try:
        rows = {BASE: choice["trials"]["prior"], START: choice["trials"][choice["chosen"]]}
        return {
            name: (
                Interval(*(float(row[rate]) for rate in RATES)),
                f"starts of Stage 1's choice, {row['episodes']:.0f}",
            )
            for name, row in rows.items()
        }
    except (LookupError, TypeError, ValueError):
        return {}


def _success(row: Row) -> Interval:
    return Interval(*(float(row[rate]) for rate in RATES))


def _steps(row: Row) -> str:
    return f"at {row['env_steps']:,} env steps" if "env_steps" in row else "before the first env step"


def conclude(name: str, sources: list[Source]) -> Group:
    """Say what a group of sources comes to."""
    found = {source.name: policies_of(source) for source in sources}
    policies = []
    for policy in dict.fromkeys(policy for rows in found.values() for policy in rows):
        having = {source: rows[policy] for source, rows in found.items() if policy in rows}
        rates = {source: rate.value for source, (rate, _) in having.items()}
        measured = ", ".join(dict.fromkeys(how for _, how in having.values()))
        policies.append(PolicyRow(policy, _over(list(having.values())), rates, measured))
    tone, headline, sentences = _verdict({row.name: row for row in policies}, found)
    return Group(name, sources, policies, tone, headline, [*sentences, *_cost(sources), *_state(sources)])


def _over(rates: Sequence[tuple[Interval, str]]) -> Interval:
    if len(rates) == 1:
        return rates[0][0]
    return estimate([np.array([rate.value for rate, _ in rates])], mean_of_runs)


def _verdict(
    rows: Mapping[str, PolicyRow], found: Mapping[str, Mapping[str, tuple[Interval, str]]]
) -> tuple[str, str, list[str]]:
    """Tone, headline and sentences."""
    learned = END if END in rows else "PPO"
    if learned not in rows:
        known = [f"{_named(row)}." for row in rows.values()]
        return "unknown", "No evaluation of a policy that learned online yet", known
    end = rows[learned]
    than = next((rows[name] for name in (BASE, START) if name in rows), None)
    if than is None:
        return "unknown", f"{learned} succeeds in {_said(end.success)}", ["There is nothing to hold it against."]
    gain = _difference(found, learned, than.name)
    tone = _tone(gain)
    words = {"better": "better than", "worse": "worse than", "unclear": "not shown to differ from"}
    headline = f"{learned} is {words[tone]} its {'base policy' if than.name == BASE else 'own start'}"
    said = [f"Success went from {_said(than.success)} ({than.name}) "]
    if than.name == BASE and START in rows:
        said[0] += f"over {_said(rows[START].success)} ({START}) "
    said[0] += f"to {_said(end.success)} ({learned}): {_points(gain)}."
    if len(end.per_source) > 1:
        said.append(f"Means over {len(end.per_source)} runs, with bootstrap intervals over runs.")
    if than.name != BASE:
        said.append(
            "The base policy was not evaluated here: dsrl eval puts it and the controls on the same starts."
        )
    return tone, headline, [*said, *_controls(rows, found, learned)]


def _controls(
    rows: Mapping[str, PolicyRow], found: Mapping[str, Mapping[str, tuple[Interval, str]]], learned: str
) -> list[str]:
    controls = [
        row for name, row in rows.items() if not name.startswith(("base", "stage", BASE, START, END, "PPO"))
    ]
    if not controls:
        return []
    best = max(controls, key=lambda row: row.success.value)
    words = {"better": "is above", "worse": "is below", "unclear": "is not shown to be above"}
    gain = _difference(found, learned, best.name)
    others = f" (controls: {', '.join(_named(row) for row in controls)})" if len(controls) > 1 else ""
    return [f"{learned} {words[_tone(gain)]} its best control, {_named(best)}: {_points(gain)}{others}."]


def _difference(found: Mapping[str, Mapping[str, tuple[Interval, str]]], name: str, than: str) -> Interval:
    """Of one source by Newcombe's interval; of several the mean of their differences, over sources."""
    pairs = [(rows[name][0], rows[than][0]) for rows in found.values() if name in rows and than in rows]
    if len(pairs) == 1:
        return difference_interval(*pairs[0])
    if not pairs:  # each was evaluated with another run
        return Interval(float("nan"))
    return estimate([np.array([rate.value - other.value for rate, other in pairs])], mean_of_runs)


def _tone(gain: Interval) -> str:
    if gain.low is not None and gain.low > 0:
        return "better"
    return "worse" if gain.high is not None and gain.high < 0 else "unclear"


def _said(rate: Interval) -> str:
    value, bracket, interval = percent(rate).partition(" [")
    return f"{value} %{bracket}{interval}"


def _named(row: PolicyRow) -> str:
    return f"{row.name} {_said(row.success)}"


def _points(gain: Interval) -> str:
    if gain.value != gain.value:
        return "no run has both"
    value, bracket, interval = percent(gain, "+").partition(" [")
    return f"{value} points{bracket}{interval}"


def _cost(sources: Sequence[Source]) -> list[str]:
    steps = [
        row["env_steps"]
        for s in sources
        if s.online and s.online.rows and "env_steps" in (row := s.online.rows[-1])
    ]
    minutes = [source.minutes for source in sources if source.minutes is not None]
    told = []
    if steps:
        told.append(f"{_span(steps, ',.0f')} env steps online")
    if minutes:
        told.append(f"{_span(minutes, '.1f')} minutes of everything in the folder")
    each = " (each run)" if len(sources) > 1 else ""
    return [f"Cost{each}: {', '.join(told)}."] if told else []


def _span(values: Sequence[float | int], how: str) -> str:
    low, high = f"{min(values):{how}}", f"{max(values):{how}}"
    return low if low == high else f"{low} to {high}"


def _state(sources: Sequence[Source]) -> list[str]:
    """What is unfinished or cannot be read."""
    told = []
    for source in sources:
        unfinished = [run for run in source.runs if not run.finished]
        for run in unfinished:
            far = run.rows[-1].get("env_steps", run.rows[-1].get("gradient_steps")) if run.rows else None
            planned = run.settings.get("total_timesteps", run.settings.get("total_iters"))
            so_far = f": {far:,} of {planned:,} steps" if isinstance(planned, int) and far is not None else ""
            told.append(f"{source.name}, {run.kind}: not at its end{so_far}.")
        told += [f"{source.name} cannot be read whole: {problem}" for problem in source.problems]
    return told


def _health(source: Source, run: RunFolder) -> Health:
    algo = str(run.settings.get("algo", ""))
    if ":" in algo:
        told = f"its algorithm is code of somebody's own ({algo}), which a report does not load; dsrl doctor does"
        return Health(source.name, run, [], told)
    try:
        with reading(str(run.path), "settings and rows of a run"):
            return Health(source.name, run, check_run(run.config, run.rows, run.summary))
    except InputError as error:
        return Health(source.name, run, [], str(error))


def _settings(sources: Sequence[Source]) -> Iterator[Settings]:
    by_kind: dict[str, list[tuple[str, RunFolder]]] = {}
    for source in sources:
        for run in source.runs:
            by_kind.setdefault(run.kind, []).append((source.name, run))
    for kind, named in by_kind.items():
        settings = [run.settings for _, run in named]
        defaults = _defaults(named[0][1])
        rows = []
        for name in dict.fromkeys(name for values in settings for name in values):
            shown = [_shown(values[name]) if name in values else "" for values in settings]
            default = _shown(defaults[name]) if name in defaults else ""
            changed = name in defaults and any(value != default for value in shown)
            rows.append(Setting(str(name)[:LONGEST_SETTING], default, shown, len(set(shown)) > 1, changed))
        yield Settings(kind, [source for source, _ in named], rows)


def _defaults(run: RunFolder) -> dict[str, Any]:
    algo = str(run.settings.get("algo", "sac"))
    if ":" in algo:
        return {}
    try:
        return to_plain(replace(run, settings={"algo": algo} if run.kind == "stage2" else {}).config)
    except InputError:
        return {}


def _shown(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST_SETTING else text[:LONGEST_SETTING] + "..."
