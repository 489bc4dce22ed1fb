"""Windows over demonstrations: frame stacks, action chunks and SMDP transitions for Stages 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.rewards import sparse_reward


@dataclass(frozen=True)
class Windows:
    """N windows, one for every env step t of every trajectory.

    Observations are rows of one table of the frames of all trajectories in order, trajectory i with its n_i + 1
    frames (``stack_states`` makes the table of states), so that a frame is encoded once: ``table[rows]``.

    Attributes:
        rows: ``[N, o]`` int64, the frames ending at t.
        chunks: ``[N, T, A]``; row o-1 is the action of step t.
        next_rows: ``[N, o]`` int64, the frames ending at t + n.
        reward: ``[N]``, ``sum_{i<n} gamma^i r_{t+i}`` with n = min(H, steps left until a termination or the end).
        discount: ``[N]``, ``gamma^n * (1 - terminated)``.
        episode: ``[N]``, index of the trajectory.
    """

    rows: np.ndarray
    chunks: np.ndarray
    next_rows: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    episode: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, mask: np.ndarray) -> Windows:
        """Return the windows where ``mask`` holds; their rows are still rows of the whole table."""
        return Windows(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class WindowSpec:
    """Shapes and rewards of windows; the fields mean what they mean in ``EnvSpec``."""

    obs_horizon: int
    pred_horizon: int
    act_horizon: int
    gamma: float
    reward_mode: Literal["sparse", "dense", "normalized_dense"]
    reward_scale: float
    end_on_success: bool

    def __post_init__(self) -> None:
        rows = self.pred_horizon - self.obs_horizon + 1
        if self.act_horizon > rows:
            raise InputError(
                f"act_horizon: expected at most pred_horizon - obs_horizon + 1 = {rows}, got {self.act_horizon}"
            )


def pads_with_zeros(control_mode: str) -> bool:
    """Return whether an action past the end of an episode is "stay": zeros (delta control) or the last action."""
    return "delta" in control_mode


def stack_states(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """Stack the states of all trajectories, ``[F, S]`` float32: the table that ``Windows.rows`` index."""
    return np.concatenate([t.obs for t in trajectories])


def stack_images(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """Stack the images of all trajectories in order, ``[F, H, W, 3k]`` uint8, read from their file.

    Raises:
        InputError: the file is no longer readable.
    """
    images = [t.images for t in trajectories if t.images is not None]
    table = np.empty((sum(len(i) for i in images), *images[0].shape[1:]), dtype=np.uint8)
    first = 0
    for part in images:
        table[first : first + len(part)] = part.read(slice(None))
        first += len(part)
    return table


def stack_poses(trajectories: Sequence[Trajectory]) -> np.ndarray | None:
    """Stack the poses of all trajectories, ``[F, P]`` float32, each column standardised over them; columns that
    never vary (a table's) are left out. None where there are none, or not of the same objects everywhere."""
    names = {tuple(sorted(t.poses)) if t.poses is not None else () for t in trajectories}
    if len(names) > 1 or not (objects := names.pop()):
        return None
    parts = [np.concatenate([t.poses[name] for name in objects], 1) for t in trajectories if t.poses is not None]
    poses = np.concatenate(parts)
    std = poses.std(0)
    varies = std > 1e-4
    return (poses[:, varies] - poses[:, varies].mean(0)) / std[varies] if varies.any() else None


def cut_windows(
    trajectories: Sequence[Trajectory], control_mode: str, spec: WindowSpec, *, has_gripper: bool = True
) -> Windows:
    """Cut every window of every trajectory (starts run from -(o-1) to the last step).

    On the left the first observation and action repeat. On the right delta-controlled arms get zeros and, where
    they have a gripper, its last command (the last number of an action); others get the last action. A truncation
    ends nothing: ManiSkill's recordings carry on past the registered time limit and mark every step from there on.
    A termination ends the window that reaches it, with discount 0; without success it costs, in sparse mode, what
    never succeeding costs.

    Raises:
        InputError: dense rewards asked of trajectories that have none.
    """
    # The numbers of an action that are zero past the end.
    still = slice(0, (-1 if has_gripper else None) if pads_with_zeros(control_mode) else 0)
    parts, first_row = [], 0
    for index, trajectory in enumerate(trajectories):
        parts.append(_cut(trajectory, index, first_row, still, spec))
        first_row += len(trajectory) + 1
    return Windows(*(np.concatenate([getattr(p, name) for p in parts]) for name in Windows.__dataclass_fields__))


def _cut(trajectory: Trajectory, index: int, first_row: int, still: slice, spec: WindowSpec) -> Windows:
    actions = trajectory.actions
    terminated = trajectory.terminated.copy()
    if spec.end_on_success and trajectory.succeeds:
        length = int(np.argmax(trajectory.success)) + 1
        terminated[length - 1] = True
    else:
        length = len(trajectory)
        terminated &= ~trajectory.success  # ManiSkill records success as termination, asked for or not
    step_reward = _rewards(trajectory, spec)[:length]

    t = np.arange(length)
    frame_offsets = np.arange(1 - spec.obs_horizon, 1)
    n = np.minimum(spec.act_horizon, _last_steps(terminated[:length]) + 1 - t)
    steps = t[:, None] + np.arange(spec.pred_horizon) - (spec.obs_horizon - 1)
    chunks = actions[np.clip(steps, 0, length - 1)]
    chunks[..., still][steps >= length] = 0
    inside = np.arange(spec.act_horizon) < n[:, None]
    ahead = np.minimum(t[:, None] + np.arange(spec.act_horizon), length - 1)
    powers = spec.gamma ** np.arange(spec.act_horizon)
    return Windows(
        rows=first_row + np.maximum(t[:, None] + frame_offsets, 0),
        chunks=chunks,
        next_rows=first_row + np.maximum((t + n)[:, None] + frame_offsets, 0),
        reward=(step_reward[ahead] * powers * inside).sum(1).astype(np.float32),
        discount=(spec.gamma**n * ~terminated[t + n - 1]).astype(np.float32),
        episode=np.full(length, index),
    )


def _last_steps(terminated: np.ndarray) -> np.ndarray:
    """For every step the first one from it on that terminates, or the last step where none does."""
    steps = np.where(terminated, np.arange(len(terminated)), len(terminated) - 1)
    return np.minimum.accumulate(steps[::-1])[::-1]


def _rewards(trajectory: Trajectory, spec: WindowSpec) -> np.ndarray:
    if spec.reward_mode == "sparse":
        return sparse_reward(trajectory.success, trajectory.terminated, spec.gamma, spec.reward_scale)
    if trajectory.rewards is None:
        raise InputError("demo_path: expected a data set 'rewards' for reward_mode dense, got none")
    return trajectory.rewards * spec.reward_scale


def split_episodes(windows: Windows, held_out_fraction: float) -> tuple[Windows, Windows]:
    """Return windows of the first episodes, and of the last ``held_out_fraction`` of the episodes (at least one).

    Raises:
        InputError: fewer than two episodes.
    """
    episodes = int(windows.episode.max()) + 1
    if episodes < 2:
        raise InputError(f"demo_path: expected at least 2 episodes (one is held out), got {episodes}")
    held_out = min(max(1, round(episodes * held_out_fraction)), episodes - 1)
    last = windows.episode >= episodes - held_out
    return windows.select(~last), windows.select(last)
