"""A demonstration in memory, and what its file says of the environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from dsrl_offpolicy.errors import InputError


@runtime_checkable
class Images(Protocol):
    """The images of one trajectory, read when asked, all cameras concatenated along the channels.

    Attributes:
        shape: ``(n + 1, H, W, 3k)`` for k cameras.
    """

    shape: tuple[int, int, int, int]

    def __len__(self) -> int: ...

    def read(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the images at ``rows`` (in any order, repeats allowed), ``[len(rows), H, W, 3k]`` uint8."""
        ...


@dataclass(frozen=True)
class Trajectory:
    """One episode of n env steps.

    Attributes:
        obs: ``[n + 1, S]`` float32, the last row being the observation after the last action.
        actions: ``[n, A]`` float32 in [-1, 1].
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
    images: Images | None = None
    poses: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def succeeds(self) -> bool:
        """Whether it succeeds at any step."""
        return bool(self.success.any())


@dataclass(frozen=True, kw_only=True)
class DemoInfo:
    """What a file says of its demonstrations.

    Attributes:
        env_id, control_mode: empty where the file does not say.
        obs_mode, reward_mode, sim_backend: None where the file does not say; ManiSkill's replay writes a null
            ``reward_mode`` where it was left to the environment.
        max_episode_steps: env steps of the recording environment's time limit, which recordings may exceed.
        episodes: demonstrations in the file.
        has_rewards: whether it holds rewards.
        has_gripper: whether the last number of an action is a gripper's command, which holds on past the end.
    """

    env_id: str = ""
    control_mode: str = ""
    obs_mode: str | None = None
    reward_mode: str | None = None
    sim_backend: str | None = None
    max_episode_steps: int | None = None
    episodes: int = 0
    has_rewards: bool = False
    has_gripper: bool = True


@dataclass(frozen=True, kw_only=True)
class Demonstrations(DemoInfo):
    """The trajectories of one file, and what the file says of them.

    Attributes:
        path: the file.
        trajectories: in the file's order, of one (S, A), and of one image shape where they have images.
    """

    path: Path
    trajectories: tuple[Trajectory, ...]

    @property
    def state_dim(self) -> int:
        """S."""
        return int(self.trajectories[0].obs.shape[1])

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.trajectories[0].actions.shape[1])

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """``(H, W, 3k)``; None without images."""
        images = self.trajectories[0].images
        return images.shape[1:] if images is not None else None

    def expect(
        self,
        *,
        env_id: str | None = None,
        control_mode: str | None = None,
        obs_mode: str | None = None,
        reward_mode: str | None = None,
    ) -> None:
        """Refuse demonstrations that were recorded otherwise than needed; see :func:`check_info`."""
        wanted = {"env_id": env_id, "control_mode": control_mode, "obs_mode": obs_mode, "reward_mode": reward_mode}
        check_info(self, self.path, wanted)


def check_info(info: DemoInfo, path: Path, wanted: dict[str, str | None]) -> None:
    """Hold what was recorded against what is needed. None asks nothing, and what the file does not say fits.

    ``reward_mode`` only matters where the file has rewards.

    Raises:
        InputError: naming what differs and the file.
    """
    for name, expected in wanted.items():
        found = None if name == "reward_mode" and not info.has_rewards else getattr(info, name)
        if expected and found and expected != found:
            raise InputError(f"{name}: expected demonstrations recorded with {expected}, {path} has {found}")
