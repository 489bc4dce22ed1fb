"""A training run of any stage: its folder and lock, signals, saves, and how it resumes.

A stage builds itself, opens :func:`training_run`, and calls ``between_steps`` in its loop. Nothing else of what
serves resuming and faults is in its way.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from torch import Tensor

from dsrl_offpolicy.configs.loading import to_plain
from dsrl_offpolicy.contracts import LatentSource
from dsrl_offpolicy.errors import LEFT_BEHIND, InputError, NonFiniteError
from dsrl_offpolicy.files.checkpoint import UNFINISHED, save_checkpoint
from dsrl_offpolicy.files.plain import reading, shown
from dsrl_offpolicy.seeding import random_states
from dsrl_offpolicy.tracking.run import Run, create_run_folder
from dsrl_offpolicy.train.saves import Saves, check_common

T = TypeVar("T")

SNAPSHOT = "non_finite.pt"

TELL_EVERY = 20.0
"""Seconds between two lines about something that is waited for."""


class Interrupted(Exception):
    """A run was stopped by a signal and is saved.

    Args:
        number: the signal's.
        advice: how to go on.
    """

    def __init__(self, number: int, advice: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {advice}")
        self.number = number
        self.exit_status = 128 + number


class Interruption:
    """Inside, the first SIGINT or SIGTERM only sets ``requested``; a second one raises KeyboardInterrupt.

    One inside another hands it a signal on which nothing inside acted.

    Args:
        at_once: already the first one raises KeyboardInterrupt: for work that begins anew rather than goes on.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.requested: int | None = None
        self._at_once = at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        around = getattr(self._before[signal.SIGINT], "__self__", None)
        if kind is None and self.requested is not None and isinstance(around, Interruption):
            around._note(self.requested, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = number
        if again or self._at_once:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Stage:
    """How runs of a stage are saved.

    Attributes:
        command: that begins and resumes them.
        kind: of their saves.
        folder: where in the run folder the saves stand.
        unit: what their progress is counted in.
        kept: whether the saves stay once the run has ended; its last one then says so. Otherwise they are dropped,
            and ``checkpoints/``, which other jobs read, is written when the run ends.
    """

    command: str
    kind: str
    folder: str
    unit: str
    kept: bool

    def saves(self, run_folder: Path) -> Saves:
        """Return the saves from which the run in ``run_folder`` resumes, if it has any."""
        return Saves(run_folder / self.folder, self.kind)

    def has_ended(self, run_folder: Path) -> bool:
        """Return whether the run in ``run_folder`` did everything that it does."""
        saves = self.saves(run_folder)
        if self.kept:
            return saves.exist() and saves.load()["collector"] is None
        return (run_folder / "summary.json").is_file() and not saves.exist()


STAGE0 = Stage("dsrl pretrain", "unfinished_stage0", UNFINISHED, "gradient steps", kept=False)
STAGE1 = Stage("dsrl stage1", "unfinished_stage1", UNFINISHED, "gradient steps", kept=False)
STAGE2 = Stage("dsrl stage2", "stage2", "checkpoints", "env steps", kept=True)
PPO = Stage("dsrl ppo", "stage2", "checkpoints", "env steps", kept=True)

MAY_CHANGE = (
    "resume", "out", "demo_path", "awsc_checkpoint", "base", "stage1_checkpoint",  # digests hold their content
    "device", "torch_threads", "compile", "render_backend", "env_timeout",
    "ray_address", "num_runners", "max_lag", "runner_timeout",
    "log_freq", "save_freq", "eval_freq", "video_every", "track", "wandb_project", "loggers", "total_timesteps",
)  # fmt: skip
"""Settings that may differ when a run resumes: where files are and what the machine has (``device`` of the same
type), how often something is logged, saved and evaluated, and how long Stage 2 goes on. Not ``total_iters``: the
schedules of Stage 0 and the pool of Stage 1 depend on it."""

BEGAN_WITH = {
    "demonstrations": "demonstrations", "base": "base policy", "base_fingerprint": "base policy",
    "inverted": "inverted demonstrations",
}  # fmt: skip
"""What must not have changed when a run resumes, and what it is called."""


class Resumable(ABC):
    """What a run asks of what it trains."""

    @abstractmethod
    def progress(self) -> tuple[int, int]:
        """Return how many of the stage's steps are done, and of how many."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, as tensors and plain values.

        ``training`` holds the ``networks`` of a learner.
        """

    @abstractmethod
    def check(self, state: Mapping[str, Any], where: str) -> None:
        """Raise InputError, naming ``where``, unless ``state`` is what :meth:`state` could have returned."""

    def saved(self) -> None:  # noqa: B027  most keep nothing besides
        """Drop what only older saves needed: the last state is on disk."""

    def snapshot(self) -> dict[str, Any]:
        """Return what to look at beside a number that is not finite."""
        return self.state()


@dataclass
class TrainingRun:
    """What :func:`training_run` gives to the loop inside it.

    Attributes:
        tracker: of the run folder.
        stop: hears signals.
        resumed: the state from which the run goes on; None for a new one.
        config: its settings.
    """

    tracker: Run
    stop: Interruption
    resumed: dict[str, Any] | None
    config: Any
    _stage: Stage
    _subject: Resumable
    _same: Mapping[str, str]
    _next_save: int | None = None

    def between_steps(self) -> None:
        """Save where that is due. Where a signal came, save and end the run.

        A run whose saves are dropped at its end is saved before its first step too.

        Raises:
            Interrupted: a signal came, and the run is saved.
            NonFiniteError: weights that are not finite; no save keeps them.
            InputError: it cannot be saved.
        """
        done, _ = self._subject.progress()
        freq = self.config.save_freq
        if freq:
            following = (done // freq + 1) * freq
            if self._next_save is None:
                self._next_save = following if self._stage.kept else done
            if done >= self._next_save:
                self.save()
                self._next_save = following
        self.end_if_stopped()

    def end_if_stopped(self) -> None:
        """Save and end the run if a signal came, in the middle of a step if need be.

        Raises:
            Interrupted, NonFiniteError, InputError: as :meth:`between_steps`.
        """
        number = self.stop.requested
        if number is not None:
            self.save()
            raise Interrupted(number, f"resume with: {self._advice()}")

    def listening(self, source: LatentSource) -> LatentSource:
        """Return ``source``, ending the run if a signal came; a resumed run repeats the evaluation."""

        def listen(features: Tensor, noise: Tensor) -> Tensor:
            self.end_if_stopped()
            return source(features, noise)

        return listen

    def waiting_for(self, work: Callable[[], T], tell: Callable[[float], None] | None = None) -> T:
        """Return what ``work`` returns, done in a thread that is left behind if a signal ends the run.

        Args:
            work: may not change what :meth:`Resumable.state` tells.
            tell: is given the seconds that it has taken, every ``TELL_EVERY`` of them.

        Raises:
            Interrupted, NonFiniteError, InputError: as :meth:`between_steps`; and what ``work`` raises.
        """
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=do, name=LEFT_BEHIND, daemon=True).start()
        start = told = time.monotonic()
        while not future.done():
            wait([future], timeout=0.2)
            self.end_if_stopped()
            now = time.monotonic()
            if tell is not None and now - told >= TELL_EVERY:
                tell(now - start)
                told = now
        return future.result()

    def save(self) -> None:
        """Save the run as it stands."""
        state = self._subject.state()
        done, total = self._subject.progress()
        check_finite(state["training"]["networks"], {self._stage.unit: done})
        logs = {"log": self.tracker.state_dict(), "random": random_states(), "settings": to_plain(self.config)}
        progress = f"stopped after {done} of {total} {self._stage.unit}; resume with: {self._advice()}"
        self._stage.saves(self.tracker.path).save({**self._same, **state, **logs}, progress)
        self._subject.saved()

    def _advice(self) -> str:
        return f"{self._stage.command} --resume {self.tracker.path}"


def run_folder(config: Any) -> Path:
    """Return the folder of the run that ``config.resume`` names, or make a new one.

    Raises:
        InputError: it cannot be made, or exists already.
    """
    if config.resume is not None:
        return Path(config.resume).expanduser()
    return create_run_folder(config.out, f"dsrl_offpolicy_{config.kind}-{config.env_id}-seed{config.seed}")


@contextmanager
def training_run(
    stage: Stage, subject: Resumable, config: Any, folder: Path, same: Mapping[str, str]
) -> Iterator[TrainingRun]:
    """Begin a run, or resume one (``config.resume``); inside, signals are heard.

    Args:
        stage: of which stage.
        subject: what is trained.
        config: its settings.
        folder: of the run.
        same: what must not have changed when it resumes: ``device``, and digests (``BEGAN_WITH``).

    Raises:
        InputError: a run that was never saved, is at its end, or over which something changed.
    """
    state = load_state(stage, folder, subject, same, config) if config.resume is not None else None
    log = state["log"] if state is not None else None
    with (
        Run(folder, config, resume=log) as tracker,
        Interruption() as stop,
    ):
        run = TrainingRun(tracker, stop, state, config, stage, subject, same)
        with snapshot_of_non_finite(folder, subject.snapshot):
            yield run
            if stage.kept:
                run.save()
        if not stage.kept:
            shutil.rmtree(stage.saves(folder).folder, ignore_errors=True)


def load_state(
    stage: Stage, folder: Path, subject: Resumable, same: Mapping[str, str], config: Any
) -> dict[str, Any]:
    """Load and check the last state of an interrupted run; restore nothing.

    Raises:
        InputError: as :func:`training_run`.
    """
    where = "resume: state of the run"

    def check(state: dict[str, Any]) -> None:
        check_common(state, same, where)
        subject.check(state, where)

    ended = InputError(f"resume: expected a run that was interrupted, {folder} has finished")
    if not stage.kept and stage.has_ended(folder):
        raise ended
    state = stage.saves(folder).load(check)
    if stage.kept and state["collector"] is None:
        raise ended
    if state["device"] != same["device"]:
        raise InputError(
            f"device: expected {state['device']}, where the run began, got {same['device']}; "
            f"set device: {state['device']} in the run's config.yaml"
        )
    _refuse_other_settings(state.get("settings"), config, folder)
    for name, what in BEGAN_WITH.items():
        if state.get(name) != same.get(name):
            raise InputError(f"resume: the {what} changed since the run began")
    return state


def _refuse_other_settings(began_with: Mapping[str, Any] | None, config: Any, folder: Path) -> None:
    """Raise InputError where a setting outside ``MAY_CHANGE`` is not what it was; old saves know none."""
    if began_with is None:
        return
    with reading("resume: settings of the run", "plain values by name"):
        began = to_plain(type(config)()) | dict(began_with)  # a setting of a later version had its default
        for name, now in to_plain(config).items():
            if name not in MAY_CHANGE and began[name] != now:
                raise InputError(
                    f"{name}: expected {_brief(began[name])}, with which the run began, got {_brief(now)} in "
                    f"{folder / 'config.yaml'}; only a new run can change it"
                )


def _brief(value: Any) -> str:
    """A setting for an error: the values of a short list are written out."""
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, list) and len(value) <= 8 else shown(value)


@contextmanager
def snapshot_of_non_finite(folder: Path, state: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Inside, a :class:`NonFiniteError` leaves ``non_finite.pt`` in the run folder: its evidence, and ``state``.

    The saves that the run resumes from stay as they were before.
    """
    try:
        yield
    except NonFiniteError as error:
        path = folder / SNAPSHOT
        told = f"a snapshot is in {path}"
        try:
            save_checkpoint(path, "snapshot", {"message": str(error), "evidence": dict(error.evidence), **state()})
        except InputError as problem:
            told = f"no snapshot was saved: {problem}"
        raise NonFiniteError(f"{error}; {told}", error.evidence) from error


def check_finite(weights: Mapping[str, Tensor], when: Mapping[str, int]) -> None:
    """Refuse weights that are not finite, so that no checkpoint keeps them.

    Raises:
        NonFiniteError: naming the first such tensor.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NonFiniteError(
                f"{name}: expected finite weights, got NaN or infinity at {dict(when)}", {"weights": {name: value}}
            )
