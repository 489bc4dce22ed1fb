"""A run folder: config, metrics, checkpoints, summary."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from dsrl_offpolicy.configs.loading import to_plain
from dsrl_offpolicy.errors import InputError, NonFiniteError
from dsrl_offpolicy.files.atomic import write_atomically
from dsrl_offpolicy.files.metrics import NAME, Group, metrics_row
from dsrl_offpolicy.files.run_kind import write_kind
from dsrl_offpolicy.tracking.sink import LoggedRow, LoggedVideo, find_sinks

Scalar = float | int | torch.Tensor


def create_run_folder(out: Path | None, default_name: str) -> Path:
    """Make a new folder for a run.

    Raises:
        InputError: it exists. A run is never written over.
    """
    path = out if out is not None else Path("runs") / default_name
    try:
        path.mkdir(parents=True, exist_ok=False)
    except FileExistsError as error:
        raise InputError(
            f"out: expected a new run folder, {path} exists (pass --out or another --seed)"
        ) from error
    except OSError as error:
        raise InputError(f"out: cannot make the folder {path}: {error.strerror}") from error
    return path


class Run:
    """Writes ``config.yaml``, ``run.json``, ``metrics.jsonl`` and ``summary.json``, and feeds the job's loggers.

    Args:
        path: an existing run folder, empty unless ``resume`` is given.
        config: the resolved config; it names the loggers.
        resume: a :meth:`state_dict`: rows written after it are dropped, and the run goes on from there.

    Raises:
        InputError: a logger that cannot be opened, or another process at work in the folder.
    """

    def __init__(self, path: Path, config: Any, *, resume: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._lock = _lock(path)
        self._start = time.monotonic() - (60 * resume["minutes"] if resume else 0.0)
        self._rows: int = resume["rows"] if resume else 0
        plain = to_plain(config)
        if resume:
            self._rows = _keep_rows(path / NAME, self._rows)
        else:
            (path / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
            write_kind(path, config.kind)
        self._metrics = (path / NAME).open("a" if resume else "x")
        states = _sink_states(resume) if resume else {}
        self._sinks = {name: sink(path, plain, states.get(name)) for name, sink in find_sinks(config).items()}

    def state_dict(self) -> dict[str, Any]:
        """Return where the logs stand, for a run that resumes from here; what was logged is on disk then."""
        os.fsync(self._metrics.fileno())
        sinks = {name: sink.state() for name, sink in self._sinks.items()}
        return {"minutes": self.minutes, "rows": self._rows, "sinks": sinks}

    @property
    def rows(self) -> int:
        """Rows of metrics so far."""
        return self._rows

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def minutes(self) -> float:
        """Wall-clock since the run began."""
        return (time.monotonic() - self._start) / 60

    def log(self, group: Group, metrics: Mapping[str, Scalar], axes: Mapping[str, int]) -> dict[str, Any]:
        """Write one row of metrics and return it; this is where the host waits for the device.

        Args:
            group: what the row is of.
            metrics: scalars.
            axes: counters, the first being the loggers' x axis (``env_steps``, ``gradient_steps``, ...).

        Raises:
            NonFiniteError: which ends the run before a checkpoint keeps it.
            InputError: the logs cannot be written (a full disk).
        """
        numbers = {name: float(value) for name, value in metrics.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{name}: expected a finite number, got {value} at {dict(axes)}", {"metrics": numbers}
                )
        row = LoggedRow(group, axes, round(self.minutes, 4), numbers)
        try:
            self._metrics.write(json.dumps(row.line) + "\n")
            self._metrics.flush()
            for sink in self._sinks.values():
                sink.log(row)
        except OSError as error:
            raise InputError(f"{self.path}: cannot write logs: {error.strerror}") from error
        self._rows += 1
        return row.line

    def log_video(self, video: LoggedVideo) -> None:
        """Hand a video of the run folder to the loggers.

        Raises:
            InputError: one of them cannot be written.
        """
        try:
            for sink in self._sinks.values():
                sink.log_video(video)
        except OSError as error:
            raise InputError(f"{self.path}: cannot write logs: {error.strerror}") from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, what the run came to; whole or not at all."""
        with write_atomically(self.path / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Flush and close every writer. One that could not write has said so before."""
        for close in (self._metrics.close, *(sink.close for sink in self._sinks.values())):
            with contextlib.suppress(OSError):
                close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _lock(path: Path) -> FileLock:
    """Held until the run is closed; the system frees it however the process ends."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(f"out: another process is at work in {path}") from error
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    return lock


def _keep_rows(path: Path, rows: int) -> int:
    """Cut a file of JSON lines to its first ``rows``, less those that are damaged. Returns how many are left."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines[:rows] if _is_row(line)]
    if len(kept) < rows:
        print(f"note: {path} has {len(kept)} of {rows} rows; the others are lost", file=sys.stderr)
    with write_atomically(path) as temporary:
        temporary.write_bytes(b"".join(kept))
    return len(kept)


def _is_row(line: bytes) -> bool:
    """Whether a line of a metrics file is a row, and whole."""
    try:
        metrics_row(line.decode(), "")
    except (InputError, UnicodeDecodeError):
        return False
    return line.endswith(b"\n")


def _sink_states(resume: Mapping[str, Any]) -> Mapping[str, Any]:
    """The loggers' states by name. Saves of earlier versions hold them under other names."""
    if "sinks" in resume:
        return resume["sinks"]
    wandb = {"wandb": {"id": resume["wandb_id"]}} if resume.get("wandb_id") else {}
    return {"tensorboard": {"step": resume.get("step", 0)}, **wandb}
