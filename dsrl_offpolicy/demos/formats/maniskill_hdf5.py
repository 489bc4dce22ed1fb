"""ManiSkill's demonstrations: an HDF5 file of groups ``traj_i`` and a JSON of the same stem beside it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsrl_offpolicy.demos.format import DemoFormat, Wanted
from dsrl_offpolicy.demos.formats.maniskill_observations import check_numbers, find_images, read_poses, read_state
from dsrl_offpolicy.demos.trajectory import DemoInfo, Trajectory
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import check_fields, reading

SUFFIXES = (".h5", ".hdf5")
_ENV_INFO = {"env_id": str | None, "env_kwargs": dict[str, Any] | None, "max_episode_steps": int | None}
_ENV_KWARGS = dict.fromkeys(("control_mode", "obs_mode", "reward_mode", "sim_backend"), str | None)
"""What is read of a JSON; none of it must be there."""


class ManiSkillHDF5(DemoFormat):
    """Flat states or a dictionary of observations, as ManiSkill records them.

    A dictionary's entries and its cameras come in alphabetical order from HDF5, so that the environment's order
    must be given; without it they are taken as ``agent/*``, then ``extra/*``, as in the file.
    """

    keeps_order = False

    def recognises(self, path: Path) -> bool:
        """Take any HDF5 file, and one that is damaged by its suffix."""
        return path.is_file() and (path.suffix in SUFFIXES or h5py.is_hdf5(path))

    def describe(self, path: Path) -> DemoInfo:
        """Read the JSON, and the names in the HDF5 file."""
        meta = _read_json(path)
        env_info = meta["env_info"]
        kwargs = env_info.get("env_kwargs") or {}
        control_mode = str(kwargs.get("control_mode") or meta["episodes"][0].get("control_mode") or "")
        with _opened(path) as file:
            groups = _groups(path, file)
            first = groups[0][1]
            has_rewards, has_gripper = "rewards" in first, _has_gripper(control_mode, first)
        return DemoInfo(
            env_id=str(env_info.get("env_id") or ""),
            control_mode=control_mode,
            obs_mode=kwargs.get("obs_mode"),
            reward_mode=kwargs.get("reward_mode"),
            sim_backend=kwargs.get("sim_backend"),
            max_episode_steps=env_info.get("max_episode_steps"),
            episodes=len(groups),
            has_rewards=has_rewards,
            has_gripper=has_gripper,
        )

    def trajectories(self, path: Path, wanted: Wanted) -> Iterator[tuple[str, Trajectory]]:
        """Read the trajectories in the integer order of ``traj_i``."""
        with _opened(path) as file:
            for name, group in _groups(path, file):
                with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, and is refused
                    trajectory = _read(f"{path}: {name}", path, group, wanted)
                yield name, trajectory


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with reading(str(path), "a readable HDF5 file"), h5py.File(path, "r") as file:
        yield file


def _groups(path: Path, file: h5py.File) -> list[tuple[str, h5py.Group]]:
    """The trajectories in integer order, each name with its group."""
    names = sorted((n for n in file if _index(n) is not None), key=lambda n: _index(n) or 0)
    if not names:
        raise InputError(f"{path}: expected groups traj_0, traj_1, ..., got {list(file)[:3]}")
    for name in names:
        if not isinstance(file[name], h5py.Group):
            raise InputError(f"{path}: {name}: expected a group, got a data set")
    return [(name, file[name]) for name in names]


def _index(name: str) -> int | None:
    prefix, _, digits = name.rpartition("_")
    number = prefix == "traj" and digits.isascii() and digits.isdecimal() and len(digits) < 20
    return int(digits) if number else None


def _read_json(path: Path) -> dict[str, Any]:
    companion = path.with_suffix(".json")
    if not companion.is_file():
        raise InputError(f"demo_path: expected {companion.name} beside {path}, it does not exist")
    try:
        meta = json.loads(companion.read_text())
    except (OSError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{companion}: expected JSON, got: {problem}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("env_info"), dict):
        raise InputError(f"{companion}: expected an object with env_info, got none")
    episodes = meta.get("episodes")
    if not isinstance(episodes, list) or not episodes or not all(isinstance(e, dict) for e in episodes):
        raise InputError(f"{companion}: expected a list 'episodes' with an entry per demonstration, got none")
    check_fields(meta["env_info"], _ENV_INFO, f"{companion}: env_info", _ENV_INFO)
    check_fields(meta["env_info"].get("env_kwargs") or {}, _ENV_KWARGS, f"{companion}: env_kwargs", _ENV_KWARGS)
    return meta


def _has_gripper(control_mode: str, group: h5py.Group) -> bool:
    """Whether actions hold more than the arm's: those of an arm alone are a displacement (3) with a rotation (6),
    or a number per joint of the robot, whose recorded state has 13 numbers and 2 per joint."""
    actions = group.get("actions")
    width = actions.shape[-1] if isinstance(actions, h5py.Dataset) and actions.shape else 0
    if control_mode.startswith("pd_ee_"):
        return width != (6 if control_mode.endswith("pose") else 3)
    robots = group.get("env_states/articulations")
    states = list(robots.values()) if isinstance(robots, h5py.Group) else []
    return all(13 + 2 * width != state.shape[-1] for state in states if isinstance(state, h5py.Dataset))


def _read(where: str, path: Path, group: h5py.Group, wanted: Wanted) -> Trajectory:
    actions = _read_field(where, group, "actions", np.float32)
    rows = len(actions) + 1 if actions.ndim else 1
    obs = group.get("obs")
    return Trajectory(
        obs=(
            read_state(where, obs, rows, wanted.state_keys)
            if isinstance(obs, h5py.Group) and len(obs)
            else _read_field(where, group, "obs", np.float32)
        ),
        actions=actions,
        success=_read_field(where, group, "success", np.bool_),
        terminated=_read_field(where, group, "terminated", np.bool_),
        truncated=_read_field(where, group, "truncated", np.bool_),
        rewards=(
            _read_field(where, group, "rewards", np.float32) if wanted.rewards or "rewards" in group else None
        ),
        images=find_images(where, path, group, rows, wanted.cameras) if wanted.images else None,
        poses=read_poses(group, rows) if wanted.poses else None,
    )


def _read_field(where: str, group: h5py.Group, field: str, dtype: type) -> np.ndarray:
    item = group.get(field)
    if not isinstance(item, h5py.Dataset):
        kind = "none" if item is None else "an empty group" if not len(item) else "a group"
        raise InputError(f"{where}: expected a data set {field!r}, got {kind}")
    check_numbers(where, field, item)
    array = np.asarray(item[()])
    if dtype is np.bool_ and not np.isfinite(array).all():  # NaN would be true
        raise InputError(f"{where}: expected true or false in {field!r}, got NaN or infinity")
    return array.astype(dtype)


def check_new_file(path: Path) -> None:
    """Refuse an HDF5 path at which demonstrations would write over something.

    Raises:
        InputError: the file or its JSON exists, both are one, or its folder cannot be one.
    """
    if path.suffix == ".json":
        raise InputError(f"out: expected an HDF5 file (.h5) that has its JSON beside it, got {path}")
    for file in (path, path.with_suffix(".json")):
        if file.exists():
            raise InputError(f"out: expected a new file, {file} exists")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"out: expected a folder to write to, {parent} is a file")


def write_demonstrations(
    path: Path, trajectories: Sequence[Trajectory], env_info: dict[str, Any], seeds: Sequence[int]
) -> None:
    """Write trajectories in the layout of ManiSkill; each file whole or not at all, the
    JSON last.

    Raises:
        InputError: the file or its JSON exists (nothing is written over), or it cannot be made.
    """
    check_new_file(path)
    temporary = path.with_name(path.name + ".tmp")
    control_mode = env_info["env_kwargs"]["control_mode"]
    episodes = [
        {
            "episode_id": i,
            "episode_seed": seed,
            "control_mode": control_mode,
            "elapsed_steps": len(trajectory),
            "reset_kwargs": {"options": None, "seed": seed},
            "success": trajectory.succeeds,
        }
        for i, (trajectory, seed) in enumerate(zip(trajectories, seeds, strict=True))
    ]
    meta = {"env_info": env_info, "commit_info": None, "episodes": episodes}
    content = io.BytesIO()  # in memory, because HDF5 does not end well on a full disk
    with h5py.File(content, "w") as file:
        for i, trajectory in enumerate(trajectories):
            group = file.create_group(f"traj_{i}")
            for field in ("obs", "actions", "success", "terminated", "truncated", "rewards"):
                group.create_dataset(field, data=getattr(trajectory, field), compression="gzip")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.getbuffer())
        temporary.replace(path)
        temporary.write_text(json.dumps(meta, indent=2))
        temporary.replace(path.with_suffix(".json"))
    except OSError as error:
        raise InputError(f"out: cannot make the file {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
