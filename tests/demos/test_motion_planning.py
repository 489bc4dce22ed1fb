"""ManiSkill's planner and its replay, for real: short plans of PickCube-v1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.makers.motion_planning import PLANNED_TASKS
from dsrl_offpolicy.demos.windows import WindowSpec, cut_windows
from dsrl_offpolicy.tracking.progress import ProgressReport

pytestmark = [pytest.mark.maniskill, pytest.mark.usefixtures("maniskill")]

TASK = ["demos", "--env_id", "PickCube-v1"]


@pytest.fixture(scope="module")
def planned(run_command, tmp_path_factory) -> Path:
    """Two planned demonstrations, in a folder whose name holds what ManiSkill's tools replace in paths."""
    path = tmp_path_factory.mktemp("made.h5files") / "pick.h5"
    done = run_command([*TASK, "--episodes", 2, "--out", path, "--max_episode_steps", 300])
    assert done.status == 0, done.err
    assert "demos: 2/2 episodes  planned" in done.error_lines[-1]
    return path


def test_planned_demonstrations_are_read(planned):
    demos = read_demonstrations(planned, need_rewards=True)
    demos.expect(
        env_id="PickCube-v1", control_mode="pd_ee_delta_pose", obs_mode="state", reward_mode="normalized_dense"
    )
    assert (demos.sim_backend, demos.max_episode_steps) == ("physx_cpu", 300)
    # 9 joint positions, 9 velocities, is_grasped, tcp pose 7, goal 3, cube pose 7, tcp to cube 3, cube to goal 3;
    # 3 translations, 3 rotations, 1 gripper.
    assert (demos.state_dim, demos.action_dim, len(demos.trajectories)) == (42, 7, 2)
    for trajectory in demos.trajectories:
        assert trajectory.success[-1] and not trajectory.success[0] and not trajectory.truncated.any()
        assert 30 < len(trajectory) <= 300
        assert np.array_equal(trajectory.terminated, trajectory.success)  # ManiSkill: success terminates
        assert 0 <= trajectory.rewards.min() < 0.5 and trajectory.rewards.max() == pytest.approx(1)  # normalised
    assert not np.array_equal(demos.trajectories[0].obs[0], demos.trajectories[1].obs[0])  # two starts
    spec = WindowSpec(1, 8, 8, 0.9, "dense", 1.0, end_on_success=True)
    windows = cut_windows(demos.trajectories, demos.control_mode, spec)
    assert len(windows) == sum(int(np.argmax(t.success)) + 1 for t in demos.trajectories)


def test_planned_files_have_the_layout_of_maniskill(planned):
    meta = json.loads(planned.with_suffix(".json").read_text())
    assert [e["episode_id"] for e in meta["episodes"]] == [0, 1]
    assert all(e["success"] and e["control_mode"] == "pd_ee_delta_pose" for e in meta["episodes"])
    assert meta["env_info"]["max_episode_steps"] == 300 and meta["source_type"] == "motionplanning"
    assert sorted(p.name for p in planned.parent.iterdir()) == ["pick.h5", "pick.json"]  # no parts remain


@pytest.mark.slow
def test_images_are_recorded_beside_the_states(run_command, tmp_path):
    path = tmp_path / "rgb.h5"
    flags = ["--obs_mode", "rgb", "--control_mode", "pd_joint_delta_pos", "--reward_mode", "sparse"]
    done = run_command([*TASK, "--episodes", 1, "--out", path, *flags])
    assert done.status == 0, done.err
    demos = read_demonstrations(path, need_rewards=True, need_images=True, cameras=("base_camera",))
    demos.expect(control_mode="pd_joint_delta_pos", obs_mode="rgb", reward_mode="sparse")
    # Without what only the simulator knows (cube pose 7, tcp to cube 3, cube to goal 3): 42 - 13.
    assert (demos.state_dim, demos.action_dim) == (29, 8)
    (trajectory,) = demos.trajectories
    assert trajectory.images.shape == (len(trajectory) + 1, 128, 128, 3)
    first, last = trajectory.images.read([0, -1])
    assert first.std() > 5 and np.abs(first.astype(int) - last).mean() > 1  # a scene, in which something moved
    assert np.array_equal(trajectory.rewards, trajectory.success.astype(np.float32))


def test_the_known_tasks_are_those_with_a_planner():
    code = "from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS; print(*sorted(MP_SOLUTIONS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert tuple(done.stdout.splitlines()[-1].split()) == PLANNED_TASKS


def test_a_reward_mode_that_the_task_does_not_have_is_refused(run_command, tmp_path):
    done = run_command(["demos", "--env_id", "PlugCharger-v1", "--episodes", 1, "--out", tmp_path / "plug.h5"])
    assert done.status == 2
    assert done.error_lines[-1].startswith("dsrl demos: error: reward_mode: expected one of ")
    assert "sparse" in done.error_lines[-1] and done.error_lines[-1].endswith("got normalized_dense")


def test_an_interrupted_recording_goes_on_where_it_was(run_command, tmp_path, monkeypatch):
    path = tmp_path / "pick.h5"
    argv = [*TASK, "--episodes", 6, "--out", path]
    first_part = Path(f"{path}.parts") / "part_0000"
    report = ProgressReport.report

    def interrupt_after_the_first_part(progress, done, shown=None):
        report(progress, done, shown)
        if done >= 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "report", interrupt_after_the_first_part)
        stopped = run_command(argv)
    assert stopped.status == 130 and stopped.error_lines[-1] == "dsrl demos: interrupted"
    before = (first_part / "trajectory.h5").stat().st_mtime_ns
    assert not path.exists()
    refused = run_command([*argv, "--reward_mode", "dense"])
    assert refused.status == 2 and "reward_mode" in refused.error_lines[-1]
    assert (first_part / "trajectory.h5").stat().st_mtime_ns == before
    done = run_command(argv)
    assert done.status == 0, done.err
    assert "demos: 5/6 episodes" in done.error_lines[0] and "demos: 6/6 episodes" in done.error_lines[-1]
    demos = read_demonstrations(path)
    assert len({t.obs[0].tobytes() for t in demos.trajectories}) == 6  # six different starts
