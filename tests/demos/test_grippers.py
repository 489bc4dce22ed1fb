"""Which robots have a gripper, as their recordings tell, and how the ends of their episodes are padded."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_worlds import TASK

from dsrl_offpolicy.configs.jobs import Stage0Config
from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.train.pretrain_stage0 import Stage0

PANDA, STICK = 9, 7
"""Joints: a stick's are all the arm's, a gripper has two fingers besides."""


def _record(path: Path, control_mode: str, width: int, robot: str | None, joints: int) -> Path:
    """Two demonstrations of 3 steps whose last action is all .5, in ManiSkill's layout."""
    with h5py.File(path, "w") as file:
        for i in range(2):
            group = file.create_group(f"traj_{i}")
            group["obs"] = np.random.default_rng(i).normal(size=(4, 5)).astype(np.float32)
            group["actions"] = np.linspace(-0.5, 0.5, 3, dtype=np.float32)[:, None].repeat(width, 1)
            for name in ("success", "terminated", "truncated"):
                group[name] = np.zeros(3, bool)
            if robot is not None:
                group[f"env_states/articulations/{robot}"] = np.zeros((4, 13 + 2 * joints), np.float32)
    meta = {"env_info": {"env_kwargs": {"control_mode": control_mode}}, "episodes": [{}, {}]}
    path.with_suffix(".json").write_text(json.dumps(meta))
    return path


@pytest.mark.parametrize(
    ("control_mode", "width", "robot", "joints", "expected"),
    [
        ("pd_ee_delta_pose", 7, "panda", PANDA, True),
        ("pd_ee_delta_pose", 6, "panda_stick", STICK, False),
        ("pd_ee_target_delta_pose", 6, None, 0, False),
        ("pd_ee_delta_pos", 4, None, 0, True),
        ("pd_ee_delta_pos", 3, "panda_stick", STICK, False),
        ("pd_joint_delta_pos", 8, "panda", PANDA, True),
        ("pd_joint_delta_pos", 7, "panda_stick", STICK, False),
        ("pd_joint_target_delta_pos", 7, "xarm6_robotiq", 12, True),
        ("pd_joint_delta_pos", 8, None, 0, True),  # nothing tells
        ("", 4, None, 0, True),
    ],
)
def test_a_gripper_is_told_by_the_actions_and_the_robots_joints(
    tmp_path, control_mode, width, robot, joints, expected
):
    path = _record(tmp_path / "d.h5", control_mode, width, robot, joints)
    assert read_demonstrations(path).has_gripper is expected


@pytest.mark.parametrize(("robot", "joints", "last"), [("panda", PANDA, 0.5), ("panda_stick", STICK, 0.0)])
def test_stage_0_pads_a_stick_with_zeros_and_a_gripper_with_its_last_command(tmp_path, robot, joints, last):
    path = _record(tmp_path / "d.h5", "pd_joint_delta_pos", 7, robot, joints)
    stage = Stage0(Stage0Config(env_id=TASK, demo_path=path, device="cpu"))
    final = stage.windows.chunks[2]  # of the last step: its action, then what pads
    assert final[0].tolist() == [0.5] * 7
    assert (final[1:, :-1] == 0).all() and final[1:, -1].tolist() == [last] * 7


@pytest.mark.maniskill
def test_recordings_of_a_stick_tell_that_it_has_no_gripper(maniskill):
    import gymnasium as gym
    import mani_skill.envs  # noqa: F401

    env = gym.make("DrawTriangle-v1", obs_mode="state", control_mode="pd_joint_delta_pos", render_backend="none")
    env.reset(seed=0)
    states = env.unwrapped.get_state_dict()["articulations"]
    assert {name: state.shape[-1] for name, state in states.items()} == {"panda_stick": 13 + 2 * STICK}
    assert env.action_space.shape == (STICK,)
    env.close()
