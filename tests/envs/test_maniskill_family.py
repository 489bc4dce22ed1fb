"""What gets ManiSkill onto a machine, and failures in its batches."""

from __future__ import annotations

import pytest
import torch
from test_maniskill_batched import FORWARD, Points

from dsrl_offpolicy.envs.families.maniskill import how_to_install
from dsrl_offpolicy.envs.families.maniskill_batched import BatchedMacroStepEnv
from dsrl_offpolicy.envs.spec import EnvSpec


def test_where_there_are_no_packages_the_extra_is_not_the_cure():
    assert how_to_install((3, 12)) == "pip install 'dsrl_offpolicy[maniskill]'"
    assert "3.13" in how_to_install((3, 13)) and "Python 3.12" in how_to_install((3, 13))
    assert not how_to_install((3, 13)).startswith("pip")


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
