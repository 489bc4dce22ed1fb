"""The seam for files of demonstrations: what a format must do, and reading a file of any format."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dsrl_offpolicy.demos.trajectory import DemoInfo, Demonstrations, Trajectory
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import reading
from dsrl_offpolicy.registry import DEMO_FORMATS


@dataclass(frozen=True)
class Wanted:
    """What is asked of every trajectory of a file.

    Attributes:
        rewards: a file without them is an error.
        images: trajectories get ``images``; a file without them is an error.
        poses: trajectories get ``poses``, where the file has them.
        state_keys, cameras: the parts of the state (``agent/qpos``) and the cameras in the environment's order,
            for a format that does not keep it; None takes the file's order.
    """

    rewards: bool = False
    images: bool = False
    poses: bool = False
    state_keys: Sequence[str] | None = None
    cameras: Sequence[str] | None = None


class DemoFormat(ABC):
    """One kind of file (or folder) of demonstrations. It is made without arguments and holds no state.

    Attributes:
        keeps_order: whether the state's parts and the cameras come in the environment's order. A format that says
            False is told that order in ``Wanted``.
    """

    keeps_order: bool = True

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Say whether an existing file looks like this format, by its name or its first bytes."""

    @abstractmethod
    def describe(self, path: Path) -> DemoInfo:
        """Read what the file says of its demonstrations, without reading them.

        Raises:
            InputError: the file is not what it should be.
        """

    @abstractmethod
    def trajectories(self, path: Path, wanted: Wanted) -> Iterator[tuple[str, Trajectory]]:
        """Yield the name (for messages) and content of every demonstration in the file's order.

        Raises:
            InputError: the file is not what it should be, or lacks what is wanted.
        """

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of the file in hexadecimal: a resumed run must find the same."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find_format(name: str, path: Path) -> DemoFormat:
    """Return the format of an existing file.

    Args:
        name: a kind of the registry, ``module:Class``, or ``auto`` for the first one that recognises the file.
        path: the file.

    Raises:
        InputError: no such file or kind, something that is no format, or a file that no format recognises.
    """
    if not path.exists():
        raise InputError(f"demo_path: expected a file of demonstrations, {path} does not exist")
    for candidate in DEMO_FORMATS.names() if name == "auto" else [name]:
        kind = DEMO_FORMATS.make(candidate, "demo_format", DemoFormat)
        if name != "auto" or kind.recognises(path):
            return kind
    raise InputError(
        f"demo_path: no known format ({', '.join(DEMO_FORMATS.names())}) recognises {path}; "
        "name it by --demo_format, or your own by --demo_format module:Class"
    )


def read_demonstrations(
    path: Path,
    *,
    demo_format: str = "auto",
    need_rewards: bool = False,
    need_images: bool = False,
    want_poses: bool = False,
    state_keys: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
    limit: int | None = None,
) -> Demonstrations:
    """Read a file of demonstrations and hold it against what a demonstration must be.

    Args:
        path: the file.
        demo_format: see :func:`find_format`.
        need_rewards, need_images, want_poses, state_keys, cameras: see :class:`Wanted`.
        limit: read only the first so many trajectories.

    Raises:
        InputError: a file or field that is missing, rows that do not fit, or numbers that are not finite.
    """
    path = Path(path).expanduser()
    kind = find_format(demo_format, path)
    wanted = Wanted(need_rewards, need_images, want_poses, state_keys, cameras)
    trajectories: list[Trajectory] = []
    with reading(str(path), f"what {type(kind).__name__} can read"):
        info = kind.describe(path)
        for name, trajectory in kind.trajectories(path, wanted):
            _check(f"{path}: {name}", trajectory, wanted)
            trajectories.append(trajectory)
            if len(trajectories) == limit:
                break
    if not trajectories:
        raise InputError(f"{path}: expected at least one demonstration, got none")
    widths = {(t.obs.shape[1], t.actions.shape[1]) for t in trajectories}
    if len(widths) > 1:
        raise InputError(f"{path}: expected the same (obs, action) widths in every traj, got {sorted(widths)}")
    sizes = {t.images.shape[1:] for t in trajectories if t.images is not None}
    if len(sizes) > 1:
        raise InputError(f"{path}: expected images of the same (H, W, C) in every traj, got {sorted(sizes)}")
    return Demonstrations(path=path, trajectories=tuple(trajectories), **asdict(info))


def _check(where: str, trajectory: Trajectory, wanted: Wanted) -> None:
    """Raise InputError where a trajectory is not what :class:`Trajectory` promises."""
    n = len(trajectory.actions) if np.ndim(trajectory.actions) == 2 else 0
    if n == 0:
        raise InputError(f"{where}: expected actions [n, A] with n > 0, got shape {np.shape(trajectory.actions)}")
    for name in ("actions", "obs", "success", "terminated", "truncated", "rewards"):
        array = getattr(trajectory, name)
        if name == "rewards" and array is None and not wanted.rewards:
            continue
        dtype = np.dtype(np.float32 if name in ("actions", "obs", "rewards") else np.bool_)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            found = getattr(array, "dtype", type(array).__name__)
            raise InputError(f"{where}: expected {dtype} in {name!r}, got {found}")
        rows = n + 1 if name == "obs" else n
        if array.ndim == 0 or len(array) != rows:
            raise InputError(f"{where}: expected {rows} rows in {name!r}, got shape {array.shape}")
        layout = {"obs": "[n + 1, S]", "actions": "[n, A]"}.get(name, "[n]")
        if array.ndim != (1 if layout == "[n]" else 2):
            raise InputError(f"{where}: expected {layout} in {name!r}, got shape {array.shape}")
        if dtype == np.float32 and not np.isfinite(array).all():
            raise InputError(
                f"{where}: expected finite float32 numbers in {name!r}, got NaN, infinity or larger ones"
            )
    if (largest := np.abs(trajectory.actions).max()) > 1 + 1e-4:
        raise InputError(f"{where}: expected actions in [-1, 1], got up to {largest:.3g}")
    images = trajectory.images
    if images is None and wanted.images:
        raise InputError(f"{where}: expected images, got none")
    if images is not None and (len(images.shape) != 4 or images.shape[0] != n + 1):
        raise InputError(f"{where}: expected images [{n + 1}, H, W, 3k], got shape {images.shape}")
