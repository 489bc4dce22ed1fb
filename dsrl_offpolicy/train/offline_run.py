"""A run of Stage 0 or 1: its folder and logs, and the saves from which it goes on until it has ended."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dsrl_offpolicy.configs.shared import OfflineConfig
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import UNFINISHED
from dsrl_offpolicy.files.plain import check_fields
from dsrl_offpolicy.seeding import random_states
from dsrl_offpolicy.tracking.run import Run
from dsrl_offpolicy.train.interruption import Interrupted, Interruption
from dsrl_offpolicy.train.run_checkpoints import RunCheckpoints
from dsrl_offpolicy.train.run_state import check_log_and_random
from dsrl_offpolicy.train.snapshots import check_finite, snapshot_of_non_finite

KINDS = {"dsrl pretrain": "unfinished_stage0", "dsrl stage1": "unfinished_stage1"}
"""Kind of the saves, by the command that goes on with them."""


STATE = {
    "gradient_steps": int, "training": dict[str, Any], "sampler": Tensor, "log": dict[str, Any],
    "random": dict[str, Any],
}  # fmt: skip
"""What the saves of both stages hold besides what must not have changed."""


@dataclass
class OfflineRun:
    """What :func:`offline_run` gives to the loop inside it.

    Attributes:
        tracker: of the run folder.
        stop: hears signals.
        state: what the loop's ``state`` returned when the run was saved, for one that goes on; None for a new one.
    """

    tracker: Run
    stop: Interruption
    state: dict[str, Any] | None
    _checkpoints: RunCheckpoints
    _save_freq: int
    _command: str
    _same: Mapping[str, str]
    _saved: int | None = None
    _state: Callable[[], Mapping[str, Any]] = dict

    def between_steps(self, step: int, total: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save where that is due. Where a signal came, save and end the run.

        Args:
            step: gradient steps that are done; every ``save_freq`` of them the run is saved, and before the first.
            total: gradient steps of this part of the run.
            state: gives everything that the rest of the run depends on, as tensors and plain values.

        Raises:
            Interrupted: a signal came, and the run is saved.
            NonFiniteError: weights that are not finite; no save keeps them.
            InputError: it cannot be saved.
        """
        self._state = state
        due = self._save_freq and step % self._save_freq == 0 and step != self._saved
        if due or self.stop.requested:
            self._save(state(), f"{step} of {total} gradient steps")
            self._saved = step
            if self.stop.requested:  # in here: a signal that comes after the question above is not saved yet
                raise Interrupted(self.stop.requested, f"to go on: {self._command} --resume {self.tracker.path}")

    def snapshot(self) -> Mapping[str, Any]:
        """Where the loop stands."""
        return self._state()

    def _save(self, state: Mapping[str, Any], progress: str) -> None:
        check_finite(state["training"]["networks"], {"gradient_steps": state["gradient_steps"]})
        logs = {"log": self.tracker.state_dict(), "random": random_states()}
        resume = f"{self._command} --resume {self.tracker.path}"
        self._checkpoints.save({**self._same, **state, **logs}, f"stopped after {progress}; to go on: {resume}")


@contextlib.contextmanager
def offline_run(
    folder: Path, config: OfflineConfig, command: str, same: Mapping[str, str], *, resume: bool
) -> Iterator[OfflineRun]:
    """A run whose saves are dropped when it has ended well.

    They stand in ``unfinished/``, apart from ``checkpoints/``, which holds what other jobs load: there is no
    ``last.pt`` before the last gradient step.

    Args:
        folder: of the run.
        config: its settings.
        command: that goes on with it.
        same: what must not have changed when it goes on: ``device``, and digests of ``demonstrations`` and, in
            Stage 1, ``base``.
        resume: whether it goes on.

    Raises:
        InputError: a run that was never saved, is at its end, or over which something changed.
    """
    checkpoints = saves_of(folder, command)
    if resume and has_ended(folder, command):
        raise InputError(f"resume: expected a run that was interrupted, {folder} is at its end")
    state = _load(checkpoints, same) if resume else None
    resumed = state["log"] if state is not None else None
    with (
        Run(folder, config, resume=resumed) as tracker,
        Interruption() as stop,
    ):
        run = OfflineRun(tracker, stop, state, checkpoints, config.save_freq, command, same)
        with snapshot_of_non_finite(folder, run.snapshot):
            yield run
        shutil.rmtree(checkpoints.folder, ignore_errors=True)


def saves_of(folder: Path, command: str) -> RunCheckpoints:
    """The saves from which the run in ``folder`` goes on, if it has any."""
    return RunCheckpoints(folder / UNFINISHED, KINDS[command])


def has_ended(folder: Path, command: str) -> bool:
    """Whether the run in ``folder`` wrote everything that it writes and dropped its saves."""
    return (folder / "summary.json").is_file() and not saves_of(folder, command).exist()


def _load(checkpoints: RunCheckpoints, same: Mapping[str, str]) -> dict[str, Any]:
    where = "resume: state of the run"
    state = checkpoints.load()
    check_fields(state, {**STATE, **dict.fromkeys(same, str)}, where)
    check_log_and_random(state, where)
    if state["device"] != same["device"]:
        raise InputError(f"device: expected {state['device']}, where the run began, got {same['device']}")
    for name, what in (("demonstrations", "demonstrations"), ("base", "base policy")):
        if name in same and state[name] != same[name]:
            raise InputError(f"resume: expected the {what} that the run began with, got other content")
    return state
