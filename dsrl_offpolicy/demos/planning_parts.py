"""Planned demonstrations are made in parts, folders that are renamed when whole: an interrupted run can go on.

``<out>.parts/`` holds ``settings.json``, ``part_0000/``, ``part_0001/``, ...; each part a file of demonstrations
(``trajectory.h5`` and ``.json``) and ``counts.json``. The folder goes when the parts are merged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import h5py

from dsrl_offpolicy.demos.trajectory import check_new_file
from dsrl_offpolicy.errors import InputError

PART_EPISODES = 5
"""Demonstrations per part: what an interruption costs at most."""

UNFINISHED = ".unfinished"


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


MakePart = Callable[[Path, int, int], PartCounts]
"""Plans from a first seed until there are so many successes, and writes what it keeps into a folder."""


def parts_folder(path: Path) -> Path:
    """Where the parts of the HDF5 file ``path`` are made."""
    return path.with_name(path.name + ".parts")


def open_parts(folder: Path, request: PlanRequest) -> PartCounts:
    """Make the folder, or go on in the one of an interrupted run. Returns what its parts hold.

    Raises:
        InputError: it was begun with other settings, or cannot be made.
    """
    settings = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not settings.exists():
            if any(folder.iterdir()):
                raise InputError(f"out: expected a folder of parts begun by this command, got {folder}")
            settings.write_text(json.dumps(asdict(request)))
    except OSError as error:
        raise InputError(f"out: expected a folder that can be made, {folder}: {error.strerror}") from error
    begun = read_request(folder)
    for field in fields(PlanRequest):
        old, new = getattr(begun, field.name), getattr(request, field.name)
        if old != new:
            raise InputError(
                f"{field.name}: expected {old}, with which {folder} was begun (remove that folder to start anew), "
                f"got {new}"
            )
    return sum((counts for _, counts in finished_parts(folder)), PartCounts())


def read_request(folder: Path) -> PlanRequest:
    """The settings with which a folder of parts was begun.

    Raises:
        InputError: they cannot be read.
    """
    try:
        return PlanRequest(**json.loads((folder / "settings.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise InputError(
            f"out: expected settings.json in {folder} (remove that folder), got: {problem}"
        ) from error


def finished_parts(folder: Path) -> list[tuple[Path, PartCounts]]:
    """The whole parts in order, with their counts."""
    parts = sorted(p for p in folder.glob("part_*") if p.suffix != UNFINISHED)
    return [(part, PartCounts(**json.loads((part / "counts.json").read_text()))) for part in parts]


def make_parts(
    folder: Path, request: PlanRequest, make: MakePart, tell: Callable[[PartCounts], None]
) -> PartCounts:
    """Add parts until they hold ``request.episodes`` demonstrations.

    Args:
        folder: opened by :func:`open_parts`.
        request: what is asked.
        make: makes one part.
        tell: hears the counts so far, after every part.

    Raises:
        InputError: no plan survives its conversion.
    """
    for unfinished in folder.glob(f"*{UNFINISHED}"):
        shutil.rmtree(unfinished)
    parts = finished_parts(folder)
    total = sum((counts for _, counts in parts), PartCounts())
    number = len(parts)
    while total.kept < request.episodes:
        if total.kept == 0 and total.planned >= PART_EPISODES:
            raise InputError(
                f"control_mode: expected one in which plans of {request.env_id} still succeed, got "
                f"{request.control_mode} (0 of {total.planned}); {folder} can be removed"
            )
        part = folder / f"part_{number:04d}"
        unfinished = part.with_name(part.name + UNFINISHED)
        unfinished.mkdir()
        wanted = min(PART_EPISODES, request.episodes - total.kept)
        counts = make(unfinished, request.first_seed + total.tried, wanted)
        (unfinished / "counts.json").write_text(json.dumps(asdict(counts)))
        unfinished.rename(part)
        total, number = total + counts, number + 1
        tell(total)
    return total


def merge_parts(folder: Path, path: Path) -> None:
    """One HDF5 file and its JSON from the parts, with ids counting up from 0; then removes the folder.

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
