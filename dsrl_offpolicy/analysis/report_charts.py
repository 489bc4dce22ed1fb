"""The curves of a report, as figures of Plotly: a line per run, a band per interval, an x axis to choose."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsrl_offpolicy.analysis.comparison import compare
from dsrl_offpolicy.analysis.report import BASE, ONLINE, Group, Report
from dsrl_offpolicy.analysis.run_folder import RATES, RunFolder
from dsrl_offpolicy.analysis.stage2_runs import evaluated, read_run
from dsrl_offpolicy.analysis.verdict import Row
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.intervals import Interval
from dsrl_offpolicy.files.metrics import Group as RowGroup

AXES = {"env_steps": "env steps", "gradient_steps": "gradient steps", "minutes": "minutes"}
COUNTERS = (*AXES, "macro_steps", "group", "row", "stage")
MOST_POINTS = 2000
"""Points of a line; of longer runs every k-th row is drawn."""
MOST_CHARTS = 60
"""Charts of a section: a run folder may hold any number of metrics."""

TOLD = {
    "train": ("td_error", "q_mean", "alpha", "entropy", "kl", "critic_loss", "actor_loss", "train_success"),
    "stage1": ("nll_loss", "kl_loss", "eff_num", "corr_A_logprob"),
    "stage0": ("flow_loss", "critic_loss", "q_mean"),
    "encoder": (),
}
"""Metrics whose charts are open, by group of rows; any other loss is too."""
SECTIONS: dict[RowGroup, str] = {
    "train": "Stage 2", "stage1": "Stage 1", "stage0": "Stage 0", "encoder": "Image encoder",
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        id: of its element, unique in a report.
        title: what is drawn.
        axes: what its x axis may be, in the order of AXES.
        traces: of Plotly; each holds its x by axis in ``meta["x"]``, and its y in ``meta["y"]`` where that depends
            on the axis.
        rate: whether y is a rate from 0 to 1.
        legend: whether names stand beside the curves.
    """

    id: str
    title: str
    axes: list[str]
    traces: list[dict[str, Any]]
    rate: bool = False
    legend: bool = False


@dataclass(frozen=True)
class Section:
    """Charts under one heading; ``more`` are those that few ask for."""

    title: str
    charts: list[Chart]
    more: list[Chart]
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A run as it is drawn: lines of one ``family`` are switched on and off together."""

    name: str
    family: str
    run: RunFolder
    color: str
    alone: bool
    """Whether it is all there is of its group, so that its own intervals are drawn."""


def draw(report: Report) -> list[Section]:
    """Draw every curve of a report."""
    lines = _lines(report)
    online = [line for line in lines if line.run.kind in ONLINE]
    sections = []
    charts = [chart for chart in (_success(report, online), _returns(online)) if chart is not None]
    if charts:
        sections.append(Section("Evaluations", charts, []))
    for group, title in SECTIONS.items():
        section = _metrics(group, title, lines)
        if section is not None:
            sections.append(section)
    return sections


def _colors() -> list[str]:
    from plotly.colors import qualitative

    return list(qualitative.D3)


def _lines(report: Report) -> list[Line]:
    colors, lines, number = _colors(), [], 0
    many = len(report.groups) > 1
    for index, group in enumerate(report.groups):
        for source in group.sources:
            single = len(group.sources) == 1
            name = group.name if single else f"{group.name}, {source.name}"
            color = colors[(index if many else number) % len(colors)]
            family = group.name if many else name
            lines += [Line(name if many else source.name, family, run, color, single) for run in source.runs]
            number += 1
    return lines


def _trace(
    name: str, family: str, xs: Mapping[str, Sequence[float | int]], ys: Any, color: str, **style: Any
) -> Any:
    """A trace; ``ys`` are numbers, or numbers by axis."""
    from plotly.graph_objects import Scatter

    y = next(iter(ys.values()), []) if isinstance(ys, Mapping) else ys
    meta = {"x": {axis: list(x) for axis, x in xs.items()}, **({"y": dict(ys)} if isinstance(ys, Mapping) else {})}
    # Plotly reads names as a kind of HTML, and these come from files.
    drawn = Scatter(
        x=next(iter(meta["x"].values()), []), y=list(y), name=html.escape(name), legendgroup=html.escape(family),
        meta=meta, **{"mode": "lines", "line": {"color": color, "width": 2}, **style},
    )  # fmt: skip
    return drawn.to_plotly_json()


def _band(name: str, family: str, xs: Mapping[str, Sequence[float | int]], low: Any, high: Any, color: str) -> Any:
    """The area between two curves, as one closed outline."""
    around = {axis: [*x, *reversed(x)] for axis, x in xs.items()}

    def outline(lower: Sequence[float | int], upper: Sequence[float | int]) -> list[float | int]:
        return [*upper, *reversed(lower)]

    ys = {a: outline(low[a], high[a]) for a in low} if isinstance(low, Mapping) else outline(low, high)
    style = {"fill": "toself", "fillcolor": _faint(color), "showlegend": False, "hoverinfo": "skip"}
    return _trace(name, family, around, ys, color, line={"width": 0, "color": color}, **style)


def _faint(color: str) -> str:
    from plotly.colors import hex_to_rgb

    return "rgba({}, {}, {}, 0.16)".format(*hex_to_rgb(color))


def _places(rows: Sequence[Row]) -> dict[str, list[float | int]]:
    """Where rows stand on every axis that all of them have."""
    return {axis: [row[axis] for row in rows] for axis in AXES if rows and all(axis in row for row in rows)}


def _axes(traces: Iterable[Mapping[str, Any]]) -> list[str]:
    found = {axis for trace in traces for axis in trace["meta"]["x"]}
    return [axis for axis in AXES if axis in found]


def _thinned(rows: Sequence[Row]) -> Sequence[Row]:
    step = math.ceil(len(rows) / MOST_POINTS)
    return rows if step <= 1 else [*rows[:-1:step], rows[-1]]


def _success(report: Report, lines: Sequence[Line]) -> Chart | None:
    traces: list[Any] = []
    for line in lines:
        rows = line.run.evaluations
        if not rows:
            continue
        xs = _places(rows)
        value, low, high = ([row[rate] for row in rows] for rate in RATES)
        if line.alone:
            traces.append(_band(line.name, line.family, xs, low, high, line.color))
        style = {} if line.alone else {"opacity": 0.6, "line": {"color": line.color, "width": 1}}
        traces.append(_trace(line.name, line.family, xs, value, line.color, mode="lines+markers", **style))
    if not traces:
        return None
    for index, group in enumerate(report.groups):
        own = [line for line in lines if line.run.path in {s.online.path for s in group.sources if s.online}]
        color = own[0].color if own and len(report.groups) > 1 else _colors()[(len(lines) + index) % 10]
        traces += _overall(group, color)
        base = next((row for row in group.policies if row.name == BASE), None)
        if base is not None and own:
            grey = color if len(report.groups) > 1 else "#7f7f7f"
            traces += _level(f"base policy, {group.name}", base.success, traces, grey)
    return Chart("success", "Success, with 95 % intervals", _axes(traces), traces, rate=True, legend=True)


def _overall(group: Group, color: str) -> list[Any]:
    """The interquartile mean over the runs of a group, with its bootstrap interval, along every axis."""
    if len(group.sources) < 2:
        return []
    points = {}
    for axis in AXES:
        try:
            runs = [evaluated(read_run(source.path), axis) for source in group.sources]
            points[axis] = compare({group.name: runs}, 1.0).groups[0].curve
        except InputError:  # too few evaluations, or none in common along this axis
            continue
    if not points:
        return []
    xs = {axis: [point.env_steps for point in curve] for axis, curve in points.items()}
    values = {axis: [point.iqm for point in curve] for axis, curve in points.items()}
    low = {
        axis: [rate.value if rate.low is None else rate.low for rate in rates] for axis, rates in values.items()
    }
    high = {
        axis: [rate.value if rate.high is None else rate.high for rate in rates] for axis, rates in values.items()
    }
    name = f"{group.name}: mean of {len(group.sources)} runs"
    mean = {axis: [rate.value for rate in rates] for axis, rates in values.items()}
    bold = {"color": color, "width": 3}
    return [
        _band(name, name, xs, low, high, color),
        _trace(name, name, xs, mean, color, line=bold),
    ]


def _level(name: str, rate: Interval, traces: Sequence[Mapping[str, Any]], color: str) -> list[Any]:
    """A rate as a horizontal line over everything that is drawn, with its interval."""
    places: dict[str, list[float | int]] = {}
    for trace in traces:
        for axis, x in trace["meta"]["x"].items():
            places.setdefault(axis, []).extend(x)
    xs = {axis: [min(x), max(x)] for axis, x in places.items() if x}
    drawn = [_trace(name, name, xs, [rate.value] * 2, color, line={"color": color, "dash": "dash", "width": 2})]
    if rate.low is not None and rate.high is not None:
        drawn.insert(0, _band(name, name, xs, [rate.low] * 2, [rate.high] * 2, color))
    return drawn


def _returns(lines: Sequence[Line]) -> Chart | None:
    traces: list[Any] = []
    for line in lines:
        rows = [row for row in line.run.of("eval") if "return" in row]
        sure = [row for row in rows if "return_low" in row and "return_high" in row]
        if sure and line.alone:
            low, high = ([row[name] for row in sure] for name in ("return_low", "return_high"))
            traces.append(_band(line.name, line.family, _places(sure), low, high, line.color))
        if rows:
            value = [row["return"] for row in rows]
            traces.append(_trace(line.name, line.family, _places(rows), value, line.color, mode="lines+markers"))
    return Chart("return", "Return of an episode", _axes(traces), traces, legend=True) if traces else None


def _metrics(group: RowGroup, title: str, lines: Sequence[Line]) -> Section | None:
    """A chart for every metric in the rows of a group."""
    rows = [(line, _thinned(line.run.of(group))) for line in lines]
    found = dict.fromkeys(name for _, own in rows for row in own for name in row if name not in COUNTERS)
    told = [name for name in TOLD[group] if name in found]
    told += [name for name in found if name not in told and (name.endswith("_loss") or not TOLD[group])]
    names = [*told, *(name for name in found if name not in told)]
    if not names:
        return None
    note = ""
    if len(names) > MOST_CHARTS:
        note, names = f"{len(names)} metrics, of which {MOST_CHARTS} are drawn", names[:MOST_CHARTS]
    charts = [_metric(f"{group}-{number}", name, rows) for number, name in enumerate(names)]
    return Section(title, charts[: len(told)], charts[len(told) :], note)


def _metric(identity: str, name: str, rows: Sequence[tuple[Line, Sequence[Row]]]) -> Chart:
    traces = []
    for line, own in rows:
        having = [row for row in own if name in row]
        if having:
            y = [row[name] for row in having]
            mode = "lines" if len(having) > 1 else "markers"
            traces.append(_trace(line.name, line.family, _places(having), y, line.color, mode=mode))
    return Chart(identity, name, _axes(traces), traces)
