"""ManiSkill's recordings: dictionaries of observations, images on demand, and what a file was recorded with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.windows import WindowSpec, cut_windows, stack_states
from dsrl_offpolicy.errors import InputError

FOLDER = "demos/LiftPegUpright-v1"
RGB_FILE = f"{FOLDER}/trajectory.rgb.pd_ee_delta_pose.physx_cpu.h5"
STATE_FILE = f"{FOLDER}/trajectory.state.pd_ee_delta_pose.physx_cpu.h5"
KWARGS = {
    "obs_mode": "rgb", "control_mode": "pd_ee_delta_pose", "sim_backend": "physx_cpu",
    "reward_mode": "normalized_dense",
}  # fmt: skip
KEYS = ("agent/qvel", "agent/qpos", "extra/tcp", "extra/grasped", "extra/height")
"""The order of the pretended environment, which is not the alphabetical one of HDF5."""


def _frames(n: int, size: int, mark: int) -> np.ndarray:
    """n + 1 images; pixel value mark + row everywhere."""
    return np.broadcast_to(mark + np.arange(n + 1, dtype=np.uint8)[:, None, None, None], (n + 1, size, size, 3))


def _write(path: Path, lengths: tuple[int, ...] = (3, 2), **env_info: object) -> Path:
    """Recordings as ManiSkill writes them in obs_mode rgb: agent and extra, two cameras, environment states.

    In frame i of trajectory k, with b = 100 k + i: qpos [b, b + .1], qvel [b + .2], tcp [b + .3, b + .4],
    grasped (bool) i odd, height (one number per step) b + .5; camera "wrist" shows 10 k + i, "base" 100 more.
    """
    with h5py.File(path, "w") as file:
        for k, n in enumerate(lengths):
            b = 100.0 * k + np.arange(n + 1)
            group = file.create_group(f"traj_{k}")
            group["actions"] = np.full((n, 2), 0.5, np.float32)
            group["success"] = group["terminated"] = np.arange(n) == n - 1
            group["truncated"] = np.arange(n) >= 1
            group["rewards"] = np.linspace(0, 1, n, dtype=np.float32)
            group["obs/agent/qpos"] = np.stack([b, b + 0.1], 1).astype(np.float32)
            group["obs/agent/qvel"] = (b + 0.2)[:, None].astype(np.float32)
            group["obs/extra/tcp"] = np.stack([b + 0.3, b + 0.4], 1).astype(np.float32)
            group["obs/extra/grasped"] = np.arange(n + 1) % 2 == 1
            group["obs/extra/height"] = (b + 0.5).astype(np.float32)
            group["obs/sensor_data/wrist/rgb"] = _frames(n, 4, 10 * k)
            group["obs/sensor_data/base/rgb"] = _frames(n, 4, 100 + 10 * k)
            group["obs/sensor_param/base/intrinsic_cv"] = np.zeros((n + 1, 3, 3), np.float32)
            group["env_states/actors/peg"] = np.zeros((n + 1, 13), np.float32)
    episodes = [{"episode_id": k, "control_mode": "pd_ee_delta_pose"} for k in range(len(lengths))]
    info = {"env_id": "LiftPegUpright-v1", "env_kwargs": KWARGS, "max_episode_steps": 50, **env_info}
    path.with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": episodes}))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return _write(tmp_path / "made.h5")


def _replace(path: Path, field: str, data: np.ndarray | None) -> None:
    with h5py.File(path, "r+") as handle:
        if field in handle:
            del handle[field]
        if data is not None:
            handle[field] = data


def _refusal(path: Path, **asked: object) -> str:
    with pytest.raises(InputError) as error:
        read_demonstrations(path, **asked)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def test_states_come_in_the_order_of_the_environment(file):
    demos = read_demonstrations(file, state_keys=KEYS)
    # qvel; qpos; tcp; grasped; height of frame 1: see _write.
    assert demos.state_dim == 7
    assert demos.trajectories[0].obs[1] == pytest.approx([1.2, 1, 1.1, 1.3, 1.4, 1, 1.5])
    assert demos.trajectories[1].obs[2] == pytest.approx([102.2, 102, 102.1, 102.3, 102.4, 0, 102.5])
    assert demos.trajectories[0].obs.dtype == np.float32


def test_without_an_order_agent_stands_before_extra_as_in_the_file(file):
    # HDF5's order: qpos, qvel; grasped, height, tcp.
    obs = read_demonstrations(file).trajectories[0].obs
    assert obs[1] == pytest.approx([1, 1.1, 1.2, 1, 1.5, 1.3, 1.4])


def test_the_file_and_the_environment_must_have_the_same_state_entries(file):
    assert "'obs/extra/goal'" in _refusal(file, state_keys=(*KEYS, "extra/goal"))
    assert "'obs/extra/height'" in _refusal(file, state_keys=KEYS[:-1])
    assert "traj_0" in _refusal(file, state_keys=KEYS[:-1])


@pytest.mark.parametrize("data", [np.zeros(3, np.float32), np.zeros((4, 2, 2), np.float32), np.array(1.0)])
def test_state_entries_that_do_not_fit_the_steps_are_refused(file, data):
    _replace(file, "traj_0/obs/extra/tcp", data)  # 4 frames belong there
    message = _refusal(file)
    assert "'obs/extra/tcp'" in message and "[4]" in message and str(data.shape) in message


def test_a_state_that_is_not_finite_is_refused(file):
    _replace(file, "traj_1/obs/extra/height", np.array([0, np.nan, 0], np.float32))
    assert "finite" in _refusal(file)


def test_images_are_read_when_asked_with_cameras_along_the_channels(file):
    images = read_demonstrations(file, need_images=True, cameras=("wrist", "base")).trajectories[1].images
    assert images.shape == (3, 4, 4, 6) and len(images) == 3
    assert images.read([0]).dtype == np.uint8
    # Trajectory 1: wrist shows 10 + row, base 110 + row; three channels each.
    assert images.read([2, 0, 2])[:, 1, 3].tolist() == [
        [12] * 3 + [112] * 3, [10] * 3 + [110] * 3, [12] * 3 + [112] * 3,
    ]  # fmt: skip
    assert images.read(slice(None)).shape == (3, 4, 4, 6)
    assert images.read(slice(1, None))[:, 0, 0, 0].tolist() == [11, 12]
    assert images.read(np.array([-1]))[0, 0, 0, 5] == 112
    assert images.read([]).shape == (0, 4, 4, 6)
    with pytest.raises(IndexError):
        images.read([3])


def test_without_an_order_cameras_come_as_in_the_file(file):
    images = read_demonstrations(file, need_images=True).trajectories[0].images
    assert images.read([0])[0, 0, 0].tolist() == [100] * 3 + [0] * 3  # base before wrist


def test_images_are_not_loaded_before_they_are_asked_for(file):
    assert read_demonstrations(file).trajectories[0].images is None
    images = read_demonstrations(file, need_images=True).trajectories[0].images
    _replace(file, "traj_0/obs/sensor_data/base/rgb", np.full((4, 4, 4, 3), 77, np.uint8))
    assert (images.read(slice(None))[..., :3] == 77).all()  # what the file holds now, not what it held


def test_images_that_are_gone_when_asked_for_are_refused_in_one_line(file):
    images = read_demonstrations(file, need_images=True).trajectories[0].images
    _replace(file, "traj_0/obs/sensor_data/wrist/rgb", None)
    with pytest.raises(InputError, match="images") as error:
        images.read([0])
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match="images") as error:
        images.read([0])
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "data", "asked", "words"),
    [
        ("sensor_data", None, {}, ["obs/sensor_data/*/rgb", "none"]),
        ("sensor_data/wrist", None, {"cameras": ("base", "wrist")}, ["'wrist'", "only base"]),
        ("other", None, {"cameras": ("base",)}, ["only cameras base", "'wrist'"]),
        ("sensor_data/base/rgb", np.zeros((4, 8, 8, 3), np.uint8), {}, ["one size", "base 8x8", "wrist 4x4"]),
        ("sensor_data/base/rgb", np.zeros((4, 4, 4, 3), np.float32), {}, ["uint8", "base/rgb", "float32"]),
        ("sensor_data/base/rgb", np.zeros((3, 4, 4, 3), np.uint8), {}, ["[4, H, W, 3]", "(3, 4, 4, 3)"]),
        ("sensor_data/base/rgb", np.zeros((4, 4, 4), np.uint8), {}, ["[4, H, W, 3]", "(4, 4, 4)"]),
        ("sensor_data/base/rgb", np.zeros((4, 4, 4, 1), np.uint8), {}, ["[4, H, W, 3]", "(4, 4, 4, 1)"]),
    ],
)
def test_images_that_do_not_fit_are_refused_where_images_are_needed(file, field, data, asked, words):
    _replace(file, f"traj_0/obs/{field}", data)
    message = _refusal(file, need_images=True, **asked)
    for word in words:
        assert word in message
    assert read_demonstrations(file).state_dim == 7  # the states of that file are still good


def test_images_of_another_size_in_another_demonstration_are_refused(file):
    for camera in ("base", "wrist"):
        _replace(file, f"traj_1/obs/sensor_data/{camera}/rgb", np.zeros((3, 8, 8, 3), np.uint8))
    message = _refusal(file, need_images=True)
    assert "(4, 4, 6)" in message and "(8, 8, 6)" in message


def test_a_flat_state_file_has_no_images(file):
    _replace(file, "traj_0/obs", np.zeros((4, 7), np.float32))
    _replace(file, "traj_1/obs", np.zeros((3, 7), np.float32))
    assert read_demonstrations(file, state_keys=KEYS).state_dim == 7  # flat is in the environment's order already
    assert "obs/sensor_data/*/rgb" in _refusal(file, need_images=True)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_recording_cut_short_is_refused_in_one_line(file, part):
    data = file.read_bytes()
    file.write_bytes(data[: int(part * len(data))])
    assert "readable HDF5" in _refusal(file, need_images=True)


def test_the_json_tells_what_was_recorded(file):
    demos = read_demonstrations(file)
    assert (demos.env_id, demos.control_mode) == ("LiftPegUpright-v1", "pd_ee_delta_pose")
    assert (demos.obs_mode, demos.reward_mode, demos.sim_backend) == ("rgb", "normalized_dense", "physx_cpu")
    assert demos.max_episode_steps == 50


def test_a_control_mode_left_to_the_environment_is_that_of_its_episodes(tmp_path):
    demos = read_demonstrations(_write(tmp_path / "made.h5", env_kwargs={"obs_mode": "rgb"}))
    assert demos.control_mode == "pd_ee_delta_pose" and demos.reward_mode is None


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("env_id", "PickCube-v1"),
        ("control_mode", "pd_joint_delta_pos"),
        ("obs_mode", "state"),
        ("reward_mode", "sparse"),
    ],
)
def test_demonstrations_of_something_else_are_refused_by_name(file, name, other):
    demos = read_demonstrations(file)
    demos.expect(
        env_id="LiftPegUpright-v1", control_mode="pd_ee_delta_pose", obs_mode="rgb", reward_mode="normalized_dense"
    )
    with pytest.raises(InputError) as error:
        demos.expect(**{name: other})
    message = str(error.value)
    assert message.startswith(f"{name}: ") and other in message and getattr(demos, name) in message
    assert str(file) in message


def test_an_unknown_reward_mode_or_one_without_rewards_is_accepted(tmp_path):
    unknown = _write(tmp_path / "unknown.h5", env_kwargs={**KWARGS, "reward_mode": None})
    demos = read_demonstrations(unknown, need_rewards=True)
    demos.expect(reward_mode="sparse")
    assert demos.reward_mode is None and demos.trajectories[0].rewards is not None
    without = _write(tmp_path / "without.h5", lengths=(3,))
    _replace(without, "traj_0/rewards", None)
    demos = read_demonstrations(without)
    demos.expect(reward_mode="sparse")  # nothing was recorded that could be in the wrong mode
    assert demos.reward_mode == "normalized_dense" and demos.trajectories[0].rewards is None
    assert "'rewards'" in _refusal(without, need_rewards=True)


def test_a_real_rgb_file(shared_dir):
    order = ("agent/qpos", "agent/qvel", "extra/tcp_pose")
    path = shared_dir / RGB_FILE
    demos = read_demonstrations(path, need_images=True, state_keys=order, cameras=("base_camera",))
    assert len(demos.trajectories) == 5 and (demos.state_dim, demos.action_dim) == (25, 7)
    assert (demos.obs_mode, demos.reward_mode, demos.max_episode_steps) == ("rgb", None, 50)
    trajectory = demos.trajectories[3]
    assert trajectory.images.shape == (len(trajectory) + 1, 128, 128, 3) and trajectory.rewards is None
    with h5py.File(path) as handle:
        group = handle["traj_3/obs"]
        assert np.array_equal(trajectory.images.read([7, 2]), group["sensor_data/base_camera/rgb"][()][[7, 2]])
        for part, name in (
            (slice(0, 9), "agent/qpos"),
            (slice(9, 18), "agent/qvel"),
            (slice(18, 25), "extra/tcp_pose"),
        ):
            assert np.array_equal(trajectory.obs[:, part], group[name][()])
    assert "'rewards'" in _refusal(path, need_rewards=True)


def test_a_real_rgb_file_cut_short_is_refused(shared_dir, tmp_path):
    path = tmp_path / "cut.h5"
    data = (shared_dir / RGB_FILE).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    shutil.copy((shared_dir / RGB_FILE).with_suffix(".json"), path.with_suffix(".json"))
    assert "readable HDF5" in _refusal(path)


def test_real_demonstrations_are_cut_into_windows_by_their_success_alone(shared_dir):
    demos = read_demonstrations(shared_dir / STATE_FILE, need_rewards=True)
    first = demos.trajectories[0]
    # The registered limit of 50 steps marks every later step as truncated; the success is at step 168.
    assert first.truncated[49:].all() and not first.truncated[:49].any()
    assert np.flatnonzero(first.success)[0] == np.flatnonzero(first.terminated)[0] == 168
    spec = WindowSpec(2, 16, 8, 0.99, "dense", 1.0, end_on_success=True)
    windows = cut_windows(demos.trajectories, demos.control_mode, spec)
    lengths = [int(np.argmax(t.success)) + 1 for t in demos.trajectories]
    assert lengths[0] == 169 and len(windows) == sum(lengths)
    discount = windows.discount[windows.episode == 0]
    # Chunks of 8 from steps 0..160 end before step 168 with gamma^8; those from 161 on reach the success.
    assert discount[:161] == pytest.approx([0.99**8] * 161) and (discount[161:] == 0).all()
    table = stack_states(demos.trajectories)
    assert len(table) == sum(len(t) + 1 for t in demos.trajectories)
    start = len(first) + 1
    second = windows.rows[windows.episode == 1]
    assert np.array_equal(table[second[5]], demos.trajectories[1].obs[4:6]) and second[0].tolist() == [
        start,
        start,
    ]
