"""The environment that settings and base policy describe."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_worlds import HalvingPolicy

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.rollouts.base_env import task_env_spec

INFO = replace(HalvingPolicy().info, image_channels=3, image_size=(4, 4))
ARM = Stage2Config(env_id="arm", env_family="strange_worlds:Robots")


def test_a_policy_that_knows_its_image_size_steers_a_family_without_such_a_setting():
    spec = task_env_spec(INFO, ARM)
    assert (spec.obs_mode, spec.image_size) == ("rgb", None)


@pytest.mark.usefixtures("maniskill")
def test_a_family_with_an_image_size_is_given_the_policys():
    assert task_env_spec(INFO, Stage2Config(env_id="PickCube-v1", env_family="maniskill")).image_size == (4, 4)


def test_an_image_size_that_is_not_the_policys_is_refused():
    with pytest.raises(InputError, match=r"image_size: expected \(4, 4\) as the base policy was trained with"):
        task_env_spec(INFO, replace(ARM, image_size=(8, 8)))
