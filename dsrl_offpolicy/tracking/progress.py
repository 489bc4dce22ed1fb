"""The progress a person watches."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, TextIO, get_args

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Style = Literal["auto", "plain", "json", "quiet"]
STYLES: tuple[Style, ...] = get_args(Style)

_style: Style = "auto"
_rows: TextIO | None = None


def use_style(style: Style) -> None:
    """Let all progress of this process be shown so from here on: ``plain`` lines on standard error, ``json``
    objects on what is standard output now, one per line, or not at all (``quiet``). ``auto``: a bar on a terminal,
    else plain.
    """
    global _style, _rows
    _style, _rows = style, sys.stdout


def tell(text: str) -> None:
    """Say on standard error what a job is doing, unless progress is ``quiet``."""
    if _style != "quiet":
        print(text, file=sys.stderr)


class ProgressReport:
    """The progress of one job, in the style that :func:`use_style` has set.

    Args:
        title: the job.
        total: units of work.
        unit: what is counted (``env steps``, ``gradient steps``).
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._start = time.monotonic()
        self._bar: Progress | None = None
        if _style == "auto" and sys.stderr.isatty():
            from rich.console import Console

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                TextColumn(unit), TextColumn("{task.fields[shown]}"), TimeElapsedColumn(), TimeRemainingColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(title, total=total, shown="")
            self._bar.start()

    def report(
        self, done: int, shown: Mapping[str, Any] | None = None, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Tell how far the job is and the numbers to watch; in ``json`` those of ``detail`` as well."""
        if _style == "quiet":
            return
        text = "  ".join(f"{k} {_short(v)}" for k, v in (shown or {}).items())
        if self._bar is not None:
            self._bar.update(self._task, completed=min(done, self._total), shown=text)
            return
        elapsed = time.monotonic() - self._start
        left = elapsed / max(done, 1) * max(self._total - done, 0)
        if _style == "json":
            row = {"job": self._title, "done": done, "total": self._total, "unit": self._unit}
            row |= {"per_second": done / max(elapsed, 1e-9), "seconds": round(elapsed, 1)}
            row |= {"seconds_left": round(left, 1), **(shown or {}), **(detail or {})}
            print(json.dumps(row, default=float), file=_rows, flush=True)
            return
        print(
            f"{self._title}: {done}/{self._total} {self._unit}  {text}  "
            f"elapsed {elapsed:.0f} s  left {left:.0f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def close(self) -> None:
        """Remove the live bar."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> ProgressReport:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
