"""An environment of somebody's family that breaks the contract is refused when it is first made, in one line."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text

from dsrl_offpolicy.envs.family import EnvFamily
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import inspect_env
from dsrl_offpolicy.errors import InputError

STATE, ACTIONS = Box(-9, 9, (2,), np.float32), Box(-1, 1, (2,), np.float32)
IMAGES = Box(0, 255, (4, 4, 3), np.uint8)
SENTENCE = "a mapping with it under 'state'"


class Plain(gym.Env):
    """Of any spaces; observes what it is told to."""

    def __init__(self, space: gym.Space = STATE, obs: Any = None, actions: gym.Space = ACTIONS) -> None:
        self.observation_space, self.action_space = space, actions
        self.obs = space.sample() if obs is None else obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return self.obs, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.obs, 0.0, False, False, {}


class Deaf(Plain):
    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise RuntimeError("no\ncamera")


MADE: dict[str, tuple[Any, list[str]]] = {
    "no environment": (lambda: None, ["gymnasium.Env", "NoneType", SENTENCE]),
    "no state": (lambda: Plain(Dict({"rgb": IMAGES})), ["state vector", SENTENCE]),
    "a matrix": (lambda: Plain(Box(-1, 1, (2, 2), np.float32)), ["state vector", "(2, 2)", SENTENCE]),
    "whole numbers": (lambda: Plain(Box(0, 9, (2,), np.int64)), ["state vector", "int64", SENTENCE]),
    "images of floats": (
        lambda: Plain(Dict({"state": STATE, "rgb": Box(0, 1, (4, 4, 3), np.float32)})),
        ["images under 'rgb'", "float32", SENTENCE],
    ),
    "buttons": (lambda: Plain(actions=Discrete(3)), ["vector of actions", "Discrete(3)", SENTENCE]),
    "wide actions": (lambda: Plain(actions=Box(-5, 5, (2,), np.float32)), ["[-1, 1]", "5.0", SENTENCE]),
    "another length": (lambda: Plain(obs=np.zeros(3, np.float32)), ["[2] under 'state'", "got [3]"]),
    "another key": (
        lambda: Plain(Dict({"state": STATE}), {"stat": np.zeros(2, np.float32)}),
        ["observation of its space", "'stat'"],
    ),
    "a mapping where none was said": (
        lambda: Plain(obs={"state": np.zeros(2, np.float32)}),
        ["observation of its space", "'state'"],
    ),
    "a raise": (Deaf, ["make, reset and step", "RuntimeError: no camera", "test_env_contract.py, line"]),
}


class Broken(EnvFamily):
    def tasks(self) -> list[str]:
        return [*MADE, "fine"]

    def make(self, spec: EnvSpec) -> gym.Env:
        return MADE[spec.env_id][0]() if spec.env_id in MADE else Plain(Dict({"state": STATE, "said": Text(9)}))


def _spec(env_id: str, **settings: Any) -> EnvSpec:
    return EnvSpec(env_id, env_family=f"{__name__}:Broken", reward_mode="dense", max_episode_steps=9, **settings)


@pytest.mark.parametrize("env_id", MADE)
def test_a_breach_is_refused_in_one_line(env_id):
    with pytest.raises(InputError) as error:
        inspect_env(_spec(env_id))
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"env_id: {env_id}: "), message
    assert all(word in message for word in MADE[env_id][1]), message


def test_two_methods_make_a_family_and_its_name_is_where_it_stands():
    facts = inspect_env(_spec("fine"))
    assert (facts.state_dim, facts.action_dim, facts.max_episode_steps) == (2, 2, 9)
    with pytest.raises(InputError, match=f"environments of {__name__}:Broken have no such setting"):
        inspect_env(_spec("fine", control_mode="pd_joint_pos"))
