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
from torch.utils.tensorboard import SummaryWriter

from dsrl_offpolicy.configs.loading import to_plain
from dsrl_offpolicy.errors import InputError, NonFiniteError
from dsrl_offpolicy.files.atomic import write_atomically
from dsrl_offpolicy.files.metrics import metrics_row

Scalar = float | int | torch.Tensor


def create_run_folder(out: Path | None, default_name: str) -> Path:
    """A new folder for a run.

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
        raise InputError(f"out: expected a folder that can be made, {path}: {error.strerror}") from error
    return path


class Run:
    """Writes ``config.yaml``, ``metrics.jsonl``, TensorBoard events, ``summary.json`` and, asked for, W&B.

    Args:
        path: an existing run folder, empty unless ``resume`` is given.
        config: the resolved config.
        track: also log to Weights & Biases.
        wandb_project: its project.
        resume: a :meth:`state_dict`: rows written after it are dropped, and the run goes on from there. (Weights &
            Biases keeps such rows: its history only grows.)

    Raises:
        InputError: tracking without the package, or another process at work in the folder.
    """

    def __init__(
        self,
        path: Path,
        config: Any,
        *,
        track: bool = False,
        wandb_project: str = "",
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._lock = _lock(path)
        self._start = time.monotonic() - (60 * resume["minutes"] if resume else 0.0)
        self._rows: int = resume["rows"] if resume else 0
        self._last_step: int = resume["step"] if resume else 0
        plain = to_plain(config)
        if resume:
            self._rows = _keep_rows(path / "metrics.jsonl", self._rows)
        else:
            (path / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
        wandb_id = resume["wandb_id"] if resume else None
        self._wandb = _start_wandb(path, plain, wandb_project, wandb_id) if track else None
        self._metrics = (path / "metrics.jsonl").open("a" if resume else "x")
        purge = self._last_step + 1 if resume else None
        self._writer = SummaryWriter(str(path / "tensorboard"), purge_step=purge)

    def state_dict(self) -> dict[str, Any]:
        """Where the logs stand, for a run that goes on from here; what was logged is on disk then."""
        os.fsync(self._metrics.fileno())
        wandb_id = self._wandb.id if self._wandb is not None else None
        return {"minutes": self.minutes, "rows": self._rows, "step": self._last_step, "wandb_id": wandb_id}

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

    def log(self, metrics: Mapping[str, Scalar], axes: Mapping[str, int], prefix: str = "") -> dict[str, float]:
        """One row of metrics; this is where the host waits for the device.

        Args:
            metrics: scalars.
            axes: counters, the first being TensorBoard's x-axis (``env_steps``, ``gradient_steps``, ...).
            prefix: group in TensorBoard.

        Raises:
            NonFiniteError: which ends the run before a checkpoint keeps it.
            InputError: the logs cannot be written (a full disk).
        """
        row = {name: float(value) for name, value in metrics.items()}
        for name, value in row.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{name}: expected a finite number, got {value} at {dict(axes)}", {"metrics": row}
                )
        line = {**axes, "minutes": round(self.minutes, 4), **row}
        step = next(iter(axes.values()))
        try:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
            for name, value in row.items():
                self._writer.add_scalar(f"{prefix}/{name}" if prefix else name, value, step)
        except OSError as error:
            raise InputError(f"{self.path}: expected logs that can be written, got: {error.strerror}") from error
        self._rows, self._last_step = self._rows + 1, max(self._last_step, step)
        if self._wandb is not None:
            self._wandb.log(line)
        return row

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """``summary.json``: what the run came to; whole or not at all."""
        with write_atomically(self.path / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Flush and close every writer. One that could not write has said so before."""
        for writer in (self._metrics, self._writer):
            with contextlib.suppress(OSError):
                writer.close()
        if self._wandb is not None:
            self._wandb.finish()
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
        raise InputError(
            f"out: expected a run folder that nobody works in, another process is in {path}"
        ) from error
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    return lock


def _keep_rows(path: Path, rows: int) -> int:
    """Cut a file of JSON lines to its first ``rows``, less those that are damaged. Returns how many are left."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines[:rows] if _is_row(line)]
    if len(kept) < rows:
        print(f"note: expected {rows} rows in {path}, got {len(kept)}; the missing ones are lost", file=sys.stderr)
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


def _start_wandb(path: Path, config: dict[str, Any], project: str, run_id: str | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            "track: expected the package wandb (pip install 'dsrl_offpolicy[track]'), got none"
        ) from error
    # Without a login there is nobody to ask: log offline, to be synchronised later by `wandb sync`.
    mode: Any = None if wandb.setup().settings.mode != "online" or wandb.api.api_key else "offline"
    resume: Any = "allow" if run_id else None
    return wandb.init(
        project=project, name=path.name, dir=str(path), config=config, mode=mode, id=run_id, resume=resume
    )
