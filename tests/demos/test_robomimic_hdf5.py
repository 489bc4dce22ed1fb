"""robomimic's HDF5: what is read, by which names, and what is refused. See robomimic_files for the layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import h5py
import numpy as np
import pytest
from robomimic_files import ENV_ARGS, write_robomimic

from dsrl_offpolicy.demos.format import find_format, read_demonstrations
from dsrl_offpolicy.demos.formats.robomimic_hdf5 import RobomimicHDF5
from dsrl_offpolicy.demos.makers.robosuite import RobosuiteExperts
from dsrl_offpolicy.errors import InputError

ROBOT = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "low_dim.hdf5"


def test_states_come_by_name_and_all_else_as_written(path: Path) -> None:
    written = write_robomimic(path, (5, 7, 3))
    demos = read_demonstrations(path, need_rewards=True)
    assert isinstance(find_format("auto", path), RobomimicHDF5)  # and not ManiSkill's, which takes any HDF5 file
    assert (demos.env_id, demos.control_mode, demos.reward_mode) == (
        "robosuite:Lift",
        "pd_ee_delta_pose",
        "sparse",
    )
    assert (demos.episodes, demos.state_dim, demos.action_dim, demos.has_gripper) == (3, 19, 7, True)
    for i, trajectory in enumerate(demos.trajectories):
        demo = written[f"demo_{i}"]
        frames = np.concatenate([demo[key] for key in (*ROBOT, "object")], axis=1)
        np.testing.assert_array_equal(trajectory.obs, frames.astype(np.float32))
        np.testing.assert_array_equal(trajectory.actions, demo["actions"].astype(np.float32))
        np.testing.assert_array_equal(trajectory.rewards, demo["rewards"])
        np.testing.assert_array_equal(trajectory.success, demo["rewards"] == 1)
        assert not trajectory.terminated.any() and not trajectory.truncated.any()


def test_demonstrations_come_in_integer_order(path: Path) -> None:
    """HDF5 lists demo_10 before demo_2."""
    steps = tuple(range(3, 15))
    write_robomimic(path, steps)
    assert tuple(len(t) for t in read_demonstrations(path).trajectories) == steps


def test_images_and_their_states_come_in_the_environments_order(path: Path) -> None:
    written = write_robomimic(path, cameras=("agentview", "robot0_eye_in_hand"))
    cameras = ("robot0_eye_in_hand", "agentview")
    demos = read_demonstrations(path, need_images=True, state_keys=ROBOT[::-1], cameras=cameras)
    for i, trajectory in enumerate(demos.trajectories):
        demo, images = written[f"demo_{i}"], trajectory.images
        frames = np.concatenate([demo[f"{camera}_image"] for camera in cameras], axis=-1)
        assert images is not None and images.shape == frames.shape
        np.testing.assert_array_equal(images.read(slice(None)), frames)
        n = len(trajectory)
        np.testing.assert_array_equal(images.read([n, 2, n, 0, n - 1]), frames[[n, 2, n, 0, n - 1]])
        state = np.concatenate([demo[key] for key in ROBOT[::-1]], axis=1)
        np.testing.assert_array_equal(trajectory.obs, state.astype(np.float32))
    alone = read_demonstrations(path, need_images=True)  # no object: a policy of images sees none
    assert alone.state_dim == 9 and alone.image_shape == (6, 8, 6)


def test_the_last_observation_stands_twice_where_none_follows_it(path: Path) -> None:
    written = write_robomimic(path, next_obs=False, cameras=("agentview",))["demo_0"]
    trajectory = read_demonstrations(path, need_images=True).trajectories[0]
    np.testing.assert_array_equal(trajectory.obs[:5, :3], written["robot0_eef_pos"][:5].astype(np.float32))
    np.testing.assert_array_equal(trajectory.obs[5], trajectory.obs[4])
    assert trajectory.images is not None
    frames = written["agentview_image"][[0, 1, 2, 3, 4, 4]]
    np.testing.assert_array_equal(trajectory.images.read(slice(None)), frames)
    np.testing.assert_array_equal(trajectory.images.read([5, 4]), frames[[5, 4]])


def test_two_robots_stand_before_the_objects(path: Path) -> None:
    """Transport: 2 x 9 numbers of robots and 41 of objects are DPPO's 59."""
    parts = {"object": 41} | {f"robot{i}_{k}": w for i in (1, 0) for k, w in
                              (("gripper_qpos", 2), ("eef_quat", 4), ("eef_pos", 3))}  # fmt: skip
    written = write_robomimic(path, (4,), parts=parts)["demo_0"]
    demos = read_demonstrations(path)
    assert demos.state_dim == 59
    np.testing.assert_array_equal(demos.trajectories[0].obs[:, 9:12], written["robot1_eef_pos"].astype(np.float32))


@pytest.mark.parametrize(
    ("rewards", "scale", "success"),
    [
        ([0.2, 0.99, 1.0, 1.4], None, [False, False, True, True]),  # shaped: below 1 without success
        ([0, 0, 0.5, 0.5], 0.5, [False, False, True, True]),
    ],
)
def test_success_is_the_whole_reward(path: Path, rewards: list, scale: float | None, success: list) -> None:
    args = deepcopy(ENV_ARGS)
    args["env_kwargs"] |= {"reward_shaping": True, "reward_scale": scale}
    write_robomimic(path, (4,), env_args=args)
    with h5py.File(path, "r+") as file:
        file["data/demo_0/rewards"][:] = rewards
    demos = read_demonstrations(path)
    assert demos.reward_mode == "dense"
    assert demos.trajectories[0].success.tolist() == success


def test_without_rewards_success_is_dones(path: Path) -> None:
    write_robomimic(path, (4,))
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/rewards"]
    assert read_demonstrations(path).trajectories[0].success.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("name", "kind", "env_id"),
    [
        ("PickPlaceCan", 1, "robosuite:Can"),
        ("NutAssemblySquare", 1, "robosuite:Square"),
        ("ToolHang", 1, "robosuite:ToolHang"),
        ("Hopper-v4", 2, "Hopper-v4"),
    ],
)
def test_tasks_are_called_as_their_environments(path: Path, name: str, kind: int, env_id: str) -> None:
    write_robomimic(path, env_args=ENV_ARGS | {"env_name": name, "type": kind})
    assert read_demonstrations(path).env_id == env_id


def test_controllers_are_called_as_in_other_demonstrations(path: Path) -> None:
    def of(**controller: object) -> str:
        kwargs = ENV_ARGS["env_kwargs"] | {"controller_configs": controller}
        write_robomimic(path, (3,), env_args=ENV_ARGS | {"env_kwargs": kwargs})
        return read_demonstrations(path).control_mode

    assert of(type="OSC_POSE") == RobosuiteExperts.control_mode
    assert of(type="OSC_POSE", control_delta=False) == "osc_pose"
    assert of(type="OSC_POSITION") == "pd_ee_delta_pos"
    assert of(type="JOINT_VELOCITY") == "joint_velocity"


def _args(**changed: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["data"].attrs["env_args"] = json.dumps(ENV_ARGS | changed)

    return change


def _set(name: str, index: object, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[f"data/demo_1/{name}"][index] = value

    return change


def _shorter(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        values = file["data/demo_1"][name][:-1]
        del file["data/demo_1"][name]
        file["data/demo_1"][name] = values

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.move("data/demo_1", "data/demo_2"), ["gaps", "data/demo_1"]),
        (lambda f: f["data"].attrs.__delitem__("env_args"), ["env_args"]),
        (lambda f: f["data"].attrs.__setitem__("env_args", "{"), ["env_args", "expected JSON"]),
        (_args(env_name=3), ["env_args", "env_name", "expected text"]),
        (_args(env_version="1.5.1"), ["demo_0", "robosuite 1.4", "object", "1.5"]),
        (lambda f: f["data/demo_0"].__delitem__("obs"), ["demo_0", "'obs'", "dataset_states_to_obs.py"]),
        (lambda f: f["data/demo_0/obs"].__delitem__("object"), ["demo_0", "obs/object"]),
        (lambda f: f["data/demo_0/obs"].__delitem__("robot0_eef_quat"), ["demo_0", "obs/robot0_eef_quat", "none"]),
        (_set("actions", (0, 0), np.nan), ["demo_1", "actions", "NaN"]),
        (_set("actions", (0, 0), 1.5), ["demo_1", "actions in [-1, 1]", "1.5"]),
        (_set("obs/object", (0, 0), 1e300), ["demo_1", "obs", "larger"]),
        (_shorter("actions"), ["demo_1", "expected 7 rows in 'actions', got 6"]),
        (_shorter("rewards"), ["demo_1", "expected 7 rows in 'rewards'"]),
        (_shorter("obs/object"), ["demo_1", "expected 7 rows in 'obs/object'"]),
        (lambda f: [_args(type=2)(f), _set("rewards", 0, 0.5)(f)], ["demo_1", "rewards of 0", "--demo_format"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(path: Path, change: Callable, words: list[str]) -> None:
    write_robomimic(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError) as caught:
        read_demonstrations(path)
    assert "\n" not in str(caught.value)
    for word in ["low_dim.hdf5", *words]:
        assert word in str(caught.value)


def test_images_that_are_not_there_are_refused(path: Path) -> None:
    write_robomimic(path)
    with pytest.raises(InputError, match=r"demo_0: expected images in 'obs/\*_image', got none"):
        read_demonstrations(path, need_images=True)
    write_robomimic(path, cameras=("agentview",))
    with pytest.raises(InputError, match="expected images of camera 'wrist', got only agentview"):
        read_demonstrations(path, need_images=True, cameras=("wrist",))


def test_a_file_without_demonstrations_is_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(ENV_ARGS)
    with pytest.raises(InputError, match="expected groups data/demo_0"):
        read_demonstrations(path)
