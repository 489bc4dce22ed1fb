"""Loggers beside ``metrics.jsonl``: what one is, and how those of a job are found and opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsrl_offpolicy.configs.shared import TrackedConfig
from dsrl_offpolicy.files.metrics import Group
from dsrl_offpolicy.registry import SINKS


@dataclass(frozen=True)
class LoggedRow:
    """One row of metrics.

    Attributes:
        group: what it is of; loggers name a metric ``group/name``.
        axes: counters, the x axis first (``env_steps`` online, ``gradient_steps`` offline).
        minutes: wall-clock since the run began.
        metrics: finite numbers by name.
    """

    group: Group
    axes: Mapping[str, int]
    minutes: float
    metrics: Mapping[str, float]

    @property
    def named(self) -> dict[str, float]:
        """The metrics as ``group/name``."""
        return {f"{self.group}/{name}": value for name, value in self.metrics.items()}

    @property
    def line(self) -> dict[str, Any]:
        """The row as it stands in ``metrics.jsonl``."""
        return {"group": self.group, **self.axes, "minutes": self.minutes, **self.metrics}


@dataclass(frozen=True)
class LoggedVideo:
    """A video in the run folder.

    Attributes:
        name: of the file, without its suffix.
        axes: as of a row: the x axis first.
        path: the MP4.
        frames: its images, uint8 ``[H, W, 3]``.
        fps: frames per second.
    """

    name: str
    axes: Mapping[str, int]
    path: Path
    frames: Sequence[np.ndarray]
    fps: int


class Sink(ABC):
    """A logger of a run: ``--loggers`` takes it by its name in the registry, or as ``module:Class``.

    Args:
        folder: the run folder.
        config: the job's settings, as plain values.
        state: what :meth:`state` returned when the run was saved, for one that resumes; None for a new one.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        """Open it; raise InputError where that fails for a reason that the user can mend."""
        super().__init__()

    @abstractmethod
    def log(self, row: LoggedRow) -> None:
        """Take one row. An OSError ends the run with one line."""

    def log_video(self, video: LoggedVideo) -> None:  # noqa: B027  most show none
        """Take a video, which stays in the run folder all the same. An OSError ends the run with one line."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on from here, as plain values."""
        return {}

    def close(self) -> None:  # noqa: B027  most have nothing to close
        """Write what is left and close; called once, at the end of the run."""


def find_sinks(config: Any) -> dict[str, type[Sink]]:
    """Find the loggers of a job by name: those of ``loggers``, and W&B where ``track`` asks for it.

    A job without these settings has TensorBoard.

    Raises:
        InputError: an unknown name, or a class that is no Sink.
    """
    names = ["tensorboard"]
    if isinstance(config, TrackedConfig):
        names = [*dict.fromkeys((*config.loggers, *(["wandb"] if config.track else [])))]
    return {name: SINKS.find(name, "loggers", Sink) for name in names}
