"""The latent MDP as a Gymnasium environment: its numbers, its ends, and the checkers of others."""

from __future__ import annotations

import multiprocessing
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv
from small_worlds import CountingEnv, counting_spec
from tiny_worlds import HalvingPolicy, counting_vector

from dsrl_offpolicy import make_latent_env
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError, NonFiniteError
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.rollouts.latent_env import LatentEnv, LatentVectorEnv
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED

GAMMA = 0.5
WORLD = "latent_worlds:Reach-v0"


def _latent_env(envs, kind=LatentVectorEnv, mode="full", policy=None):
    policy = policy or HalvingPolicy()  # frames of 2, chunks of 2 of 4 rows, decodes to half the latent
    layout = LatentLayout(mode, *policy.info.latent_shape, policy.info.executed_rows, 2.0)
    return kind(counting_vector(envs, counting_spec(gamma=GAMMA)), policy, layout, gamma=GAMMA), policy


def _zeros(env: LatentVectorEnv) -> np.ndarray:
    return np.zeros(env.action_space.shape, np.float32)


def test_a_step_is_a_macro_step_of_the_decoded_latent():
    world = CountingEnv(success_at=[1])
    env, _ = _latent_env([world], LatentEnv)
    features, _ = env.reset(seed=7)
    assert features.tolist() == [7, 0, 7, 0] and features.dtype == np.float32  # frames [seed, step], flattened
    features, reward, terminated, truncated, info = env.step(np.array([0.1, 0.2, 0.3, 2.0], np.float32))
    assert world.actions == [[0.1], [0.15]]  # rows 1 and 2 of half the latent
    assert features.tolist() == [7, 1, 7, 2]
    assert reward == 1 + GAMMA * 2  # step k brings reward k
    assert (terminated, truncated) == (False, False)
    assert (info["n_steps"], info["discount"]) == (2, GAMMA**2)
    assert (info["success"], info["success_once"], info["is_success"]) == (False, True, True)
    assert (info["episode_return"], info["episode_length"], info["lost"]) == (3, 2, False)
    assert env.discount == GAMMA**2


@pytest.mark.parametrize(
    ("how", "ends", "discount"),
    [("terminate_at", (True, False), 0.0), ("truncate_at", (False, True), GAMMA**1)],
)
def test_an_end_inside_a_chunk_cuts_it_short(how, ends, discount):
    env, _ = _latent_env([CountingEnv(**{how: 3})], LatentEnv)
    env.reset(seed=7)
    env.step(np.zeros(4))
    features, reward, terminated, truncated, info = env.step(np.zeros(4))
    assert (terminated, truncated) == ends
    assert (reward, info["n_steps"], info["discount"]) == (3, 1, discount)
    assert features.tolist() == [7, 2, 7, 3]  # the true last observation


def test_an_ended_episode_is_reset_in_the_same_step_and_only_that_one():
    short, long = CountingEnv(truncate_at=3), CountingEnv()
    env, _ = _latent_env([short, long])
    env.reset(seed=7)
    *_, info = env.step(_zeros(env))
    assert "final_obs" not in info
    features, reward, _, truncated, info = env.step(_zeros(env))
    assert truncated.tolist() == [True, False]
    assert reward.tolist() == [3, 3 + GAMMA * 4]
    assert info["_final_obs"].tolist() == [True, False]
    assert info["final_obs"][0].tolist() == [7, 2, 7, 3]
    assert info["final_info"]["n_steps"].tolist() == [1, 2] and info["n_steps"].tolist() == [1, 2]
    assert features.tolist() == [[short.episode, 0, short.episode, 0], [8, 3, 8, 4]]
    assert long.resets == 1 and env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


def test_starts_are_those_of_the_seed_and_otherwise_no_evaluations():
    world = CountingEnv()
    env, _ = _latent_env([world], LatentEnv)
    env.reset(seed=FIRST_EVALUATION_SEED + 3)
    assert world.episode == FIRST_EVALUATION_SEED + 3
    drawn = []
    for _ in range(20):
        env.reset()
        drawn.append(world.episode)
    assert max(drawn) < FIRST_EVALUATION_SEED and len(set(drawn)) == 20


def test_rows_that_are_not_steered_come_from_the_squashed_prior():
    decoded = []
    for _ in range(2):
        env, policy = _latent_env([CountingEnv()], LatentEnv, mode="act_horizon")
        assert env.action_space.shape == (2,)
        env.reset(seed=3)
        env.step(np.array([1.0, -1.0], np.float32))
        decoded.append(policy.decoded[0][0, :, 0])
    assert decoded[0][1:3].tolist() == [1.0, -1.0]
    assert decoded[0].abs().max() < 2 and decoded[0][0] != decoded[0][3] != 0
    assert torch.equal(*decoded)  # of the seed


def _losing(env):
    """Environments; the first loses its process in the second step, told as by ``ProcessVectorEnv``."""
    step_wait, steps = env.step_wait, iter([False, True])

    def lossy():
        obs, reward, terminated, truncated, info = step_wait()
        lost = np.array([next(steps), False])
        if lost.any():
            obs, _ = env.reset(seed=[99, None], options={"reset_mask": lost})
            info = {name: np.where(lost, 0, value) for name, value in info.items() if not name.startswith("_")}
        return obs, np.where(lost, 0, reward), terminated, truncated, {**info, "lost": lost}

    env.step_wait = lossy
    return env


def test_a_lost_macro_step_is_a_truncation_where_it_began():
    inner = counting_vector([CountingEnv(), CountingEnv()], counting_spec(gamma=GAMMA))
    layout = LatentLayout("full", 4, 1, slice(1, 3), 2.0)
    env = LatentVectorEnv(_losing(inner), HalvingPolicy(), layout, gamma=GAMMA)
    env.reset(seed=7)
    env.step(_zeros(env))
    features, reward, terminated, truncated, info = env.step(_zeros(env))
    assert info["lost"].tolist() == truncated.tolist() == [True, False] and not terminated.any()
    assert (reward[0], info["n_steps"][0], info["discount"][0]) == (0, 0, 1)
    assert info["final_obs"].tolist() == [[7, 1, 7, 2], [8, 3, 8, 4]]  # slot 0: where the lost step began
    assert features[0, 0] not in (7, 99) and features[0, 1] == 0  # a new episode


@pytest.mark.parametrize(
    "action", [np.full(4, 2.1), np.full(4, np.nan), np.zeros(3)], ids=["beyond", "nan", "of another length"]
)
def test_an_action_outside_of_the_space_is_refused(action):
    env, policy = _latent_env([CountingEnv()], LatentEnv)
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"action: expected latents of shape \(1, 4\) within \+-2, got"):
        env.step(action)
    env.step(np.full(4, 2.0 + 1e-6))  # rounding is not refused
    assert len(policy.decoded) == 1


def test_actions_that_are_not_finite_are_not_sent():
    class Broken(HalvingPolicy):
        def decode(self, encoding, latent):
            return super().decode(encoding, latent) * torch.nan

    world = CountingEnv()
    env, _ = _latent_env([world], LatentEnv, policy=Broken())
    env.reset(seed=0)
    with pytest.raises(NonFiniteError, match="finite actions"):
        env.step(np.zeros(4))
    assert world.steps == 0


@pytest.fixture
def single():
    env = make_latent_env("tiny_worlds:HalvingPolicy", WORLD)
    yield env
    env.close()


def test_gymnasium_finds_nothing_wrong(single):
    with warnings.catch_warnings(record=True) as told:
        check_env(single, skip_render_check=True)
    said = [str(warning.message) for warning in told]
    assert all("infinity" in text or "different seed" in text or "spec" in text for text in said), said


def test_stable_baselines_finds_nothing_wrong(single):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="needs the extra sb3")
    with warnings.catch_warnings(record=True) as told:
        checker.check_env(single)
    assert all("normalized" in str(warning.message) for warning in told)


def test_several_are_a_vector_environment_whose_processes_end_with_it():
    before = set(multiprocessing.active_children())
    spec = EnvSpec(WORLD, obs_horizon=1, act_horizon=1, gamma=0.9)
    env = make_latent_env(HalvingPolicy(), spec, 2, steer_mode="repeat", action_magnitude=1.5, max_episode_steps=3)
    processes = set(multiprocessing.active_children()) - before
    assert isinstance(env, VectorEnv) and len(processes) == 2
    assert env.single_action_space.shape == (1,) and env.single_action_space.high[0] == 1.5
    assert env.single_observation_space.shape == (4,)  # horizons are the policy's
    features, _ = env.reset(seed=[1, 2])
    assert features.tolist() == [[0, 1, 0, 1], [0, -1, 0, -1]]
    _, reward, terminated, truncated, info = env.step(np.array([[1.0], [-1.0]], np.float32))
    assert reward.tolist() == [-1 - 0.9] * 2 and not (terminated | truncated).any()
    *_, truncated, info = env.step(np.array([[1.0], [-1.0]], np.float32))
    assert truncated.all() and info["n_steps"].tolist() == [1, 1] and info["discount"].tolist() == [0.9, 0.9]
    env.close()
    assert not processes & set(multiprocessing.active_children())


@pytest.mark.parametrize(
    ("world", "settings", "says"),
    [
        ("latent_worlds:Reech-v0", {}, "env_id: expected an id that latent_worlds registers, got 'Reech-v0'"),
        (WORLD, {"gama": 0.9}, "unknown setting 'gama'; did you mean gamma?"),
        (WORLD, {"reward_mode": "spars"}, "reward_mode: expected sparse, dense, normalized_dense, got 'spars'"),
        (WORLD, {"obs_mode": "rgb"}, "obs_mode: expected state as the base policy was trained with, got rgb"),
        (WORLD, {"action_magnitude": 0.0}, "action_magnitude: expected a number > 0.*, got 0"),
        (WORLD, {"num_envs": 0}, "num_envs: expected a whole number >= 1, got 0"),
        ("Pendulum-v1", {"reward_mode": "dense"}, "expected 3 state dimensions for Pendulum-v1, got 2"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(world, settings, says):
    with pytest.raises(InputError, match=says) as error:
        make_latent_env(HalvingPolicy(), world, **settings)
    assert "\n" not in str(error.value)


def test_a_policy_that_is_none_is_named():
    with pytest.raises(InputError, match=r"base_policy: .*no\.pt does not exist"):
        make_latent_env("no.pt", WORLD)


def test_horizons_of_a_spec_give_way_to_the_policys():
    policy = HalvingPolicy()
    policy.info = replace(policy.info, executed_rows=slice(1, 4))
    env = make_latent_env(policy, EnvSpec(WORLD))
    try:
        env.reset(seed=1)
        assert env.step(np.zeros(4, np.float32))[4]["n_steps"] == 3
    finally:
        env.close()
