"""robomimic's demonstrations: an HDF5 file of groups ``data/demo_i``, what recorded them in an attribute."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsrl_offpolicy.demos.format import DemoFormat, Wanted
from dsrl_offpolicy.demos.formats.maniskill_observations import check_numbers
from dsrl_offpolicy.demos.trajectory import DemoInfo, Trajectory
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import check_fields, reading

ROBOSUITE = 1
"""What ``env_args`` calls robosuite in ``type``."""

SHORT_NAMES = {"PickPlaceCan": "Can", "NutAssemblySquare": "Square"}
"""Names of the environment family ``robosuite``, by robosuite's."""

DISPLACEMENTS = {"osc_pose": "pd_ee_delta_pose", "osc_position": "pd_ee_delta_pos"}
"""Controllers that move the hand by a displacement."""

ROBOT_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")
"""What policies of robomimic see of every robot, in this order."""

ORDER_CHANGED = (1, 5)
"""The version of robosuite from which the numbers in ``object`` come in another order."""

_ENV_ARGS = {
    "env_name": str, "type": int, "env_version": str | None, "env_kwargs": dict[str, Any] | None,
}  # fmt: skip
_ENV_KWARGS = {
    "controller_configs": dict[str, Any] | None, "reward_shaping": bool | None, "reward_scale": int | float | None,
}  # fmt: skip


class RobomimicHDF5(DemoFormat):
    """States ``obs/*`` and images ``obs/*_image``, as robomimic's ``dataset_states_to_obs.py`` writes them.

    The state is every robot's position, quaternion and fingers, then ``object``; beside images it is what the
    environment's state is. Where the file lacks ``next_obs``, the last observation stands twice.
    """

    keeps_order = False

    def recognises(self, path: Path) -> bool:
        """Take an HDF5 file with a group ``data`` that says what recorded it or holds demonstrations."""
        try:
            with h5py.File(path, "r") as file:
                data = file.get("data")
                return isinstance(data, h5py.Group) and ("env_args" in data.attrs or any(map(_index, data)))
        except OSError:
            return False

    def describe(self, path: Path) -> DemoInfo:
        """Read what recorded the file, and the names in it."""
        with _opened(path) as data:
            args, demos = _env_args(path, data), _demos(path, data)
            has_rewards = "rewards" in demos[0][1]
        kwargs = args["env_kwargs"]
        name, robosuite = args["env_name"], args["type"] == ROBOSUITE
        shaped = kwargs.get("reward_shaping")
        return DemoInfo(
            env_id=f"robosuite:{SHORT_NAMES.get(name, name)}" if robosuite else name,
            control_mode=_control_mode(kwargs.get("controller_configs") or {}),
            reward_mode={True: "dense", False: "sparse"}.get(shaped),
            episodes=len(demos),
            has_rewards=has_rewards,
        )

    def trajectories(self, path: Path, wanted: Wanted) -> Iterator[tuple[str, Trajectory]]:
        """Read the demonstrations in the integer order of ``demo_i``."""
        with _opened(path) as data:
            args = _env_args(path, data)
            for name, demo in _demos(path, data):
                with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, and is refused
                    trajectory = _read(f"{path}: {name}", path, demo, wanted, args)
                yield name, trajectory


class RobomimicImages:
    """The images of one demonstration, all cameras along the channels; only shapes are held in memory.

    Args:
        path: the HDF5 file, opened by every :meth:`read`.
        datasets: ``[n, H, W, 3]`` of uint8 per camera, and ``[n, H, W, 3]`` of the observations after each action,
            None where the last image stands twice.
        shape: ``(n + 1, H, W, 3k)`` for k cameras.
    """

    def __init__(
        self, path: Path, datasets: Sequence[tuple[str, str | None]], shape: tuple[int, int, int, int]
    ) -> None:
        self._path = path
        self._datasets = tuple(datasets)
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the images at ``rows`` (in any order, repeats allowed), ``[len(rows), H, W, 3k]`` uint8.

        Raises:
            InputError: the file is no longer what it was when its demonstrations were read.
            IndexError: rows that the demonstration does not have.
        """
        wanted, places = np.unique(np.arange(len(self))[rows], return_inverse=True)
        last = len(self) - 2
        cameras = []
        with reading(str(self._path), "readable images"), h5py.File(self._path, "r") as file:
            for name, after in self._datasets:
                inside = np.unique(np.minimum(wanted, last))
                images = file[name][inside][np.searchsorted(inside, np.minimum(wanted, last))]
                if after is not None and wanted.size and wanted[-1] > last:
                    images[-1] = file[after][last]
                cameras.append(images)
        return np.concatenate(cameras, axis=-1)[places]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.Group]:
    with reading(str(path), "a readable HDF5 file"), h5py.File(path, "r") as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            raise InputError(f"{path}: expected a group 'data' as robomimic writes it, got none")
        yield data


def _index(name: str) -> int | None:
    prefix, _, digits = name.rpartition("_")
    number = prefix == "demo" and digits.isascii() and digits.isdecimal() and len(digits) < 20
    return int(digits) if number else None


def _demos(path: Path, data: h5py.Group) -> list[tuple[str, h5py.Group]]:
    """The demonstrations in integer order, each name with its group."""
    indices = sorted(index for name in data if (index := _index(name)) is not None)
    if not indices:
        raise InputError(f"{path}: expected groups data/demo_0, data/demo_1, ..., got {list(data)[:3]}")
    for before, after in pairwise(indices):
        if after != before + 1:
            raise InputError(f"{path}: expected demonstrations without gaps, got no data/demo_{before + 1}")
    for index in indices:
        if not isinstance(data.get(f"demo_{index}"), h5py.Group):
            raise InputError(f"{path}: demo_{index}: expected a group, got a data set")
    return [(f"demo_{index}", data[f"demo_{index}"]) for index in indices]


def _env_args(path: Path, data: h5py.Group) -> dict[str, Any]:
    where = f"{path}: env_args"
    text = data.attrs.get("env_args")
    if not isinstance(text, str | bytes):
        raise InputError(f"{path}: expected an attribute 'env_args' of 'data' as robomimic writes it, got none")
    try:
        args = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, got: {' '.join(str(error).split())}") from error
    check_fields(args, _ENV_ARGS, where, ("env_version", "env_kwargs"))
    args["env_kwargs"] = args.get("env_kwargs") or {}
    check_fields(args["env_kwargs"], _ENV_KWARGS, f"{where}: env_kwargs", _ENV_KWARGS)
    return args


def _control_mode(controller: dict[str, Any]) -> str:
    """The controller as ``dsrl demos`` names it, else as robosuite does; displacements are the default."""
    kind = str(controller.get("type") or "").lower()
    return DISPLACEMENTS.get(kind, kind) if controller.get("control_delta", True) else kind


def _read(where: str, path: Path, demo: h5py.Group, wanted: Wanted, args: dict[str, Any]) -> Trajectory:
    actions = _numbers(where, demo, "actions", None)
    n = len(actions) if actions.ndim == 2 else 0
    if n == 0:
        raise InputError(f"{where}: expected actions [n, A] with n > 0, got shape {actions.shape}")
    if demo.attrs.get("num_samples", n) != n:
        raise InputError(f"{where}: expected {demo.attrs['num_samples']} rows in 'actions', got {n}")
    if not isinstance(demo.get("obs"), h5py.Group):
        raise InputError(f"{where}: expected 'obs' (robomimic's dataset_states_to_obs.py adds it), got none")
    keys = wanted.state_keys if wanted.images else None
    if keys is None:
        keys = _state_keys(where, demo["obs"], with_objects=not wanted.images)
    if "object" in keys:
        _check_version(where, args)
    rewards = _numbers(where, demo, "rewards", n).reshape(n) if "rewards" in demo else None
    never = np.zeros(n, bool)  # robomimic's dones mark success or the last step, and robosuite ends no episode
    return Trajectory(
        obs=np.concatenate([_column(where, demo, key, n) for key in keys], axis=1),
        actions=actions,
        success=_success(where, demo, rewards, n, args),
        terminated=never,
        truncated=never,
        rewards=rewards,
        images=_find_images(where, path, demo, n, wanted.cameras) if wanted.images else None,
    )


def _numbers(where: str, group: h5py.Group, name: str, rows: int | None) -> np.ndarray:
    """A data set of numbers as float32, with so many rows."""
    data = group.get(name)
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"{where}: expected a data set {name!r}, got {'none' if data is None else 'a group'}")
    check_numbers(where, name, data)
    if rows is not None and data.shape[:1] != (rows,):
        raise InputError(f"{where}: expected {rows} rows in {name!r}, got shape {data.shape}")
    return np.asarray(data[()]).astype(np.float32)


def _column(where: str, demo: h5py.Group, key: str, n: int) -> np.ndarray:
    """A part of the state, ``[n + 1, k]``."""
    values = _numbers(where, demo, f"obs/{key}", n).reshape(n, -1)
    last = values[-1:]
    if f"next_obs/{key}" in demo:
        last = _numbers(where, demo, f"next_obs/{key}", n).reshape(n, -1)[-1:]
    return np.concatenate([values, last])


def _state_keys(where: str, obs: h5py.Group, *, with_objects: bool) -> list[str]:
    robots = sorted(name.removesuffix("_eef_pos") for name in obs if name.endswith("_eef_pos"))
    if not robots or (with_objects and "object" not in obs):
        found = ", ".join(list(obs)[:8])
        raise InputError(f"{where}: expected 'obs/robot0_eef_pos' and 'obs/object', got {found or 'nothing'}")
    return [f"{robot}_{key}" for robot in robots for key in ROBOT_KEYS] + ["object"] * with_objects


def _check_version(where: str, args: dict[str, Any]) -> None:
    version = re.match(r"(\d+)\.(\d+)", args.get("env_version") or "")
    if args["type"] == ROBOSUITE and version and (int(version[1]), int(version[2])) >= ORDER_CHANGED:
        raise InputError(
            f"{where}: expected a recording of robosuite 1.4, since later ones order the numbers in 'object' "
            f"otherwise, got {version[0]}"
        )


def _success(where: str, demo: h5py.Group, rewards: np.ndarray | None, n: int, args: dict[str, Any]) -> np.ndarray:
    """Success after each action: robosuite pays ``reward_scale`` for it and less otherwise, shaped or not."""
    if rewards is None:
        return _numbers(where, demo, "dones", n).reshape(n) > 0
    scale = args["env_kwargs"].get("reward_scale") or 1.0
    if args["type"] != ROBOSUITE and not np.isin(rewards, (0, 1)).all():
        raise InputError(
            f"{where}: expected rewards of 0, and 1 where the task succeeds, got others; "
            "a format of your own (--demo_format module:Class) can say what success is"
        )
    return rewards >= scale * (1 - 1e-6)


def _find_images(
    where: str, path: Path, demo: h5py.Group, n: int, cameras: Sequence[str] | None
) -> RobomimicImages:
    obs = demo["obs"]
    found = [name.removesuffix("_image") for name in obs if name.endswith("_image")]
    if not found:
        raise InputError(f"{where}: expected images in 'obs/*_image', got none")
    for camera in cameras or found:
        if camera not in found:
            raise InputError(f"{where}: expected images of camera {camera!r}, got only {', '.join(found)}")
    names = [f"{camera}_image" for camera in cameras or found]
    sizes = set()
    for name in (f"{part}/{name}" for part in ("obs", "next_obs") for name in names):
        data = demo.get(name)
        if data is None and name.startswith("next_obs"):
            continue
        if not isinstance(data, h5py.Dataset):
            raise InputError(f"{where}: expected a data set {name!r}, got a group")
        check_numbers(where, name, data)
        if data.dtype != np.uint8 or data.ndim != 4 or len(data) != n or data.shape[3] != 3:
            raise InputError(f"{where}: expected uint8 [{n}, H, W, 3] in {name!r}, got {data.dtype} {data.shape}")
        sizes.add(data.shape[1:3])
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise InputError(f"{where}: expected cameras of one size, got {shown}")
    height, width = sizes.pop()
    datasets = [
        (f"{demo.name}/obs/{name}", f"{demo.name}/next_obs/{name}" if f"next_obs/{name}" in demo else None)
        for name in names
    ]
    return RobomimicImages(path, datasets, (n + 1, height, width, 3 * len(names)))
