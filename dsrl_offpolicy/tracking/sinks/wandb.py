"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import check_fields
from dsrl_offpolicy.tracking.sink import LoggedRow, LoggedVideo, Sink


class WeightsAndBiases(Sink):
    """Log to the project ``wandb_project``, every group over its own x axis.

    A resumed run goes on in the same W&B run, whose history only grows: it keeps the rows after the save.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        try:
            import wandb

            self._wandb = wandb
        except ImportError as error:
            raise InputError(
                "loggers wandb, track: expected the package wandb (pip install 'dsrl_offpolicy[track]'), got none"
            ) from error
        if state is not None:
            check_fields(state, {"id": str}, "resume: state of the run: wandb")
        # Without a login there is nobody to ask: log offline, to be synchronised later by `wandb sync`.
        mode: Any = None if wandb.setup().settings.mode != "online" or wandb.api.api_key else "offline"
        resume: Any = "allow" if state is not None else None
        self._run = wandb.init(
            project=config["wandb_project"], name=folder.name, dir=str(folder), config=dict(config), mode=mode,
            id=state["id"] if state is not None else None, resume=resume,
        )  # fmt: skip
        self._groups: set[str] = set()

    def log(self, row: LoggedRow) -> None:
        if row.group not in self._groups:
            self._groups.add(row.group)
            self._run.define_metric(f"{row.group}/*", step_metric=next(iter(row.axes)))
        self._run.log({**row.axes, "minutes": row.minutes, **row.named})

    def log_video(self, video: LoggedVideo) -> None:
        """Send the file itself."""
        self._run.log({**video.axes, "video": self._wandb.Video(str(video.path), caption=video.name)})

    def state(self) -> dict[str, Any]:
        return {"id": self._run.id}

    def close(self) -> None:
        self._run.finish()
