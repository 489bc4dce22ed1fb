"""The progress a person watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressReport:
    """A progress bar on a terminal; one plain line per report elsewhere, so that a log file stays readable.

    Args:
        title: the job.
        total: units of work.
        unit: what is counted (``env steps``, ``gradient steps``).
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._start = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                TextColumn(unit), TextColumn("{task.fields[shown]}"), TimeElapsedColumn(), TimeRemainingColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(title, total=total, shown="")
            self._bar.start()

    def report(self, done: int, shown: Mapping[str, Any] | None = None) -> None:
        """Tell how far the job is and the numbers to watch."""
        text = "  ".join(f"{k} {_short(v)}" for k, v in (shown or {}).items())
        if self._bar is not None:
            self._bar.update(self._task, completed=min(done, self._total), shown=text)
            return
        elapsed = time.monotonic() - self._start
        left = elapsed / max(done, 1) * max(self._total - done, 0)
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
