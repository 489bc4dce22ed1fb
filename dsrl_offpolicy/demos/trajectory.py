"""A demonstration in memory, and the HDF5 + JSON files that hold demonstrations (the ManiSkill layout)."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsrl_offpolicy.demos.observations import LazyImages, check_numbers, find_images, read_poses, read_state
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import check_fields, reading

_ENV_INFO = {"env_id": str | None, "env_kwargs": dict[str, Any] | None, "max_episode_steps": int | None}
_ENV_KWARGS = dict.fromkeys(("control_mode", "obs_mode", "reward_mode", "sim_backend"), str | None)
"""What is read of a JSON; none of it must be there."""


@dataclass(frozen=True)
class Trajectory:
    """One episode of n env steps.

    Attributes:
        obs: ``[n + 1, S]`` float32, the last row being the observation after the last action.
        actions: ``[n, A]`` float32.
        success: ``[n]`` bool, after each action.
        terminated: ``[n]`` bool, as the simulator said.
        truncated: ``[n]`` bool, a time limit and not a termination.
        rewards: ``[n]`` float32, or None where the file has none.
        images: n + 1 images read from the file when asked, or None where none were asked for.
        poses: ``[n + 1, 7]`` float32 by name, what the simulator knows of the objects; None where none were asked
            for or the file has none that fit. No policy ever sees them.
    """

    obs: np.ndarray
    actions: np.ndarray
    success: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    rewards: np.ndarray | None
    images: LazyImages | None = None
    poses: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Demonstrations:
    """The trajectories of one file and what its JSON says of the environment.

    Attributes:
        path: the HDF5 file.
        trajectories: in integer order of ``traj_i``.
        env_id, control_mode: empty where the JSON does not say.
        obs_mode, reward_mode, sim_backend: None where the JSON does not say; ManiSkill's replay writes a null
            ``reward_mode`` where it was left to the environment.
        max_episode_steps: env steps of the recording environment's time limit, which recordings may exceed.
    """

    path: Path
    trajectories: tuple[Trajectory, ...]
    env_id: str
    control_mode: str
    obs_mode: str | None = None
    reward_mode: str | None = None
    sim_backend: str | None = None
    max_episode_steps: int | None = None

    def expect(
        self,
        *,
        env_id: str | None = None,
        control_mode: str | None = None,
        obs_mode: str | None = None,
        reward_mode: str | None = None,
    ) -> None:
        """Hold what was recorded against what is needed. None asks nothing, and what the JSON does not say fits.

        ``reward_mode`` only matters where the file has rewards.

        Raises:
            InputError: naming what differs and the file.
        """
        has_rewards = any(t.rewards is not None for t in self.trajectories)
        for name, expected, found in (
            ("env_id", env_id, self.env_id),
            ("control_mode", control_mode, self.control_mode),
            ("obs_mode", obs_mode, self.obs_mode),
            ("reward_mode", reward_mode, self.reward_mode if has_rewards else None),
        ):
            if expected and found and expected != found:
                raise InputError(
                    f"{name}: expected demonstrations recorded with {expected}, {self.path} has {found}"
                )

    @property
    def state_dim(self) -> int:
        """S."""
        return int(self.trajectories[0].obs.shape[1])

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.trajectories[0].actions.shape[1])


def read_demonstrations(
    path: Path,
    *,
    need_rewards: bool = False,
    need_images: bool = False,
    want_poses: bool = False,
    state_keys: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
    limit: int | None = None,
) -> Demonstrations:
    """Read a ManiSkill HDF5 file, of flat states or a dictionary of observations, with its JSON of the same stem.

    Args:
        path: the ``.h5`` file.
        need_rewards: whether a file without ``rewards`` is an error.
        need_images: whether trajectories get ``images``; a file without them is an error then.
        want_poses: whether trajectories get ``poses``, where the file has them.
        state_keys: entries of a dictionary of observations (``agent/qpos``) in the order of the environment's
            observation space, which HDF5 does not keep; default: ``agent/*``, then ``extra/*``, as in the file.
        cameras: in the order of the images' channels; default: the file's order.
        limit: read only the first so many trajectories (in integer order of ``traj_i``).

    Raises:
        InputError: a file or field that is missing, rows that do not fit, or non-finite numbers.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"demo_path: expected an HDF5 file, {path} does not exist")
    meta = _read_json(path)
    with reading(str(path), "a readable HDF5 file"), h5py.File(path, "r") as file:
        names = sorted((n for n in file if _index(n) is not None), key=lambda n: _index(n) or 0)
        if not names:
            raise InputError(f"{path}: expected groups traj_0, traj_1, ..., got {list(file)[:3]}")
        reader = _Reader(path, need_rewards, need_images, want_poses, state_keys, cameras)
        trajectories = tuple(reader.read(name, _group(path, file, name)) for name in names[:limit])
    shapes = {(t.obs.shape[1], t.actions.shape[1]) for t in trajectories}
    if len(shapes) > 1:
        raise InputError(f"{path}: expected the same (obs, action) widths in every traj, got {sorted(shapes)}")
    sizes = {t.images.shape[1:] for t in trajectories if t.images is not None}
    if len(sizes) > 1:
        raise InputError(f"{path}: expected images of the same (H, W, C) in every traj, got {sorted(sizes)}")
    env_info = meta["env_info"]
    kwargs = env_info.get("env_kwargs") or {}
    return Demonstrations(
        path,
        trajectories,
        env_id=str(env_info.get("env_id") or ""),
        control_mode=str(kwargs.get("control_mode") or meta["episodes"][0].get("control_mode") or ""),
        obs_mode=kwargs.get("obs_mode"),
        reward_mode=kwargs.get("reward_mode"),
        sim_backend=kwargs.get("sim_backend"),
        max_episode_steps=env_info.get("max_episode_steps"),
    )


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


def _group(path: Path, file: h5py.File, name: str) -> h5py.Group:
    group = file[name]
    if not isinstance(group, h5py.Group):
        raise InputError(f"{path}: {name}: expected a group, got a data set")
    return group


@dataclass(frozen=True)
class _Reader:
    """What is asked of every trajectory of a file."""

    path: Path
    need_rewards: bool
    need_images: bool
    want_poses: bool
    state_keys: Sequence[str] | None
    cameras: Sequence[str] | None

    def read(self, name: str, group: h5py.Group) -> Trajectory:
        where = f"{self.path}: {name}"
        actions = _read_field(where, group, "actions", None, np.float32)
        if actions.ndim != 2 or len(actions) == 0:
            raise InputError(f"{where}: expected actions [n, A] with n > 0, got shape {actions.shape}")
        n = len(actions)
        obs = self._read_states(where, group, n + 1)
        if np.abs(actions).max() > 1 + 1e-4:
            raise InputError(f"{where}: expected actions in [-1, 1], got up to {np.abs(actions).max():.3g}")
        rewards = self.need_rewards or "rewards" in group
        return Trajectory(
            obs=obs,
            actions=actions,
            success=_read_steps(where, group, "success", n, np.bool_),
            terminated=_read_steps(where, group, "terminated", n, np.bool_),
            truncated=_read_steps(where, group, "truncated", n, np.bool_),
            rewards=_read_steps(where, group, "rewards", n, np.float32) if rewards else None,
            images=find_images(where, self.path, group, n + 1, self.cameras) if self.need_images else None,
            poses=read_poses(group, n + 1) if self.want_poses else None,
        )

    def _read_states(self, where: str, group: h5py.Group, rows: int) -> np.ndarray:
        item = group.get("obs")
        if isinstance(item, h5py.Group) and len(item):
            obs = read_state(where, item, rows, self.state_keys)
        else:
            obs = _read_field(where, group, "obs", rows, np.float32)
        if obs.ndim != 2:
            raise InputError(f"{where}: expected obs [n + 1, S], got shape {obs.shape}")
        if not np.isfinite(obs).all():
            raise InputError(f"{where}: expected finite numbers in 'obs', got NaN or infinity")
        return obs


def _read_steps(where: str, group: h5py.Group, field: str, steps: int, dtype: type) -> np.ndarray:
    """One value per env step."""
    array = _read_field(where, group, field, steps, dtype)
    if array.ndim != 1:
        raise InputError(f"{where}: expected [{steps}] in {field!r}, got shape {array.shape}")
    return array


def _read_field(where: str, group: h5py.Group, field: str, rows: int | None, dtype: type) -> np.ndarray:
    item = group.get(field)
    if not isinstance(item, h5py.Dataset):
        kind = "none" if item is None else "an empty group" if not len(item) else "a group"
        raise InputError(f"{where}: expected a data set {field!r}, got {kind}")
    check_numbers(where, field, item)
    array = np.asarray(item[()])
    if rows is not None and (array.ndim == 0 or len(array) != rows):
        raise InputError(f"{where}: expected {rows} rows in {field!r}, got shape {array.shape}")
    if dtype is np.float32 and not np.isfinite(array).all():
        raise InputError(f"{where}: expected finite numbers in {field!r}, got NaN or infinity")
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
    """Write trajectories in the layout that :func:`read_demonstrations` reads; each file whole or not at all, the
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
            "success": bool(trajectory.success.any()),
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
        raise InputError(f"out: expected a file that can be made, {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
