"""What the simulator recorded of objects' poses, which teaches an image encoder where to look."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from dsrl_offpolicy.demos.observations import read_poses
from dsrl_offpolicy.demos.trajectory import Trajectory, read_demonstrations
from dsrl_offpolicy.demos.windows import stack_poses
from dsrl_offpolicy.errors import InputError

RGB_FILE = "demos/LiftPegUpright-v1/trajectory.rgb.pd_ee_delta_pose.physx_cpu.h5"


@pytest.fixture
def group(tmp_path: Path):
    """Two frames of two actors: number k of actor j in frame i is 100 j + 10 k + i."""
    with h5py.File(tmp_path / "poses.h5", "w") as file:
        for j, actor in enumerate(("box", "table")):
            frame, number = np.arange(2)[:, None], np.arange(13)
            file[f"traj_0/env_states/actors/{actor}"] = 100.0 * j + 10 * number + frame
        yield file["traj_0"]


def trajectory(poses: np.ndarray | None) -> Trajectory:
    n = 1 if poses is None else len(poses) - 1
    flags = np.zeros(n, bool)
    return Trajectory(np.zeros((n + 1, 1)), np.zeros((n, 1)), flags, flags, flags, None, None, poses)


def test_position_and_quaternion_of_every_actor_are_read_and_no_velocity(group):
    poses = read_poses("traj_0", group, 2)
    first = [0, 10, 20, 30, 40, 50, 60]
    assert poses.tolist()[0] == first + [100 + v for v in first]
    assert poses.tolist()[1] == [v + 1 for v in poses.tolist()[0]]


def test_a_file_without_actors_has_no_poses(group):
    del group["env_states"]
    assert read_poses("traj_0", group, 2) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [(np.zeros((3, 13)), "shape (3, 13)"), (np.zeros((2, 6)), "shape (2, 6)"), (np.full((2, 13), np.nan), "NaN")],
)
def test_poses_that_do_not_fit_are_one_line(group, data, says):
    del group["env_states/actors/box"]
    group["env_states/actors/box"] = data
    with pytest.raises(InputError) as error:
        read_poses("traj_0", group, 2)
    assert says in str(error.value) and "traj_0" in str(error.value) and "\n" not in str(error.value)


def test_columns_are_standardised_over_all_frames_and_constants_left_out():
    # Column 0 is 1, 3 | 5, 7: mean 4, standard deviation sqrt(5). Column 1 never varies.
    poses = [np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[5.0, 2.0], [7.0, 2.0]])]
    found = stack_poses([trajectory(p) for p in poses])
    np.testing.assert_allclose(found, np.array([[-3], [-1], [1], [3]]) / np.sqrt(5))
    assert stack_poses([trajectory(np.ones((3, 2)))]) is None
    assert stack_poses([trajectory(None)]) is None


def test_real_recordings_hold_the_pose_of_the_peg(shared_dir):
    demos = read_demonstrations(shared_dir / RGB_FILE, need_images=True, limit=2)
    first = demos.trajectories[0]
    assert first.poses.shape == (len(first) + 1, 14)  # the peg and the table
    with h5py.File(demos.path) as file:
        np.testing.assert_array_equal(first.poses[:, :7], file["traj_0/env_states/actors/peg"][:, :7])
    stacked = stack_poses(demos.trajectories)
    assert stacked.shape == (sum(len(t) + 1 for t in demos.trajectories), 7)  # the table stands still
    assert read_demonstrations(demos.path, limit=1).trajectories[0].poses is None
