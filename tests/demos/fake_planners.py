"""A planner without a simulator, which fails, crashes and interrupts as told. The planner's process imports it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsrl_offpolicy.demos.formats.maniskill_hdf5 import write_demonstrations
from dsrl_offpolicy.demos.makers.parts import PartCounts, PlanRequest
from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.errors import InputError

ENV_INFO = {
    "env_id": "PickCube-v1",
    "env_kwargs": {"control_mode": "pd_ee_delta_pose", "render_backend": "none", "obs_mode": "state"},
    "max_episode_steps": 1000,
}


@dataclass(frozen=True)
class FakePlanner:
    """Makes parts whose demonstrations have their start's seed as observations.

    Attributes:
        calls: file that gets a line per call.
        failing: seeds from which planning fails.
        lost: seeds whose plan is lost in the conversion.
        trouble: what happens, half a part having been written, from the seed ``trouble_from`` on.
    """

    calls: Path
    failing: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    trouble: str = ""
    trouble_from: int = 0

    def __call__(self, request: PlanRequest, folder: Path, first_seed: int, count: int) -> PartCounts:
        with self.calls.open("a") as calls:
            calls.write(f"{first_seed} {count}\n")
        if self.trouble and first_seed >= self.trouble_from:
            (folder / "plans.h5").write_text("half")
            self._make_trouble()
        planned, seed = [], first_seed
        while len(planned) < count:
            planned += [seed] if seed not in self.failing else []
            seed += 1
        kept = [s for s in planned if s not in self.lost]
        write_demonstrations(folder / "trajectory.h5", [_trajectory(s) for s in kept], ENV_INFO, kept)
        return PartCounts(seed - first_seed, count, len(kept))

    def _make_trouble(self) -> None:
        if self.trouble == "interrupt":  # as Ctrl-C, at a moment that no machine is too slow for
            os.kill(os.getppid(), signal.SIGINT)
            signal.pause()
        if self.trouble == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.trouble == "raise":
            raise RuntimeError("no way\n out")
        if self.trouble == "refuse":
            raise InputError("env_id: expected this, got that")
        os._exit(0)


def _trajectory(seed: int) -> Trajectory:
    flags = np.zeros(2, bool)
    obs = np.full((3, 4), seed, np.float32)
    return Trajectory(obs, np.zeros((2, 7), np.float32), flags, flags, flags, np.zeros(2, np.float32))
