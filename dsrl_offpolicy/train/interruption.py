"""Ctrl-C and SIGTERM: the step is finished, the run is saved, and the user is told how to go on."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from torch import Tensor

from dsrl_offpolicy.contracts import LatentSource


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


class EvaluationStopped(Exception):
    """A signal came during an evaluation, which is made up for when the run goes on."""


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

    def listening(self, source: LatentSource) -> LatentSource:
        """``source``, which raises EvaluationStopped once a signal came."""

        def listen(features: Tensor, noise: Tensor) -> Tensor:
            if self.requested is not None:
                raise EvaluationStopped
            return source(features, noise)

        return listen
