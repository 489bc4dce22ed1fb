"""What the simulator recorded of objects' poses, which teaches an image encoder where to look."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.formats.maniskill_observations import read_poses
from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.demos.windows import stack_poses

RGB_FILE = "demos/LiftPegUpright-v1/trajectory.rgb.pd_ee_delta_pose.physx_cpu.h5"


@pytest.fixture
def group(tmp_path: Path):
    """Two frames of two actors: number k of actor j in frame i is 100 j + 10 k + i."""
    with h5py.File(tmp_path / "poses.h5", "w") as file:
        for j, actor in enumerate(("box", "table")):
            frame, number = np.arange(2)[:, None], np.arange(13)
            file[f"traj_0/env_states/actors/{actor}"] = 100.0 * j + 10 * number + frame
        yield file["traj_0"]


def trajectory(**poses: np.ndarray) -> Trajectory:
    n = len(next(iter(poses.values()))) - 1 if poses else 1
    flags = np.zeros(n, bool)
    return Trajectory(np.zeros((n + 1, 1)), np.zeros((n, 1)), flags, flags, flags, None, None, poses or None)


def test_position_and_quaternion_of_every_actor_are_read_and_no_velocity(group):
    poses = read_poses(group, 2)
    first = [0, 10, 20, 30, 40, 50, 60]
    assert poses["box"].tolist() == [first, [v + 1 for v in first]]
    assert poses["table"].tolist() == [[100 + v for v in first], [101 + v for v in first]]


def test_a_file_without_actors_has_no_poses(group):
    del group["env_states"]
    assert read_poses(group, 2) is None


@pytest.mark.parametrize("data", [np.zeros((3, 13)), np.zeros((2, 6)), np.full((2, 13), np.nan)])
def test_poses_that_do_not_fit_are_none(group, data):
    del group["env_states/actors/box"]
    group["env_states/actors/box"] = data
    assert read_poses(group, 2) is None


def test_columns_are_standardised_over_all_frames_and_constants_left_out():
    # Column 0 is 1, 3 | 5, 7: mean 4, standard deviation sqrt(5). Column 1 never varies.
    poses = [np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[5.0, 2.0], [7.0, 2.0]])]
    found = stack_poses([trajectory(peg=p) for p in poses])
    np.testing.assert_allclose(found, np.array([[-3], [-1], [1], [3]]) / np.sqrt(5))
    assert stack_poses([trajectory(peg=np.ones((3, 2)))]) is None
    assert stack_poses([trajectory()]) is None


def test_objects_go_by_their_names_and_must_be_the_same_everywhere():
    peg, box = np.array([[1.0], [3.0]]), np.array([[30.0], [10.0]])
    one, other = trajectory(peg=peg, box=box), trajectory(box=box, peg=peg)  # in another order
    np.testing.assert_allclose(stack_poses([one, other]), [[1, -1], [-1, 1]] * 2)
    assert stack_poses([one, trajectory(peg=peg)]) is None
    assert stack_poses([one, trajectory(peg=peg, lid=box)]) is None
    assert stack_poses([one, trajectory()]) is None


def test_real_recordings_hold_the_pose_of_the_peg(shared_dir):
    demos = read_demonstrations(shared_dir / RGB_FILE, need_images=True, want_poses=True, limit=2)
    first = demos.trajectories[0]
    assert set(first.poses) == {"peg", "table-workspace"}
    with h5py.File(demos.path) as file:
        np.testing.assert_array_equal(first.poses["peg"], file["traj_0/env_states/actors/peg"][:, :7])
    stacked = stack_poses(demos.trajectories)
    assert stacked.shape == (sum(len(t) + 1 for t in demos.trajectories), 7)  # the table stands still
    assert read_demonstrations(demos.path, need_images=True, limit=1).trajectories[0].poses is None
