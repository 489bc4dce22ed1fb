"""A logger of one's own, as a user would write it: a line for every metric in ``log.csv`` of the run folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsrl_offpolicy.tracking.sink import LoggedRow, Sink


class CsvSink(Sink):
    """Long format: name, axis, step, value. A resumed run drops what was written after its save."""

    def __init__(self, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        path = folder / "log.csv"
        if state is not None:
            path.write_bytes(path.read_bytes()[: state["bytes"]])
        self._file = path.open("a", newline="")
        self._rows = csv.writer(self._file)

    def log(self, row: LoggedRow) -> None:
        axis, step = next(iter(row.axes.items()))
        self._rows.writerows([name, axis, step, value] for name, value in row.named.items())

    def state(self) -> dict[str, Any]:
        self._file.flush()
        return {"bytes": self._file.tell()}

    def close(self) -> None:
        self._file.close()
