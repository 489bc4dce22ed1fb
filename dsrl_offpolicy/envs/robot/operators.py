"""Who stands beside a robot: takes over, says how an episode ended, resets the scene, stops the arm."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import threading
import tty
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

Label = Literal["success", "failure", "discard"]
"""How an episode ended. ``discard`` keeps no recording of it."""


class OperatorGone(Exception):
    """Nobody stands beside the robot any more."""


class Operator(ABC):
    """What a robot asks of whoever stands beside it. Once nobody does, a method raises :class:`OperatorGone`."""

    def start(self, stop: Callable[[str], None]) -> None:  # noqa: B027  a script need not listen
        """Begin to listen. ``stop(reason)`` stops the arm; it may be called at any time and from any thread."""

    @abstractmethod
    def takeover(self, obs: Any, proposed: np.ndarray) -> np.ndarray | None:
        """Return the action ``[A]`` to send instead of ``proposed``, or None to let the policy act."""

    @abstractmethod
    def label(self) -> Label | None:
        """Return how the episode ended, once, or None while it has not."""

    @abstractmethod
    def ready(self, reason: str) -> None:
        """Return when the scene is reset and the arm may move; ``reason`` says why it was asked."""

    def close(self) -> None:  # noqa: B027  a script holds nothing
        """Stop listening."""


class ScriptedOperator(Operator):
    """Takes over where the arm strays, for so many actions at least; resets at once.

    Args:
        expert: from an observation to an action ``[A]``.
        strays: whether somebody should take over, from an observation.
        rows: actions for which it keeps control.
        verdict: the label that an observation deserves; by default none.
    """

    def __init__(
        self,
        expert: Callable[[Any], np.ndarray],
        strays: Callable[[Any], bool],
        rows: int = 8,
        verdict: Callable[[Any], Label | None] = lambda obs: None,
    ) -> None:
        self._expert, self._strays, self._rows, self._verdict = expert, strays, rows, verdict
        self._left = 0
        self._seen: Any = None

    def takeover(self, obs: Any, proposed: np.ndarray) -> np.ndarray | None:
        self._seen = obs
        if self._left == 0 and self._strays(obs):
            self._left = self._rows
        if self._left == 0:
            return None
        self._left -= 1
        return self._expert(obs)

    def label(self) -> Label | None:
        return self._verdict(self._seen)

    def ready(self, reason: str) -> None:
        self._left = 0


LABELS: dict[str, Label] = {"s": "success", "f": "failure", "x": "discard"}
JOG = {"i": (0, 1.0), "k": (0, -1.0), "j": (1, 1.0), "l": (1, -1.0), "u": (2, 1.0), "o": (2, -1.0)}
HELP = (
    "space stops the arm; t takes over and gives back, i k, j l and u o move it; "
    "s, f, x: the episode is a success, a failure, to be discarded"
)


class TerminalOperator(Operator):
    """Keys of the terminal, heard by a thread of its own, so that the space bar stops the arm at any moment.

    Args:
        jog: number of the action and its value by key, while somebody has taken over; all others are 0.
        device: the terminal; by default that of the command.
    """

    def __init__(self, jog: Mapping[str, tuple[int, float]] = JOG, device: str = "/dev/tty") -> None:
        self._jog, self._device = dict(jog), device
        self._stop: Callable[[str], None] = lambda reason: None
        self._lock = threading.Condition()
        self._keys: list[str] = []
        self._label: Label | None = None
        self._has_control = self._waits = self._is_ready = self._is_gone = False
        self._terminal = -1
        self._settings: list[Any] = []
        self._closing = threading.Event()

    def start(self, stop: Callable[[str], None]) -> None:
        try:
            self._terminal = os.open(self._device, os.O_RDWR)
        except OSError as error:
            raise OperatorGone("there is no terminal to read keys from") from error
        self._stop, self._settings = stop, termios.tcgetattr(self._terminal)
        tty.setcbreak(self._terminal)
        self._say(f"robot: {HELP}")
        threading.Thread(target=self._listen, daemon=True).start()

    def takeover(self, obs: Any, proposed: np.ndarray) -> np.ndarray | None:
        with self._lock:
            self._check()
            keys, self._keys = self._keys, []
            if not self._has_control:
                return None
        action = np.zeros_like(proposed)
        for number, value in (self._jog[key] for key in keys):
            action[number] = value
        return action

    def label(self) -> Label | None:
        with self._lock:
            self._check()
            label, self._label = self._label, None
            return label

    def ready(self, reason: str) -> None:
        self._say(f"robot: {reason}; reset the scene, then press Enter")
        with self._lock:
            self._waits, self._is_ready, self._has_control = True, False, False
            self._lock.wait_for(lambda: self._is_ready or self._is_gone)
            self._waits, self._keys, self._label = False, [], None
            self._check()

    def close(self) -> None:
        self._closing.set()
        if self._settings:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._settings)

    def _check(self) -> None:
        if self._is_gone:
            raise OperatorGone("the terminal is closed")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._terminal, f"{line}\r\n".encode())

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                if not select.select([self._terminal], [], [], 0.2)[0]:
                    continue
                key = os.read(self._terminal, 1).decode(errors="replace")
            except OSError:
                key = ""
            if not key:
                self._leave()
                return
            if key == " ":
                self._stop("the operator stopped it")
            self._hear(key)

    def _leave(self) -> None:
        self._stop("the operator's terminal is closed")
        with self._lock:
            self._is_gone = True
            self._lock.notify_all()

    def _hear(self, key: str) -> None:
        with self._lock:
            if key in "\r\n":
                self._is_ready = self._waits
                self._lock.notify_all()
            elif key in LABELS and self._waits:
                self._say(f"robot: {LABELS[key]} comes too late, the episode has ended")
            elif key in LABELS:
                self._label = LABELS[key]
            elif key == "t":
                self._has_control = not self._has_control
                self._say("robot: you have control" if self._has_control else "robot: the policy has control")
            elif key in self._jog:
                self._keys.append(key)
