"""The checks of ``dsrl doctor`` while a run goes on."""

from __future__ import annotations

import sys
from pathlib import Path

from dsrl_offpolicy.analysis.run_folder import StageConfig
from dsrl_offpolicy.analysis.run_health import check_run
from dsrl_offpolicy.analysis.verdict import Row, Verdict
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import read_metrics

EVERY_ROWS = 50
"""Rows after which a verdict that still fails is told again."""


class HealthMonitor:
    """Tells on standard error which check a run fails, each at most once in ``EVERY_ROWS`` rows.

    Args:
        config: the run's settings.
        folder: the run folder. The rows that the ``metrics.jsonl`` of a resumed run holds come first; what was
            told of them before the interruption may be told again.
    """

    def __init__(self, config: StageConfig, folder: Path | None = None) -> None:
        self.config = config
        self._rows: list[Row] = []
        self._told: dict[str, int] = {}
        self._next = 0
        if folder is not None:
            try:
                self._rows = [*read_metrics(folder)]
            except InputError as error:
                print(f"note: the live checks start over: {error}", file=sys.stderr)

    def observe(self, row: Row) -> list[Verdict]:
        """Take the next row, axes included. Returns the verdicts that were told.

        All rows are looked at, so in long runs only every hundredth part more of them brings a new look.
        """
        self._rows.append(row)
        now = len(self._rows)
        if now < self._next:
            return []
        self._next = now + max(1, now // 100)
        told = []
        for verdict in check_run(self.config, self._rows, {}):
            if verdict.ok is False and now - self._told.get(verdict.name, -EVERY_ROWS) >= EVERY_ROWS:
                self._told[verdict.name] = now
                told.append(verdict)
                print(f"warning: {describe(verdict)}", file=sys.stderr, flush=True)
        return told


def describe(verdict: Verdict) -> str:
    """Return a failing verdict as one line."""
    return f"{verdict.name}: expected {verdict.expected}, got {verdict.found}; {verdict.remedy}"
