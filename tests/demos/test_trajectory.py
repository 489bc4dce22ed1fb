"""Demonstration files: the ManiSkill layout, written, read, and refused."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_worlds import snapshot

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.formats.maniskill_hdf5 import write_demonstrations
from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.errors import InputError

ENV_INFO = {"env_id": "lever-pull-v3", "env_kwargs": {"control_mode": "pd_ee_delta_pos"}}
REAL = "demos/LiftPegUpright-v1/trajectory.{}.physx_cpu.h5"


def _trajectory(n: int, mark: float = 0.0) -> Trajectory:
    return Trajectory(
        obs=np.arange(3 * (n + 1), dtype=np.float32).reshape(n + 1, 3) + mark,
        actions=np.linspace(-1, 1, 2 * n, dtype=np.float32).reshape(n, 2),
        success=np.arange(n) == n - 1,
        terminated=np.arange(n) == n - 1,
        truncated=np.zeros(n, bool),
        rewards=np.arange(n, dtype=np.float32),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "made.h5"
    write_demonstrations(path, [_trajectory(3), _trajectory(2, 100)], ENV_INFO, [7, 8])
    return path


def _edit(path: Path, field: str, data) -> None:
    with h5py.File(path, "r+") as handle:
        del handle[field]
        if data is not None:
            handle[field] = data


def test_what_is_written_is_read(file):
    demos = read_demonstrations(file, need_rewards=True)
    assert (demos.env_id, demos.control_mode) == ("lever-pull-v3", "pd_ee_delta_pos")
    assert (demos.state_dim, demos.action_dim) == (3, 2)
    for read, written in zip(demos.trajectories, [_trajectory(3), _trajectory(2, 100)], strict=True):
        for field in ("obs", "actions", "success", "terminated", "truncated", "rewards"):
            assert np.array_equal(getattr(read, field), getattr(written, field)), field
            assert getattr(read, field).dtype == getattr(written, field).dtype, field
    episodes = json.loads(file.with_suffix(".json").read_text())["episodes"]
    assert [(e["episode_id"], e["episode_seed"], e["elapsed_steps"]) for e in episodes] == [(0, 7, 3), (1, 8, 2)]


def test_trajectories_come_in_integer_order(tmp_path):
    path = tmp_path / "many.h5"
    write_demonstrations(path, [_trajectory(1, i) for i in range(12)], ENV_INFO, list(range(12)))
    assert [t.obs[0, 0] for t in read_demonstrations(path).trajectories] == list(range(12))  # not 0, 1, 10, 11, 2
    assert [t.obs[0, 0] for t in read_demonstrations(path, limit=3).trajectories] == [0, 1, 2]


def test_real_maniskill_state_file(shared_dir):
    demos = read_demonstrations(shared_dir / REAL.format("state.pd_ee_delta_pose"), need_rewards=True)
    assert len(demos.trajectories) == 50
    assert (demos.state_dim, demos.action_dim) == (32, 7)
    assert (demos.env_id, demos.control_mode) == ("LiftPegUpright-v1", "pd_ee_delta_pose")
    with h5py.File(shared_dir / REAL.format("state.pd_ee_delta_pose")) as handle:
        for i in (2, 10, 49):
            assert np.array_equal(demos.trajectories[i].actions, handle[f"traj_{i}/actions"][()])
            assert np.array_equal(demos.trajectories[i].obs, handle[f"traj_{i}/obs"][()])
    for trajectory in demos.trajectories:
        assert len(trajectory.obs) == len(trajectory) + 1
        assert trajectory.succeeds and np.isfinite(trajectory.rewards).all()
    assert np.median([len(t) for t in demos.trajectories]) == pytest.approx(175, abs=10)


def test_real_file_recorded_without_observations_is_refused(shared_dir):
    path = shared_dir / REAL.format("none.pd_joint_pos")
    with pytest.raises(InputError) as error:
        read_demonstrations(path)
    assert "'obs'" in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_rewards_are_only_asked_for_where_they_are_needed(file):
    _edit(file, "traj_1/rewards", None)
    assert read_demonstrations(file).trajectories[1].rewards is None
    with pytest.raises(InputError) as error:
        read_demonstrations(file, need_rewards=True)
    message = str(error.value)
    assert "'rewards'" in message and str(file) in message and "traj_1" in message


@pytest.mark.parametrize("field", ["obs", "actions", "success", "terminated", "truncated"])
def test_a_missing_field_is_named_with_its_file(file, field):
    _edit(file, f"traj_0/{field}", None)
    with pytest.raises(InputError) as error:
        read_demonstrations(file)
    message = str(error.value)
    assert repr(field) in message and str(file) in message and "traj_0" in message and "\n" not in message


def _nan(shape: tuple[int, ...]) -> np.ndarray:
    values = np.zeros(shape, np.float32)
    values.flat[-1] = np.nan
    return values


@pytest.mark.parametrize(
    ("field", "data", "words"),
    [
        ("obs", _nan((4, 3)), ["finite", "'obs'"]),
        ("actions", _nan((3, 2)), ["finite", "'actions'"]),
        ("rewards", np.full(3, np.inf, np.float32), ["finite", "'rewards'"]),
        ("actions", np.full((3, 2), 1.5, np.float32), ["[-1, 1]", "1.5"]),
        ("actions", np.zeros((0, 2), np.float32), ["actions", "(0, 2)"]),
        ("actions", np.zeros(3, np.float32), ["actions", "(3,)"]),
        ("obs", np.zeros((3, 3), np.float32), ["4 rows", "'obs'", "(3, 3)"]),  # n rows where n + 1 belong
        ("obs", np.zeros(4, np.float32), ["obs", "(4,)"]),
        ("success", np.zeros(2, bool), ["3 rows", "'success'", "(2,)"]),
        ("rewards", np.zeros(4, np.float32), ["3 rows", "'rewards'"]),
        ("obs", np.zeros((4, 5), np.float32), ["widths", "(3, 2)", "(5, 2)"]),  # unlike the other trajectory
    ],
)
def test_rows_and_numbers_that_cannot_be_are_refused(file, field, data, words):
    _edit(file, f"traj_0/{field}", data)
    with pytest.raises(InputError) as error:
        read_demonstrations(file)
    message = str(error.value)
    assert str(file) in message and "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_file_and_a_missing_json_are_named(file, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.h5 does not exist"):
        read_demonstrations(tmp_path / "nowhere.h5")
    file.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"made\.json"):
        read_demonstrations(file)


NO_EPISODES = ['{"env_info": {}}', '{"env_info": {}, "episodes": []}', '{"env_info": {}, "episodes": 3}']


@pytest.mark.parametrize("text", ["{not json", "[]", "{}", *NO_EPISODES])
def test_a_damaged_json_is_refused(file, text):
    file.with_suffix(".json").write_text(text)
    with pytest.raises(InputError, match=r"made\.json") as error:
        read_demonstrations(file)
    assert ("episodes" in str(error.value)) == (text in NO_EPISODES)


def test_what_is_no_hdf5_is_refused_in_one_line(file):
    file.write_text("obs,actions\n1,2\n")
    with pytest.raises(InputError, match="readable HDF5") as error:
        read_demonstrations(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused_in_one_line(file, part):
    data = file.read_bytes()
    file.write_bytes(data[: int(part * len(data))])
    with pytest.raises(InputError) as error:
        read_demonstrations(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_trajectories_is_refused(file):
    with h5py.File(file, "w") as handle:
        handle["something"] = 1
    with pytest.raises(InputError, match="traj_0"):
        read_demonstrations(file)


def test_a_data_set_where_a_trajectory_should_be_is_refused(file):
    _edit(file, "traj_0", np.zeros(3))
    with pytest.raises(InputError, match="traj_0"):
        read_demonstrations(file)


@pytest.mark.parametrize("existing", [".h5", ".json"])
def test_nothing_is_written_over(file, tmp_path, existing):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(file.with_suffix(existing), other / f"mine{existing}")
    before = snapshot(other)
    with pytest.raises(InputError, match=f"mine{existing}"):
        write_demonstrations(other / "mine.h5", [_trajectory(1)], ENV_INFO, [1])
    assert snapshot(other) == before


def test_hdf5_and_json_never_share_one_path(tmp_path):
    with pytest.raises(InputError, match=r"same\.json"):
        write_demonstrations(tmp_path / "same.json", [_trajectory(1)], ENV_INFO, [1])


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path):
    long = _trajectory(20_000)
    noise = np.random.default_rng(0).random((20_001, 4)).astype(np.float32)  # which gzip cannot make small
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes; as a full disk would
    try:
        with pytest.raises(InputError, match="cannot make the file"):
            write_demonstrations(tmp_path / "demos.h5", [replace(long, obs=noise)], ENV_INFO, [1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["actions", "obs", "rewards"])
def test_a_data_set_of_more_numbers_than_its_bytes_can_stand_for_is_refused(file, field):
    with h5py.File(file, "a") as handle:
        del handle["traj_0"][field]
        handle["traj_0"].create_dataset(field, (10**9, 3), np.float32, chunks=True)  # 12 GB, none of it stored
    with pytest.raises(InputError, match=f"traj_0: expected numbers in '{field}', got fewer bytes than shape"):
        read_demonstrations(file, need_rewards=True)


@pytest.mark.parametrize("data", [np.array([b"x"] * 3), np.zeros(3, [("a", "f4")]), np.zeros(3, "c8")])
def test_a_data_set_of_no_numbers_is_refused(file, data):
    _edit(file, "traj_0/rewards", data)
    with pytest.raises(InputError, match="traj_0: expected numbers in 'rewards', got"):
        read_demonstrations(file, need_rewards=True)
