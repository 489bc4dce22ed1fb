"""Real simulators behind one face: starts, time limits, rewards, success, and what cannot be steered."""

from __future__ import annotations

import importlib.util

import gymnasium as gym
import numpy as np
import pytest

from dsrl_offpolicy.demos.makers.imperfection import Imperfection
from dsrl_offpolicy.demos.makers.metaworld import ScriptedExpert
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import inspect_env, make_env
from dsrl_offpolicy.errors import InputError

TASK = "lever-pull-v3"
FLAWLESS = Imperfection(0.0, 0.0, 0.0, (0.0, 0.0, 0.0), False)


@pytest.fixture(scope="module")
def lever():
    env = make_env(EnvSpec(TASK))
    yield env
    env.close()


def _expert_episode(env: gym.Env, seed: int, steps: int = 200) -> list[tuple]:
    expert = ScriptedExpert(TASK, FLAWLESS, np.random.default_rng(0))
    obs, _ = env.reset(seed=seed)
    rows = []
    while len(rows) < steps:
        obs, *rest = env.step(expert.act(obs))
        rows.append(tuple(rest))
        if rest[1] or rest[2]:
            break
    return rows


def _succeeding_episode(env: gym.Env, steps: int = 200) -> list[tuple]:
    for seed in range(5):
        rows = _expert_episode(env, seed, steps)
        if any(info["success"] for *_, info in rows):
            return rows
    raise AssertionError("the flawless expert succeeded on none of 5 starts")


def test_same_reset_seed_is_the_same_start_and_another_seed_another(lever):
    first, _ = lever.reset(seed=11)
    for _ in range(5):
        lever.step(np.ones(4, np.float32))
    other, _ = lever.reset(seed=12)
    again, _ = lever.reset(seed=11)
    assert np.array_equal(first, again)
    assert not np.allclose(first[4:7], other[4:7])  # where the lever stands
    elsewhere = make_env(EnvSpec(TASK))
    assert np.array_equal(elsewhere.reset(seed=11)[0], first)  # in another environment too


def test_starts_are_more_than_the_fifty_of_the_benchmark(lever):
    starts = {tuple(lever.reset(seed=seed)[0][4:7].round(6)) for seed in range(60)}
    assert len(starts) == 60


def test_metaworld_looks_like_any_env(lever):
    obs, _ = lever.reset(seed=0)
    assert obs.dtype == np.float32 and obs.shape == (39,)
    assert np.all(lever.action_space.low == -1) and np.all(lever.action_space.high == 1)
    facts = inspect_env(EnvSpec(TASK))
    assert (facts.state_dim, facts.action_dim, facts.max_episode_steps) == (39, 4, 500)


def test_the_simulators_time_limit_truncates_and_does_not_terminate(lever):
    lever.reset(seed=0)
    ends = []
    for _ in range(500):
        *_, terminated, truncated, _ = lever.step(np.zeros(4, np.float32))
        ends.append((terminated, truncated))
    assert ends == [(False, False)] * 499 + [(False, True)]


def test_a_shorter_time_limit_truncates_on_its_step():
    env = make_env(EnvSpec(TASK, max_episode_steps=7))
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(7)]
    assert ends == [(False, False)] * 6 + [(False, True)]


def test_sparse_reward_is_minus_one_until_the_success_that_terminates(lever):
    rows = _succeeding_episode(lever)
    assert [r for r, *_ in rows] == [-1.0] * (len(rows) - 1) + [0.0]
    assert [info["success"] for *_, info in rows] == [False] * (len(rows) - 1) + [True]
    assert [t for _, t, *_ in rows] == [False] * (len(rows) - 1) + [True]
    assert not any(truncated for _, _, truncated, _ in rows)


def test_success_does_not_end_the_episode_where_it_is_told_not_to():
    env = make_env(EnvSpec(TASK, end_on_success=False, reward_scale=0.25))
    rows = _succeeding_episode(env, steps=120)
    assert len(rows) == 120 and not any(terminated for _, terminated, *_ in rows)
    assert {(info["success"], reward) for reward, *_, info in rows} == {(False, -0.25), (True, 0.0)}


def test_dense_reward_is_the_simulators_own_times_the_scale():
    env = make_env(EnvSpec(TASK, reward_mode="dense", reward_scale=0.5, end_on_success=False))
    simulator = env.unwrapped
    original, told = simulator.step, []

    def listen(action):
        result = original(action)
        told.append(float(result[1]))
        return result

    simulator.step = listen
    given = [reward for reward, *_ in _expert_episode(env, seed=3, steps=40)]
    assert len(set(told)) > 10  # it varies
    assert given == pytest.approx([0.5 * r for r in told])


def test_any_gymnasium_env_has_its_actions_rescaled_to_one():
    env, raw = make_env(EnvSpec("Pendulum-v1", reward_mode="dense")), gym.make("Pendulum-v1")
    assert np.all(env.action_space.low == -1) and np.all(env.action_space.high == 1)
    obs, _ = env.reset(seed=3)
    assert np.allclose(obs, raw.reset(seed=3)[0])
    for action in (1.0, -0.5):
        obs, reward, *_, info = env.step(np.array([action], np.float32))
        raw_obs, raw_reward, *_ = raw.step(np.array([2 * action], np.float32))  # torque in [-2, 2]
        assert np.allclose(obs, raw_obs) and reward == pytest.approx(raw_reward)
        assert info["success"] is False
    assert inspect_env(EnvSpec("Pendulum-v1", reward_mode="dense")).max_episode_steps == 200


class _DictEnv(gym.Env):
    observation_space = gym.spaces.Dict(
        {"b": gym.spaces.Box(-9, 9, (2,), np.float64), "a": gym.spaces.Box(-9, 9, (1,), np.float64)}
    )
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return {"b": np.array([2.0, 3.0]), "a": np.array([1.0])}, {}

    def step(self, action):
        return {"b": np.array([5.0, 6.0]), "a": np.array([4.0])}, 0.5, False, False, {"is_success": np.True_}


class _UnboundedEnv(_DictEnv):
    observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


class _ImageEnv(_DictEnv):
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def registered():
    entries = {"TestDict-v0": _DictEnv, "TestUnbounded-v0": _UnboundedEnv, "TestImage-v0": _ImageEnv}
    for name, entry in entries.items():
        gym.register(name, entry_point=entry)
    yield
    for name in entries:
        gym.registry.pop(name)


@pytest.mark.usefixtures("registered")
def test_dict_observations_are_flattened_in_the_order_of_the_space():
    env = make_env(EnvSpec("TestDict-v0"))
    order = list(env.unwrapped.observation_space)  # gymnasium sorts the keys of a Dict space
    assert order == ["a", "b"]
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.float32 and obs.tolist() == [1, 2, 3]
    obs, reward, terminated, _, info = env.step(np.zeros(1, np.float32))
    assert obs.tolist() == [4, 5, 6]
    assert (reward, terminated, info["success"]) == (0.0, True, True)  # is_success counts as success


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (EnvSpec("lever-pul-v3"), ["env_id", "'lever-pul-v3'", "did you mean lever-pull-v3?"]),
        (EnvSpec("Pendulm-v1"), ["env_id", "did you mean Pendulum-v1?"]),
        (EnvSpec("LiftPegUprigth-v9"), ["env_id", "'LiftPegUprigth-v9'"]),
        (EnvSpec("not an id"), ["env_id", "not an id"]),
        (EnvSpec("no_such_module:Foo-v0"), ["env_id", "no_such_module:Foo-v0"]),
        (EnvSpec("Ant-v2", reward_mode="dense"), ["env_id", "Ant-v2"]),  # moved out of gymnasium
        (EnvSpec("CartPole-v1", reward_mode="dense"), ["env_id", "Box action", "Discrete(2)"]),
        (EnvSpec("FrozenLake-v1", reward_mode="dense"), ["env_id", "state vectors", "Discrete(16)"]),
        (EnvSpec("TestImage-v0"), ["env_id", "state vectors", "(8, 8, 3)"]),
        (EnvSpec("TestUnbounded-v0"), ["env_id", "bounded actions"]),
        (EnvSpec("Pendulum-v1"), ["reward_mode", "dense", "Pendulum-v1", "sparse"]),
        (EnvSpec(TASK, max_episode_steps=501), ["max_episode_steps", "500", "501"]),
    ],
    ids=lambda value: f"{value.env_id}-{value.reward_mode}" if isinstance(value, EnvSpec) else "",
)
def test_what_cannot_be_steered_is_refused_in_one_line(spec, words):
    with pytest.raises(InputError) as error:
        inspect_env(spec)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_env_whose_simulator_is_not_installed_is_refused_in_one_line():
    if importlib.util.find_spec("Box2D") is not None:
        pytest.skip("Box2D is installed here")
    with pytest.raises(InputError, match="LunarLanderContinuous-v3") as error:
        inspect_env(EnvSpec("LunarLanderContinuous-v3", reward_mode="dense"))
    assert "\n" not in str(error.value)
