"""What may be sent to an arm, and where its hand may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Limits:
    """One rule for each kind of limit: an action beyond them is clipped, a hand beyond them stops the arm.

    Attributes:
        low: smallest value of each number of an action, or one for all; actions are in [-1, 1].
        high: largest value.
        change: most that a number of an action may differ from the one sent before, or one for all numbers; None
            for no such limit. The first action of an episode is held against ``RobotSetup.hold``.
        workspace: ``((x, y, z), (x, y, z))``, smallest and largest position of the hand, in the units in which
            ``info["ee_pos"]`` tells it; None for no such limit.
    """

    low: float | Sequence[float] = -1.0
    high: float | Sequence[float] = 1.0
    change: float | Sequence[float] | None = None
    workspace: tuple[Sequence[float], Sequence[float]] | None = None

    def clipped(self, action: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return what may be sent after ``before``, float32 ``[A]``. Where both limits cannot hold, ``low`` and
        ``high`` do."""
        if self.change is not None:
            action = np.clip(action, before - np.asarray(self.change), before + np.asarray(self.change))
        return np.clip(action, self.low, self.high).astype(np.float32)

    def outside(self, position: np.ndarray | None) -> str:
        """Return how a hand's position breaks the workspace, "" where it does not or there is none.

        A workspace without a position is broken: nobody would notice the hand leave it.
        """
        if self.workspace is None:
            return ""
        if position is None:
            return "the environment's info has no ee_pos to hold against the workspace"
        low, high = map(np.asarray, self.workspace)
        inside = np.isfinite(position).all() and (position >= low).all() and (position <= high).all()
        return "" if inside else f"the hand is at {np.round(position, 3).tolist()}, outside the workspace"
