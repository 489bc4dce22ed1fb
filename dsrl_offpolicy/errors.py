"""The one exception that users are meant to see, and how it points to what they may have meant."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LEFT_BEHIND = "left behind"
"""Name of threads whose work nobody waits for once a signal has ended a run."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line: it names the thing, what was expected and what came. The command line prints it
    without a traceback and exits with status 2.
    """


class NonFiniteError(InputError):
    """NaN or infinity where only finite numbers make sense.

    Args:
        message: the line to print.
        evidence: tensors and plain values to look at; a training job keeps them in a snapshot.
    """

    def __init__(self, message: str, evidence: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.evidence)  # between processes


def one_line(error: BaseException) -> str:
    """What somebody else's code raised, and where: ``RuntimeError: no camera (my_family.py, line 12)``."""
    ours = ("site-packages", str(Path(__file__).parent), "<frozen")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(part in f.filename for part in ours)]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + where


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the nearest of the known names; empty where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, numpy or torch, on any device, found no room for what was asked of it."""
    said = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in said or "out of memory" in said
