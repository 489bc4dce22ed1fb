"""TensorBoard events in ``tensorboard/`` of the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dsrl_offpolicy.files.plain import check_fields
from dsrl_offpolicy.tracking.sink import LoggedRow, Sink


class TensorBoard(Sink):
    """Write every metric over the row's x axis; points after the save of a resumed run are hidden."""

    def __init__(self, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        self._last_step = 0
        if state is not None:
            check_fields(state, {"step": int}, "resume: state of the run: tensorboard")
            self._last_step = state["step"]
        purge = self._last_step + 1 if state is not None else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, row: LoggedRow) -> None:
        step = next(iter(row.axes.values()))
        for name, value in row.named.items():
            self._writer.add_scalar(name, value, step)
        self._last_step = max(self._last_step, step)

    def state(self) -> dict[str, Any]:
        return {"step": self._last_step}

    def close(self) -> None:
        self._writer.close()
