"""A user's own format: demonstrations in one .npz, rows of all episodes one after another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dsrl_offpolicy.demos.format import DemoFormat, Wanted
from dsrl_offpolicy.demos.trajectory import DemoInfo, Trajectory


class NpzDemos(DemoFormat):
    """``obs [sum of n + 1, S]``, ``actions [sum of n, A]``, ``success [sum of n]``, ``steps [episodes]``."""

    def recognises(self, path: Path) -> bool:
        return path.suffix == ".npz"

    def describe(self, path: Path) -> DemoInfo:
        with np.load(path) as file:
            return DemoInfo(
                env_id=str(file["env_id"]), control_mode=str(file["control_mode"]), episodes=len(file["steps"])
            )

    def trajectories(self, path: Path, wanted: Wanted) -> Iterator[tuple[str, Trajectory]]:
        with np.load(path) as file:
            obs, actions, success, steps = (file[name] for name in ("obs", "actions", "success", "steps"))
        first = 0
        for i, n in enumerate(steps):
            rows, never = slice(first, first + n), np.zeros(n, bool)
            frames = obs[first + i : first + i + n + 1].astype(np.float32)
            acts = actions[rows].astype(np.float32)
            yield f"episode {i}", Trajectory(frames, acts, success[rows], never, never, None)
            first += n
