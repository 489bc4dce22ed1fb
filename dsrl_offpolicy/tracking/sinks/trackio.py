"""Trackio: runs in a folder of this machine, looked at with ``trackio show``."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsrl_offpolicy.errors import InputError, one_line
from dsrl_offpolicy.files.plain import check_fields
from dsrl_offpolicy.registry import not_installed
from dsrl_offpolicy.tracking.sink import LoggedRow, LoggedVideo, Sink


class Trackio(Sink):
    """Log to the project ``wandb_project``, every row at the step of its x axis, which is a column too.

    Trackio keeps projects where its variable ``TRACKIO_DIR`` says and sends them nowhere, unless another of its
    variables (``TRACKIO_SPACE_ID``, ``TRACKIO_SERVER_URL``) asks for it. It finds a run by its name, so the
    run's is that of its folder with six digits behind it. A resumed run goes on in the same Trackio run, whose
    history only grows: it keeps the rows after the save.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        try:
            import trackio
        except ImportError as error:
            raise InputError(f"loggers trackio: {not_installed(error)}") from error
        self._name = f"{folder.name}-{secrets.token_hex(3)}"
        if state is not None:
            check_fields(state, {"name": str}, "resume: state of the run: trackio")
            self._name = state["name"]
        self._trackio = trackio
        try:
            trackio.TRACKIO_DIR.mkdir(parents=True, exist_ok=True)  # it would only warn, and lose every row
            with _said_on_standard_error():
                self._run = trackio.init(
                    project=config["wandb_project"], name=self._name, config=dict(config), embed=False,
                    resume="allow" if state is not None else "never", auto_log_gpu=False, auto_log_cpu=False,
                )  # fmt: skip
        except (ValueError, OSError) as error:  # a project's name, a folder that cannot be written
            raise InputError(f"loggers trackio: {one_line(error)}") from error

    def log(self, row: LoggedRow) -> None:
        self._run.log({**row.axes, "minutes": row.minutes, **row.named}, step=next(iter(row.axes.values())))

    def log_video(self, video: LoggedVideo) -> None:
        """Copy the file into Trackio's folder."""
        step = next(iter(video.axes.values()))
        shown = self._trackio.Video(str(video.path), caption=video.name)
        self._run.log({**video.axes, "video": shown}, step=step)

    def state(self) -> dict[str, Any]:
        return {"name": self._name}

    def close(self) -> None:
        with _said_on_standard_error():
            self._trackio.finish()


def _said_on_standard_error() -> contextlib.AbstractContextManager[Any]:
    """Standard output is for what a command was asked for, such as ``--progress json``."""
    return contextlib.redirect_stdout(sys.stderr)
