"""LeRobotDataset v3: a folder of parquet files, of MP4 videos where cameras are videos, and ``meta/info.json``."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dsrl_offpolicy.demos.format import DemoFormat, Wanted
from dsrl_offpolicy.demos.trajectory import DemoInfo, Trajectory
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import check_fields, is_finite_number, reading
from dsrl_offpolicy.registry import not_installed

STATES = ("observation.state", "observation.environment_state")
"""What a state is made of, in this order, as for LeRobot's own policies (``--base lerobot:FOLDER``)."""

PLACES = ("index", "episode_index", "frame_index")
"""Columns that say which frame of which episode a row is."""

FRAME_TOLERANCE = 0.25
"""How far, in frames, a video's frame may lie from the time at which it belongs."""

_INFO = {
    "total_episodes": int, "total_frames": int, "fps": int | float, "data_path": str, "video_path": str | None,
    "features": dict[str, dict[str, Any]],
}  # fmt: skip


class LeRobotV3(DemoFormat):
    """A dataset's folder, the one that holds ``meta``, ``data`` and ``videos``.

    LeRobot keeps no observation after the last action: the last one stands twice. Success is ``next.success``, or
    where a reward of 0 and 1 is 1. A dataset without either is of people who showed how it is done: the last step
    of every episode succeeds. ``next.done`` may be a time limit, so that without success it is a truncation.
    """

    keeps_order = False

    def recognises(self, path: Path) -> bool:
        """Take a folder with ``meta/info.json``, of any version."""
        return (path / "meta" / "info.json").is_file()

    def describe(self, path: Path) -> DemoInfo:
        """Read ``meta/info.json``, which names neither task nor controller."""
        info = _read_info(path)
        names = info["features"]["action"].get("names")
        names = next(iter(names.values()), None) if isinstance(names, dict) else names
        rewarded = "next.reward" in info["features"]
        return DemoInfo(
            reward_mode="dense" if rewarded else None,  # what the environment paid
            episodes=info["total_episodes"],
            has_rewards=rewarded,
            has_gripper="grip" in str(names[-1]).lower() if isinstance(names, list) and names else True,
        )

    def trajectories(self, path: Path, wanted: Wanted) -> Iterator[tuple[str, Trajectory]]:
        """Read the episodes in order, one parquet file after another."""
        info = _read_info(path)
        features = info["features"]
        episodes = _read_episodes(path, info)
        cameras = _cameras(path, features, wanted.cameras) if wanted.images else []
        states = [name for name in STATES if name in features]
        if not states:
            raise InputError(f"{path}: expected a feature {STATES[0]!r} in meta/info.json, got none")
        if not any(name in features for name in ("next.success", "next.reward")):
            print(
                f"note: {path} says nothing of success: every episode is taken to succeed at its last step",
                file=sys.stderr,
            )
        signals = [name for name in ("next.success", "next.reward", "next.done") if name in features]
        opened, table = None, None
        for index, episode in enumerate(episodes):
            where = f"{path}: episode {index}"
            file = _place(path, info, episode, "data")
            if file != opened:
                opened, table = file, _read_table(file, [*PLACES, "action", *states, *signals])
            rows, first = _rows(where, table, episode, index)
            parts = {name: _numbers(where, rows, name, features[name]) for name in ("action", *states, *signals)}
            yield (
                f"episode {index}",
                _trajectory(where, parts, states, _images(where, path, info, cameras, episode, file, first)),
            )

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of the names and contents of all files of the dataset."""
        digest = hashlib.sha256()
        files = [file for part in ("data", "meta", "videos") for file in (path / part).rglob("*")]
        for name, file in sorted((file.relative_to(path).as_posix(), file) for file in files if file.is_file()):
            with file.open("rb") as content:
                digest.update(f"{name}\n{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()


@runtime_checkable
class Frames(Protocol):
    """The images of one camera in one episode."""

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the images ``[H, W, 3]`` uint8 at ``rows``, which are sorted and differ."""
        ...


class LeRobotImages:
    """The images of one episode, all cameras along the channels, read when asked; the last one stands twice.

    Args:
        cameras: in the order of the channels.
        shape: ``(n + 1, H, W, 3k)`` for k cameras.
    """

    def __init__(self, cameras: Sequence[Frames], shape: tuple[int, int, int, int]) -> None:
        self._cameras = cameras
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the images at ``rows`` (in any order, repeats allowed), ``[len(rows), H, W, 3k]`` uint8.

        Raises:
            InputError: images that cannot be decoded, are missing, or are of another size than ``meta/info.json``
                says.
            IndexError: rows that the episode does not have.
        """
        frames = np.minimum(np.arange(len(self))[rows], len(self) - 2)
        if not frames.size:
            return np.empty((0, *self.shape[1:]), np.uint8)
        wanted, places = np.unique(frames, return_inverse=True)
        images = [np.stack(camera.read(wanted)) for camera in self._cameras]
        return np.concatenate(images, axis=-1)[places]


@dataclass(frozen=True)
class Stills:
    """Images that stand as PNG or JPEG in a column of a parquet file.

    Attributes:
        where: folder and episode, for messages.
        file: the parquet file.
        column: its column.
        first: row of the episode's first frame in it.
        size: height and width.
    """

    where: str
    file: Path
    column: str
    first: int
    size: tuple[int, int]

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Read and decode; of the file only the row groups that hold the rows."""
        parquet = _library("pyarrow.parquet")
        rows, start = rows + self.first, 0
        images: list[np.ndarray] = []
        with reading(f"{self.where}: {self.column}", "readable images"), parquet.ParquetFile(self.file) as file:
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                here = rows[(rows >= start) & (rows < stop)] - start
                if len(here):
                    table = file.read_row_group(group, columns=[self.column])
                    images += [self._decode(cell) for cell in table[self.column].take(here).to_pylist()]
                start = stop
        return images

    def _decode(self, cell: Any) -> np.ndarray:
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise InputError(f"{self.where}: expected images in {self.column!r}, got a path or nothing")
        library = _library("PIL.Image")
        try:
            image = library.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        except library.DecompressionBombError as error:
            raise InputError(f"{self.where}: {self.column}: {' '.join(str(error).split())}") from error
        _check_size(self.where, self.column, (image.height, image.width), self.size)
        if image.mode != "RGB":
            raise InputError(f"{self.where}: expected images of 3 colours in {self.column!r}, got {image.mode}")
        return np.asarray(image)


@dataclass(frozen=True)
class Video:
    """Images that are frames of a video.

    Attributes:
        where: folder and episode, for messages.
        file: the video.
        times: ``[n]`` seconds from its beginning at which the episode's frames stand.
        tolerance: seconds by which a frame may be off.
        size: height and width.
    """

    where: str
    file: Path
    times: np.ndarray
    tolerance: float
    size: tuple[int, int]

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Decode from the keyframe before the first of the rows."""
        av = _library("av")
        try:
            with av.open(str(self.file)) as container:
                return self._decode(container, self.times[rows])
        except (av.FFmpegError, OSError, ValueError, LookupError) as error:
            problem = " ".join(str(error).split())
            raise InputError(f"{self.where}: {self.file} cannot be decoded: {problem}") from error

    def _decode(self, container: Any, times: np.ndarray) -> list[np.ndarray]:
        if not container.streams.video:
            raise InputError(f"{self.where}: expected a video, {self.file} has no pictures")
        stream = container.streams.video[0]
        container.seek(max(0, int((times[0] - self.tolerance) / stream.time_base)), stream=stream)
        images: list[np.ndarray] = []
        for frame in container.decode(stream):
            if frame.time is None or frame.time < times[len(images)] - self.tolerance:
                continue
            if frame.time > times[len(images)] + self.tolerance:
                break
            _check_size(self.where, self.file.name, (frame.height, frame.width), self.size)
            images.append(frame.to_ndarray(format="rgb24"))
            if len(images) == len(times):
                return images
        raise InputError(f"{self.where}: expected a frame at {times[len(images)]:.3f} s in {self.file}, got none")


def _check_size(where: str, name: str, found: tuple[int, int], size: tuple[int, int]) -> None:
    if found != size:
        raise InputError(f"{where}: expected images of {size[0]}x{size[1]} in {name!r}, got {found[0]}x{found[1]}")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"demo_path: LeRobot's datasets cannot be read: {not_installed(error)}") from error


def _read_info(path: Path) -> dict[str, Any]:
    """``meta/info.json``, once it is of version 3 and has what is needed of it."""
    file = path / "meta" / "info.json"
    if not file.is_file():
        raise InputError(f"demo_path: expected the folder of a LeRobotDataset, {path} has no meta/info.json")
    try:
        info = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: expected JSON, got: {' '.join(str(error).split())}") from error
    check_fields(info, {"codebase_version": str}, str(file))
    version = info["codebase_version"]
    if version.startswith(("v1", "v2")):
        raise InputError(
            f"{path}: expected a LeRobotDataset of version 3, got {version[:10]}; LeRobot's "
            "convert_dataset_v21_to_v30.py converts v2.1 (--repo-id NAME --root FOLDER --push-to-hub false)"
        )
    if not version.startswith("v3."):
        raise InputError(f"{path}: expected a LeRobotDataset of version 3, got {version[:10]!r}")
    check_fields(info, _INFO, str(file), ("video_path",))
    for name, feature in info["features"].items():
        check_fields(feature, {"dtype": str, "shape": list[int]}, f"{file}: {name}")
    if "action" not in info["features"]:
        raise InputError(f"{file}: expected a feature 'action', got none")
    if not info["fps"] > 0:
        raise InputError(f"{file}: fps: expected more than 0, got {info['fps']}")
    return info


def _read_episodes(path: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """What ``meta/episodes`` says of every episode, in order, once none is missing."""
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise InputError(f"{path}: expected meta/episodes/chunk-000/file-000.parquet, got none")
    parquet = _library("pyarrow.parquet")
    episodes: list[dict[str, Any]] = []
    for name in files:
        with reading(str(name), "a readable parquet file"), parquet.ParquetFile(name) as file:
            columns = [n for n in file.schema_arrow.names if not n.startswith("stats/")]
            episodes += file.read(columns=columns).to_pylist()
    where, first = f"{path}: meta/episodes", 0
    needed = {"episode_index": int, "dataset_from_index": int, "dataset_to_index": int,
              "data/chunk_index": int, "data/file_index": int}  # fmt: skip
    for index, episode in enumerate(episodes):
        check_fields(episode, needed, where)
        if episode["episode_index"] != index:
            raise InputError(f"{where}: expected episode {index}, got {episode['episode_index']}")
        if episode["dataset_from_index"] != first or episode["dataset_to_index"] <= first:
            raise InputError(
                f"{where}: expected episode {index} to begin at frame {first}, got "
                f"{episode['dataset_from_index']} to {episode['dataset_to_index']}"
            )
        first = episode["dataset_to_index"]
    if (len(episodes), first) != (info["total_episodes"], info["total_frames"]):
        raise InputError(
            f"{where}: expected {info['total_episodes']} episodes of {info['total_frames']} frames in all as in "
            f"meta/info.json, got {len(episodes)} of {first}"
        )
    return episodes


def _place(path: Path, info: dict[str, Any], episode: dict[str, Any], prefix: str, camera: str = "") -> Path:
    """The file that ``data_path``, or for a camera ``video_path``, of ``meta/info.json`` names for an episode."""
    setting = "video_path" if camera else "data_path"
    template = info.get(setting) or ""
    numbers = {name: episode.get(f"{prefix}/{name}") for name in ("chunk_index", "file_index")}
    for name, number in numbers.items():
        if not isinstance(number, int):
            raise InputError(f"{path}: meta/episodes: expected a number in '{prefix}/{name}', got {number!r}")

    def filled(match: re.Match[str]) -> str:
        return camera if match[1] == "video_key" else f"{numbers[match[1]]:0{match[2] or 0}d}"

    name = re.sub(r"\{(chunk_index|file_index|video_key)(?::0(\d)d)?\}", filled, template)
    if PureWindowsPath(name).anchor or ".." in re.split(r"[/\\]", name) or set(name) & set("{}\0"):
        raise InputError(f"{path}: {setting}: expected a file within the folder, got {template[:80]!r}")
    file = path / name
    if not file.is_file():
        raise InputError(f"{path}: expected a file {name}, got none; is the dataset downloaded as a whole?")
    return file


def _read_table(file: Path, columns: Sequence[str]) -> Any:
    with reading(str(file), "a readable parquet file"), _library("pyarrow.parquet").ParquetFile(file) as parquet:
        missing = [name for name in columns if name not in parquet.schema_arrow.names]
        if missing:
            raise InputError(f"{file}: expected a column {missing[0]!r} as in meta/info.json, got none")
        return parquet.read(columns=list(columns))


def _rows(where: str, table: Any, episode: dict[str, Any], index: int) -> tuple[Any, int]:
    """The rows of an episode in the table of its file, and the first one's number, once no frame is missing."""
    first, stop = episode["dataset_from_index"], episode["dataset_to_index"]
    place = first - (table["index"][0].as_py() if table.num_rows else 0)
    rows = table.slice(place, stop - first) if place >= 0 else table.slice(0, 0)
    expected = {
        "index": np.arange(first, stop),
        "episode_index": np.full(stop - first, index),
        "frame_index": np.arange(stop - first),
    }
    for name, numbers in expected.items():
        if not np.array_equal(rows[name].to_numpy(), numbers):
            raise InputError(f"{where}: expected all frames from {first} to {stop - 1}, got others in {name!r}")
    return rows, place


def _numbers(where: str, rows: Any, name: str, feature: dict[str, Any]) -> np.ndarray:
    """A column as ``[n, k]`` float32; LeRobot stores what has one number per row without a list."""
    types = _library("pyarrow").types
    column = rows[name].combine_chunks()
    shape, lists = tuple(feature["shape"]), types.is_list(column.type) or types.is_fixed_size_list(column.type)
    flat = column.flatten() if lists else column
    kind = flat.type
    if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
        raise InputError(f"{where}: expected numbers in {name!r}, got {kind}")
    if column.null_count or flat.null_count:
        raise InputError(f"{where}: expected a value in every row of {name!r}, got none in some")
    lengths = set(column.value_lengths().to_pylist()) if lists else {1}
    if len(shape) != 1 or lengths != {shape[0]}:
        raise InputError(
            f"{where}: expected {list(shape)} numbers in every row of {name!r} as in meta/info.json, got "
            f"{sorted(lengths)}"
        )
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, and is refused
        return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.float32)


def _trajectory(
    where: str, parts: dict[str, np.ndarray], states: Sequence[str], images: LeRobotImages | None
) -> Trajectory:
    obs = np.concatenate([parts[name] for name in states], axis=1)
    n = len(obs)
    rewards = parts["next.reward"][:, 0] if "next.reward" in parts else None
    if "next.success" in parts:
        success = parts["next.success"][:, 0] > 0
    elif rewards is None:
        success = np.arange(n) == n - 1
    elif np.isin(rewards, (0, 1)).all():
        success = rewards > 0
    else:
        raise InputError(
            f"{where}: expected 'next.success', or rewards of 0 and 1 in 'next.reward', got other rewards alone; "
            "a format of your own (--demo_format module:Class) can say what success is"
        )
    done = parts["next.done"][:, 0] > 0 if "next.done" in parts else np.zeros(n, bool)
    return Trajectory(
        obs=np.concatenate([obs, obs[-1:]]),
        actions=parts["action"],
        success=success,
        terminated=done & success,
        truncated=done & ~success,
        rewards=rewards,
        images=images,
    )


def _cameras(path: Path, features: dict[str, Any], wanted: Sequence[str] | None) -> list[str]:
    """The features that are cameras, in the environment's order; one camera alone needs no name."""
    found = {_camera_name(n): n for n, feature in features.items() if feature["dtype"] in ("image", "video")}
    if not found:
        raise InputError(f"{path}: expected a feature of images or videos in meta/info.json, got none")
    if not wanted or len(wanted) == len(found) == 1:
        return list(found.values())
    for camera in wanted:
        if camera not in found:
            raise InputError(f"{path}: expected images of camera {camera!r}, got only {', '.join(found)}")
    return [found[camera] for camera in wanted]


def _camera_name(feature: str) -> str:
    return feature.removeprefix("observation.images.").removeprefix("observation.")


def _size(path: Path, name: str, feature: dict[str, Any]) -> tuple[int, int]:
    """Height and width, which LeRobot has in either order of channels."""
    shape, names = feature["shape"], feature.get("names")
    first = isinstance(names, list) and names and str(names[0]).startswith("channel")
    height, width, channels = (*shape[1:], shape[0]) if first and len(shape) == 3 else (*shape, 0, 0, 0)[:3]
    if channels != 3 or len(shape) != 3:
        raise InputError(f"{path}: expected images of [H, W, 3] in {name!r}, meta/info.json says {shape}")
    return height, width


def _images(
    where: str, path: Path, info: dict[str, Any], cameras: Sequence[str], episode: dict[str, Any], file: Path,
    first: int,
) -> LeRobotImages | None:  # fmt: skip
    """The images of an episode whose rows begin at ``first`` of a parquet file."""
    if not cameras:
        return None
    n = episode["dataset_to_index"] - episode["dataset_from_index"]
    sizes = {name: _size(path, name, info["features"][name]) for name in cameras}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{_camera_name(name)} {height}x{width}" for name, (height, width) in sizes.items())
        raise InputError(f"{path}: expected cameras of one size, got {shown}")
    frames: list[Frames] = []
    for name in cameras:
        if info["features"][name]["dtype"] == "image":
            frames.append(Stills(where, file, name, first, sizes[name]))
            continue
        prefix = f"videos/{name}"
        video = _place(path, info, episode, prefix, name)
        start = episode.get(f"{prefix}/from_timestamp")
        if not is_finite_number(start):
            raise InputError(f"{where}: expected a number in '{prefix}/from_timestamp', got {start!r}")
        times = start + np.arange(n) / info["fps"]
        frames.append(Video(where, video, times, FRAME_TOLERANCE / info["fps"], sizes[name]))
    return LeRobotImages(frames, (n + 1, *sizes[cameras[0]], 3 * len(cameras)))
