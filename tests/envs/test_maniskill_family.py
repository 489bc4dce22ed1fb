"""What is known of ManiSkill's tasks without building one, and failures in its batches."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from test_maniskill_batched import FORWARD, Points

from dsrl_offpolicy.envs.families.maniskill import ManiSkill, how_to_install
from dsrl_offpolicy.envs.families.maniskill_batched import BatchedMacroStepEnv
from dsrl_offpolicy.envs.spec import EnvSpec


def test_where_there_are_no_packages_the_extra_is_not_the_cure():
    assert how_to_install((3, 12)) == "pip install 'dsrl_offpolicy[maniskill]'"
    assert "3.13" in how_to_install((3, 13)) and "Python 3.12" in how_to_install((3, 13))
    assert not how_to_install((3, 13)).startswith("pip")


@pytest.mark.skipif(importlib.util.find_spec("mani_skill") is None, reason="needs the extra maniskill")
@pytest.mark.parametrize(
    ("env_id", "robot", "gripper"),
    [
        ("PickCube-v1", None, True),
        ("LiftPegUpright-v1", "panda_wristcam", True),
        ("DrawTriangle-v1", None, False),  # a stick
        ("PushT-v1", None, False),
        ("PickCube-v1", "panda_stick", False),
        ("NoSuchTask-v1", None, True),
    ],
)
def test_whether_the_last_action_is_a_grippers_follows_from_the_robot(env_id, robot, gripper):
    assert ManiSkill().has_gripper(env_id, "pd_ee_delta_pose", robot) is gripper


class FailingPoints(Points):
    """The last point fails at position 2; success is told as a number, NaN before it is known."""

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        obs, reward, success, never, _ = super().step(action)
        failed = (self.position >= 2) & (self.goal == 4)
        told = torch.where(self.position > 1, success * 1.0, float("nan"))
        return obs, reward, success | failed, never, {"success": told}


@pytest.mark.maniskill
@pytest.mark.usefixtures("maniskill")
def test_a_failure_in_a_batch_costs_what_never_succeeding_costs_and_nan_is_no_success():
    spec = EnvSpec("Points", obs_horizon=2, act_horizon=3, gamma=0.5)
    env = BatchedMacroStepEnv(FailingPoints(3), spec, None)
    env.reset(seed=[1, 2, 3])
    _, reward, terminated, _, info = env.step(FORWARD)
    assert info["n_steps"].tolist() == [2, 3, 2] and terminated.all()
    # The third fails with its second row: -1 - 0.5 * 1 / (1 - 0.5) = -2, as -1 for ever.
    assert reward.tolist() == [-1.0, -1.5, -2.0]
    assert info["success_once"].tolist() == [True, True, False]
