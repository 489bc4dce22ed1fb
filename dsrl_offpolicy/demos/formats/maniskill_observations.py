"""Observations of one demonstration: state vectors from a dictionary of groups, and images on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import reading

SENSOR_GROUPS = ("sensor_data", "sensor_param")
"""Groups of ``obs`` that are not part of the state."""

DEFLATE_RATIO = 1032
"""How many bytes a compressed one can stand for at most."""

POSE_WIDTH = 7
"""Numbers of an actor's state that are its position and quaternion; velocities follow."""


class LazyImages:
    """The images of one trajectory, all cameras concatenated along the channels; only shapes are held in memory.

    Args:
        path: the HDF5 file, opened by every :meth:`read`.
        datasets: one data set ``[n + 1, H, W, 3]`` of uint8 per camera, in the order of the channels.
        shape: ``(n + 1, H, W, 3k)`` for k cameras.
    """

    def __init__(self, path: Path, datasets: Sequence[str], shape: tuple[int, int, int, int]) -> None:
        self._path = path
        self._datasets = tuple(datasets)
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the images at ``rows`` (in any order, repeats allowed), ``[len(rows), H, W, 3k]`` uint8.

        Raises:
            InputError: the file is no longer what it was when its demonstrations were read.
            IndexError: rows that the trajectory does not have.
        """
        wanted, places = np.unique(np.arange(len(self))[rows], return_inverse=True)
        with reading(str(self._path), f"readable images in {self._datasets}"), h5py.File(self._path, "r") as file:
            cameras = [file[name][wanted] for name in self._datasets]
        return np.concatenate(cameras, axis=-1)[places]


def check_numbers(where: str, name: str, data: h5py.Dataset) -> None:
    """Refuse a data set of anything but numbers, or of more than its stored bytes can stand for: reading it would
    fill the memory.

    Args:
        where: file and trajectory, for messages.
        name: of the data set, for messages.
        data: the data set; only its description is read.

    Raises:
        InputError: as said.
    """
    if data.dtype.kind not in "biuf" or data.shape is None:
        raise InputError(f"{where}: expected numbers in {name!r}, got {data.dtype}")
    if data.size * data.dtype.itemsize > DEFLATE_RATIO * data.id.get_storage_size():
        raise InputError(f"{where}: expected numbers in {name!r}, got fewer bytes than shape {data.shape} has")


def read_state(where: str, obs: h5py.Group, rows: int, keys: Sequence[str] | None) -> np.ndarray:
    """Read the state vectors of a dictionary of observations, ``[rows, S]`` float32.

    Args:
        where: file and trajectory, for messages.
        obs: the group ``obs``.
        rows: n + 1.
        keys: state entries (``agent/qpos``) in the order of the environment's observation space; default: those of
            the file, ``agent`` before ``extra``, and within each in the file's order.

    Raises:
        InputError: keys that differ from the file's, or an entry of another length or more than two dimensions.
    """
    found = _state_keys(obs)
    if keys is None:
        keys = found
    for key in keys:
        if key not in found:
            raise InputError(f"{where}: expected a data set 'obs/{key}', which the environment observes, got none")
    for key in found:
        if key not in keys:
            raise InputError(f"{where}: expected only what the environment observes, got also 'obs/{key}'")
    columns = []
    for key in keys:
        check_numbers(where, f"obs/{key}", obs[key])
        values = np.asarray(obs[key][()])
        if values.ndim not in (1, 2) or len(values) != rows:
            raise InputError(f"{where}: expected [{rows}] or [{rows}, k] in 'obs/{key}', got shape {values.shape}")
        columns.append(values.reshape(rows, -1).astype(np.float32))
    if not columns:
        raise InputError(f"{where}: expected state observations ('obs' or 'obs/agent/*'), got none")
    return np.concatenate(columns, axis=1)


def _state_keys(obs: h5py.Group) -> list[str]:
    """Data sets below ``obs`` apart from sensors: ``agent/*``, ``extra/*``, then any others."""
    found: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and name.split("/")[0] not in SENSOR_GROUPS:
            found.append(name)

    obs.visititems(visit)
    rank = {"agent": 0, "extra": 1}
    return sorted(found, key=lambda name: rank.get(name.split("/")[0], 2))


def find_images(where: str, path: Path, group: h5py.Group, rows: int, cameras: Sequence[str] | None) -> LazyImages:
    """Find the images of one trajectory; reads shapes only.

    Args:
        where: file and trajectory, for messages.
        path: the file.
        group: the trajectory's group.
        rows: n + 1.
        cameras: names in the order of the channels; default: the file's order.

    Raises:
        InputError: no images, cameras other than those named, or images that do not fit together.
    """
    sensors = group.get("obs/sensor_data")
    found = [c for c in sensors if "rgb" in sensors[c]] if isinstance(sensors, h5py.Group) else []
    if not found:
        raise InputError(f"{where}: expected images in 'obs/sensor_data/*/rgb', got none")
    cameras = found if cameras is None else cameras
    for camera in cameras:
        if camera not in found:
            raise InputError(f"{where}: expected images of camera {camera!r}, got only {', '.join(found)}")
    for camera in found:
        if camera not in cameras:
            raise InputError(f"{where}: expected only cameras {', '.join(cameras)}, got also {camera!r}")
    names = [f"obs/sensor_data/{camera}/rgb" for camera in cameras]
    for name in names:
        data = group[name]
        if not isinstance(data, h5py.Dataset):
            raise InputError(f"{where}: expected a data set {name!r}, got a group")
        check_numbers(where, name, data)
        if data.dtype != np.uint8:
            raise InputError(f"{where}: expected uint8 in {name!r}, got {data.dtype}")
        if data.ndim != 4 or len(data) != rows or data.shape[3] != 3:
            raise InputError(f"{where}: expected [{rows}, H, W, 3] in {name!r}, got shape {data.shape}")
    sizes = {camera: group[name].shape[1:3] for camera, name in zip(cameras, names, strict=True)}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{camera} {height}x{width}" for camera, (height, width) in sizes.items())
        raise InputError(f"{where}: expected cameras of one size, got {shown}")
    height, width = sizes[cameras[0]]
    paths = [f"{group.name}/{name}" for name in names]
    return LazyImages(path, paths, (rows, height, width, 3 * len(names)))


def read_poses(group: h5py.Group, rows: int) -> dict[str, np.ndarray] | None:
    """Read positions and quaternions of all actors that the simulator recorded beside the observations.

    Args:
        group: the trajectory's group.
        rows: n + 1.

    Returns:
        ``[rows, 7]`` float32 by the actor's name; None where ``env_states/actors`` holds nothing of that shape.
    """
    actors = group.get("env_states/actors")
    if not isinstance(actors, h5py.Group) or not len(actors):
        return None
    poses = {}
    for name, data in actors.items():
        if not isinstance(data, h5py.Dataset) or data.ndim != 2 or len(data) != rows or data.shape[1] < POSE_WIDTH:
            return None
        check_numbers(f"{group.file.filename}: {group.name}", f"env_states/actors/{name}", data)
        poses[name] = data[:, :POSE_WIDTH].astype(np.float32)
        if not np.isfinite(poses[name]).all():
            return None
    return poses
