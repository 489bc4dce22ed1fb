"""The scripted expert of LiftPegUpright: it succeeds, errs as told, and its recordings are ManiSkill's."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.makers.imperfection import CorrelatedNoise, Imperfection
from dsrl_offpolicy.demos.makers.lift_peg import LiftPegExpert

NONE = Imperfection(0.0, 0.0, 0.0, (0.0, 0.0, 0.0), False)


def test_the_first_move_goes_towards_the_grasp():
    expert = LiftPegExpert(NONE, np.random.default_rng(0))
    tcp = np.array([0.0, 0.0, 0.175, 0, 1, 0, 0])  # pointing down: half a turn about x
    peg = np.array([0.0, 0.0, 0.025, np.sqrt(0.5), np.sqrt(0.5), 0, 0])
    action = expert.act(tcp, peg)
    # The hand hovers 0.05 above a point 0.10 along the peg: dx = 0.10 and dz = 0.075 - 0.175 = -0.10; 1.5 times
    # that over 0.1 metres per unit is 1.5, clipped to 1. No turn is needed, and the gripper stays open.
    assert action == pytest.approx([1, 0, -1, 0, 0, 0, 1], abs=1e-6)


def test_a_wrong_grasp_moves_the_goal_by_its_offset():
    wrong = Imperfection(0.0, 0.0, 1.0, (0.0, 0.04, 0.0), False)
    tcp = np.array([0.10, 0.0, 0.075, 0, 1, 0, 0])
    peg = np.array([0.0, 0.0, 0.025, np.sqrt(0.5), np.sqrt(0.5), 0, 0])
    action = LiftPegExpert(wrong, np.random.default_rng(0)).act(tcp, peg)
    assert action[:3] == pytest.approx([0, 1.5 * 0.04 / 0.1, 0], abs=1e-6)


def test_noise_is_correlated_as_told():
    noise = CorrelatedNoise(Imperfection(0.3, 0.8, 0.0, (0.0, 0.0, 0.0), False), 1, np.random.default_rng(0))
    drawn = np.array([noise.draw()[0] for _ in range(20000)])
    assert np.std(drawn) == pytest.approx(0.3, rel=0.05)
    assert np.corrcoef(drawn[:-1], drawn[1:])[0, 1] == pytest.approx(0.8, abs=0.03)


@pytest.mark.maniskill
def test_without_errors_it_lifts_the_peg_and_with_a_wrong_grasp_it_does_not(maniskill, run_command, tmp_path):
    demos = ["demos", "--env_id", "LiftPegUpright-v1", "--demonstrator", "scripted", "--episodes", 6]
    right = [*demos, "--action_noise", 0, "--wrong_goal_prob", 0, "--out", tmp_path / "right.h5"]
    wrong = [*demos, "--wrong_goal_prob", 1, "--wrong_goal_offset", 0, 0.05, 0, "--out", tmp_path / "wrong.h5"]
    assert run_command(right).status == 0 and run_command(wrong).status == 0
    good = read_demonstrations(tmp_path / "right.h5", need_rewards=True)
    bad = read_demonstrations(tmp_path / "wrong.h5")
    assert sum(t.succeeds for t in good.trajectories) >= 5
    assert sum(t.succeeds for t in bad.trajectories) == 0  # 5 cm beside a peg of 5 cm
    for t in good.trajectories:
        assert t.success[-1] == t.terminated[-1] and np.abs(t.actions).max() <= 1
    meta = json.loads((tmp_path / "right.json").read_text())
    assert [e["episode_id"] for e in meta["episodes"]] == list(range(6))
    named = [*demos[:-1], 1, "--demo_steps", 3, "--out", tmp_path / "right.hdf5"]
    again = run_command(named)
    assert again.status == 2 and "right.json exists" in again.err  # its JSON would be written over
    other = tmp_path / "a.h5.folder" / "peg.hdf5"
    assert run_command([*named[:-1], other]).status == 0
    assert len(read_demonstrations(other).trajectories) == 1
    assert sorted(p.name for p in other.parent.iterdir()) == ["peg.hdf5", "peg.json"]
    files = sorted(p.name for p in tmp_path.iterdir() if p.is_file())
    assert files == ["right.h5", "right.json", "wrong.h5", "wrong.json"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--env_id", "StackCube-v1", "--demonstrator", "scripted"], ["demonstrator", "planner", "StackCube-v1"]),
        (["--env_id", "lever-pull-v3", "--robot_uids", "panda_wristcam"], ["robot_uids", "panda_wristcam"]),
        (["--env_id", "StackCube-v1", "--robot_uids", "panda_wristcam"], ["robot_uids", "panda_wristcam"]),
        (
            ["--env_id", "lever-pull-v3", "--demonstrator", "planner"],
            ["demonstrator", "scripted", "lever-pull-v3"],
        ),
        (
            [
                "--env_id",
                "LiftPegUpright-v1",
                "--demonstrator",
                "scripted",
                "--control_mode",
                "pd_joint_delta_pos",
            ],
            ["control_mode", "pd_joint_delta_pos"],
        ),
    ],
)
def test_demonstrators_that_are_not_there_are_one_line(run_command, tmp_path, flags, words):
    done = run_command(["demos", *flags, "--out", tmp_path / "d.h5"])
    assert done.status == 2 and len(done.error_lines) == 1
    for word in words:
        assert word in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.maniskill
def test_a_robot_that_starts_a_quarter_turn_away_turns_and_lifts_the_peg(maniskill, run_command, tmp_path):
    flags = ["--env_id", "LiftPegUpright-v1", "--demonstrator", "scripted", "--robot_uids", "panda_wristcam"]
    flags += ["--episodes", 4, "--action_noise", 0, "--wrong_goal_prob", 0, "--demo_steps", 120]
    done = run_command(["demos", *flags, "--out", tmp_path / "wrist.h5"])
    assert done.status == 0, done.err
    # Without errors three quarters and more succeed, as they do with the arm that starts above the grasp.
    assert sum(t.succeeds for t in read_demonstrations(tmp_path / "wrist.h5").trajectories) >= 3
    with h5py.File(tmp_path / "wrist.h5") as file:
        assert "panda_wristcam" in file["traj_0/env_states/articulations"]


@pytest.mark.maniskill
@pytest.mark.parametrize("demonstrator", ["scripted", "planner"])
def test_without_a_render_device_the_cure_is_told_and_nothing_is_left(maniskill, tmp_path, demonstrator):
    hidden = {"VK_DRIVER_FILES": "/nonexistent.json", "VK_ICD_FILENAMES": "/nonexistent.json"}
    flags = ["--env_id", "LiftPegUpright-v1", "--demonstrator", demonstrator, "--out", str(tmp_path / "d.h5")]
    done = subprocess.run(
        [sys.executable, "-m", "dsrl_offpolicy.cli", "demos", *flags],
        capture_output=True, text=True, env={**os.environ, **hidden}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "render device" in done.stderr and "apt-get install" in done.stderr
    assert not list(tmp_path.iterdir())
