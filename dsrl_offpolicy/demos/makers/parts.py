"""Planned demonstrations are made in parts, folders that are renamed when whole: an interrupted run can go on.

``<out>.parts/`` holds ``settings.json``, ``part_0000/``, ``part_0001/``, ...; each part a file of demonstrations
(``trajectory.h5`` and ``.json``) and ``counts.json``. The folder goes when the parts are merged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import h5py

from dsrl_offpolicy.demos.formats.maniskill_hdf5 import check_new_file
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import reading

PART_EPISODES = 5
"""Demonstrations per part: what an interruption costs at most."""


@dataclass(frozen=True)
class PlanRequest:
    """What to plan and how to record it.

    Attributes:
        env_id: a ManiSkill task with a motion planner.
        control_mode: to which the planned joint positions are converted.
        obs_mode: flat states, or images beside them.
        reward_mode: ManiSkill's mode of the recorded rewards.
        max_episode_steps: env steps until the recording's time limit; longer plans are dropped.
        episodes: demonstrations.
        seed: of the job.
        first_seed: of the first start; the following starts count up from it.
    """

    env_id: str
    control_mode: str
    obs_mode: Literal["state", "rgb"]
    reward_mode: Literal["normalized_dense", "dense", "sparse"]
    max_episode_steps: int
    episodes: int
    seed: int
    first_seed: int


@dataclass(frozen=True)
class PartCounts:
    """Starts tried, plans that succeeded, and demonstrations kept (plans whose conversion succeeded too)."""

    tried: int = 0
    planned: int = 0
    kept: int = 0

    def __add__(self, other: PartCounts) -> PartCounts:
        return PartCounts(self.tried + other.tried, self.planned + other.planned, self.kept + other.kept)

    @property
    def failed_plans(self) -> int:
        """Starts from which the planner did not succeed."""
        return self.tried - self.planned

    @property
    def failed_replays(self) -> int:
        """Plans lost in the conversion."""
        return self.planned - self.kept


def parts_folder(path: Path) -> Path:
    """Return where the parts of the HDF5 file ``path`` are made."""
    return path.with_name(path.name + ".parts")


def open_parts(folder: Path, request: PlanRequest) -> PartCounts:
    """Make the folder, or go on in the one of an interrupted run. Returns what its parts hold.

    Raises:
        InputError: it was begun with other settings, cannot be made, or holds something else.
    """
    settings = folder / "settings.json"
    asked = asdict(request)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not settings.exists():
            if any(folder.iterdir()):
                raise InputError(f"out: expected a folder of parts begun by this command, got {folder}")
            settings.write_text(json.dumps(asked))
    except OSError as error:
        raise InputError(f"out: cannot make the folder {folder}: {error.strerror}") from error
    with reading(str(settings), "settings of a recording (remove its folder to start over)"):
        begun = dict(json.loads(settings.read_text()))
    for name, value in asked.items():
        if begun.get(name) != value:
            raise InputError(
                f"{name}: expected {begun.get(name)}, with which {folder} was begun (remove that folder to start "
                f"anew), got {value}"
            )
    return sum((counts for _, counts in finished_parts(folder)), PartCounts())


def finished_parts(folder: Path) -> list[tuple[Path, PartCounts]]:
    """Return the whole parts in order, with their counts."""
    parts = sorted(folder.glob("part_*"))
    return [(part, PartCounts(**json.loads((part / "counts.json").read_text()))) for part in parts]


def add_part(folder: Path, make: Callable[[Path], PartCounts]) -> PartCounts:
    """Let ``make`` fill a new part, which takes its name when it is whole. Returns the part's counts."""
    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    counts = make(unfinished)
    (unfinished / "counts.json").write_text(json.dumps(asdict(counts)))
    unfinished.rename(folder / f"part_{len(finished_parts(folder)):04d}")
    return counts


def merge_parts(folder: Path, path: Path) -> None:
    """Merge the parts into one HDF5 file and its JSON, with ids counting up from 0; then remove the folder.

    Raises:
        InputError: a file came to be at ``path`` meanwhile.
    """
    merged = folder / "merged.h5"
    episodes: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}
    with h5py.File(merged, "w") as target:
        for part, _ in finished_parts(folder):
            meta = json.loads((part / "trajectory.json").read_text())
            with h5py.File(part / "trajectory.h5", "r") as source:
                for episode in meta["episodes"]:
                    source.copy(f"traj_{episode['episode_id']}", target, f"traj_{len(episodes)}")
                    episodes.append({**episode, "episode_id": len(episodes)})
    merged.with_suffix(".json").write_text(json.dumps(_merged_meta(meta, episodes), indent=2))
    check_new_file(path)
    merged.rename(path)  # first: an interruption between the two leaves an HDF5 that misses its JSON, and says so
    merged.with_suffix(".json").rename(path.with_suffix(".json"))
    shutil.rmtree(folder)


def _merged_meta(last: Mapping[str, Any], episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of the whole: the parts differ in their episodes only. The render backend is left out, for whoever
    makes the environment of this file later may want to see it."""
    env_info = dict(last["env_info"])
    env_info["env_kwargs"] = {k: v for k, v in env_info["env_kwargs"].items() if k != "render_backend"}
    return {**last, "env_info": env_info, "source_type": "motionplanning", "episodes": list(episodes)}
