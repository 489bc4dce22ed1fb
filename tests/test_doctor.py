"""dsrl doctor env: what an environment is here, and how fast."""

from __future__ import annotations

import json

import pytest


def test_an_environment_without_images(run_command):
    done = run_command(["doctor", "env", "--env_id", "lever-pull-v3", "--seconds", 0.2, "--json"])
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["simulator"].startswith("metaworld ") and "render_device" not in report
    assert report["state"]["state_dim"] == 39 and report["state"]["action_dim"] == 4
    assert report["state"]["max_episode_steps"] == 500 and report["state"]["env_steps_per_s"] > 0


@pytest.mark.maniskill
def test_a_maniskill_task_in_both_modes(maniskill, run_command):
    done = run_command(["doctor", "env", "--env_id", "LiftPegUpright-v1", "--seconds", 0.2])
    assert done.status == 0, done.err
    words = ("maniskill 3", "physx_cpu", "pd_ee_delta_pose", "base_camera", "128, 128, 3", "extra/tcp_pose")
    for word in words:
        assert word in done.out, word
    assert done.out.count("env_steps_per_s") == 3  # state, rgb, and the line that says what it is


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["doctor", "run"], ["expected 'env'", "'run'"]),
        (["doctor", "env", "--env_id", "lever-pul-v3"], ["env_id", "did you mean lever-pull-v3?"]),
        (
            ["doctor", "env", "--env_id", "lever-pull-v3", "--control_mode", "x"],
            ["control_mode", "no ManiSkill task"],
        ),
        (["doctor", "env", "--seconds", 0], ["seconds"]),
    ],
)
def test_what_cannot_be_examined_is_one_line(run_command, argv, words):
    done = run_command(argv)
    assert done.status == 2 and len(done.error_lines) == 1, done.err
    for word in words:
        assert word in done.err
