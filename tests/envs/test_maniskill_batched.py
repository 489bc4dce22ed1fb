"""The batched environment: against the process adapter in a real simulation, and with several slots in a toy one.

No GPU is here: the real simulation is ManiSkill's batch of one on the CPU, and the freezing of ended slots is held
on a simulation of three points that speaks ManiSkill's interface.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from dsrl_offpolicy.envs.families.maniskill_batched import BatchedMacroStepEnv, make_batched_env
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_macro_env

pytestmark = [pytest.mark.maniskill, pytest.mark.usefixtures("maniskill")]


class Points(gym.Env):
    """E points on a line, moved by actions of width 1; the k-th succeeds at position k + 2. Starts come from the
    first seed, as in ManiSkill's batches."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = self.single_action_space
        self.position = torch.zeros(num_envs)
        self.goal = torch.arange(num_envs) + 2.0
        self._init_raw_obs = self._obs()
        self.single_observation_space = self.observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)
        self.seeds: list[Any] = []

    def _obs(self) -> torch.Tensor:
        return torch.stack((self.position, torch.arange(self.num_envs) * 1.0), dim=1)

    def reset(self, seed: Any = None, options: dict | None = None) -> tuple[torch.Tensor, dict]:
        self.seeds.append(seed)
        self.position[options["env_idx"]] = 0.0
        return self._obs(), {}

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.position = self.position + action[:, 0]
        success = self.position >= self.goal
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        return self._obs(), self.position.clone(), success.clone(), never, {"success": success}


SPEC = EnvSpec("Points", obs_horizon=2, act_horizon=3, gamma=0.5)
FORWARD = np.ones((3, 3, 1), np.float32)


def points(limit: int | None = None, **changes) -> BatchedMacroStepEnv:
    env = BatchedMacroStepEnv(Points(3), replace(SPEC, **changes), limit)
    env.reset(seed=[1, 2, 3])
    return env


def test_slots_end_by_themselves_inside_a_chunk():
    obs, reward, terminated, truncated, info = points().step(FORWARD)
    # Goals at 2, 3 and 4: the first succeeds with its second row, the second with its third, the third not yet.
    assert info["n_steps"].tolist() == [2, 3, 3]
    assert terminated.tolist() == [True, True, False] and not truncated.any()
    # -1, then 0 on success: -1; -1 - 0.5; -1 - 0.5 - 0.25.
    assert reward.tolist() == [-1.0, -1.5, -1.75]
    assert obs[:, :, 0].tolist() == [[1, 2], [2, 3], [2, 3]]  # the first slot's frames stopped at its end
    assert info["success_once"].tolist() == [True, True, False]


def test_an_ended_slot_changes_nothing_until_it_is_reset():
    env = points()
    before, *_ = env.step(FORWARD)
    frames = before.clone()
    obs, reward, terminated, _, info = env.step(FORWARD)
    assert info["n_steps"].tolist() == [0, 0, 1] and reward.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(obs[:2], frames[:2]) and terminated.all()
    obs, info = env.reset(seed=[9, None, None], options={"reset_mask": np.array([True, False, False])})
    assert obs[:, :, 0].tolist() == [[0, 0], [2, 3], [3, 4]]
    _, _, terminated, _, info = env.step(FORWARD)
    assert info["n_steps"].tolist() == [2, 0, 0] and info["episode_length"].tolist() == [2, 3, 4]
    assert env.simulator.base_env.seeds == [[1, 2, 3], [9, 9, 9]]


def test_time_limits_truncate_and_success_may_go_on():
    env = points(limit=4, end_on_success=False)
    env.step(FORWARD)
    _, reward, terminated, truncated, info = env.step(FORWARD)
    assert truncated.all() and not terminated.any() and info["n_steps"].tolist() == [1, 1, 1]
    assert reward.tolist() == [0, 0, 0]  # 4 is past every goal
    assert info["episode_return"].tolist() == [-1, -2, -3]


def test_dense_rewards_are_the_simulators_and_observations_do_not_alias():
    env = points(reward_mode="dense", reward_scale=2.0)
    first, _ = env.reset(seed=[1, 2, 3])
    kept = first.clone()
    _, reward, *_ = env.step(FORWARD)
    assert torch.equal(first, kept)
    # 2 * (1 + 0.5 * 2) for the slot that ends there; the others add 0.25 * 3.
    assert reward.tolist() == [4.0, 5.5, 5.5]


@pytest.mark.parametrize("obs_mode", ["state", "rgb"])
def test_a_batch_of_one_is_what_the_process_adapter_gives(obs_mode):
    spec = EnvSpec(
        "LiftPegUpright-v1", obs_mode=obs_mode, max_episode_steps=6, obs_horizon=2, act_horizon=4,
        sim_backend="physx_cpu",
    )  # fmt: skip
    batched, alone = make_batched_env(spec, 1), make_macro_env(spec)
    chunk = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 7)).astype(np.float32)
    try:
        assert batched.single_observation_space == alone.observation_space
        expected, _ = alone.reset(seed=5)
        found, _ = batched.reset(seed=[5])
        compare(found, expected)
        for n in (4, 2):
            expected, reward, terminated, truncated, info = alone.step(chunk)
            found, rewards, terminations, truncations, infos = batched.step(torch.as_tensor(chunk)[None])
            compare(found, expected)
            assert rewards.tolist() == pytest.approx([reward])
            assert (terminations.tolist(), truncations.tolist()) == ([terminated], [truncated])
            assert infos["n_steps"].tolist() == [n] == [info["n_steps"]]
        assert truncated
    finally:
        batched.close()
        alone.close()


def compare(found, expected) -> None:
    if not isinstance(expected, dict):
        found, expected = {"state": found}, {"state": expected}
    assert found.keys() == expected.keys()
    assert np.allclose(found["state"][0].numpy(), expected["state"], atol=1e-5)
    if "rgb" in expected:
        assert np.abs(found["rgb"][0].numpy().astype(int) - expected["rgb"]).mean() < 0.5
