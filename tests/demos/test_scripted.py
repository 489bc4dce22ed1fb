"""Scripted experts that err exactly as they are told to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsrl_offpolicy.demos.makers.imperfection import Imperfection
from dsrl_offpolicy.demos.makers.metaworld import ScriptedExpert
from dsrl_offpolicy.demos.makers.scripted import record_episode
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_env
from dsrl_offpolicy.errors import InputError

TASK = "lever-pull-v3"
FLAWLESS = Imperfection(0.0, 0.0, 0.0, (0.12, 0.0, 0.0), False)


@pytest.fixture(scope="module")
def record():
    env = make_env(EnvSpec(TASK, reward_mode="dense"))

    def step(action):
        obs, reward, terminated, truncated, info = env.step(action)
        return obs, float(reward), info["success"], terminated, truncated

    def run(imperfection, seed, max_steps=150):
        expert = ScriptedExpert(TASK, imperfection, np.random.default_rng(seed))
        return record_episode(env.reset(seed=seed)[0], step, expert, max_steps)

    return run


@pytest.fixture
def still_expert(monkeypatch):
    """The expert replaced by one that wants to stand still and remembers what it saw."""
    from metaworld.policies import ENV_POLICY_MAP

    class Still:
        seen: list[np.ndarray] = []  # noqa: RUF012

        def get_action(self, obs):
            self.seen.append(np.asarray(obs).copy())
            return np.zeros(4)

    monkeypatch.setitem(ENV_POLICY_MAP, TASK, Still)
    return Still


def _actions(imperfection, steps, seed=0):
    expert = ScriptedExpert(TASK, imperfection, np.random.default_rng(seed))
    return np.stack([expert.act(np.zeros(39, np.float32)) for _ in range(steps)])


def test_a_wrong_goal_fails_where_the_flawless_expert_succeeds(record):
    flawless = [record(FLAWLESS, seed) for seed in range(5)]
    misled = [record(replace(FLAWLESS, wrong_goal_prob=1.0), seed) for seed in range(5)]
    assert sum(t.succeeds for t in flawless) >= 4
    assert sum(t.succeeds for t in misled) <= sum(t.succeeds for t in flawless) - 3
    for trajectory in flawless:
        if trajectory.succeeds:  # recorded until the success, which terminates
            assert trajectory.success.tolist() == [False] * (len(trajectory) - 1) + [True]
            assert trajectory.terminated[-1] and not trajectory.truncated.any()


def test_an_episode_given_up_is_truncated_and_not_terminated(record):
    trajectory = record(FLAWLESS, 0, max_steps=10)
    assert len(trajectory) == 10 and len(trajectory.obs) == 11
    assert trajectory.truncated.tolist() == [False] * 9 + [True]
    assert not trajectory.terminated.any() and not trajectory.succeeds
    assert trajectory.actions.dtype == np.float32 and np.abs(trajectory.actions).max() <= 1


def test_same_generator_same_episode_and_another_another(record):
    noisy = replace(FLAWLESS, action_noise=0.3, noise_correlation=0.5, wrong_goal_prob=0.5)
    one, again, other = (record(noisy, seed, max_steps=30) for seed in (3, 3, 4))
    assert np.array_equal(one.actions, again.actions) and np.array_equal(one.obs, again.obs)
    assert not np.array_equal(one.actions, other.actions)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.usefixtures("still_expert")
def test_noise_has_the_configured_size_and_correlation(correlation):
    noise = _actions(replace(FLAWLESS, action_noise=0.1, noise_correlation=correlation), 20_000)
    noise = noise[100:]  # the process starts at 0
    assert noise.std(0) == pytest.approx([0.1] * 4, rel=0.08)  # 20,000 samples, fewer where correlated
    lag = [np.corrcoef(noise[1:, i], noise[:-1, i])[0, 1] for i in range(4)]
    assert lag == pytest.approx([correlation] * 4, abs=0.03)
    across = np.corrcoef(noise.T) - np.eye(4)
    assert np.abs(across).max() < 0.1  # dimensions err independently


@pytest.mark.usefixtures("still_expert")
def test_actions_stay_in_bounds_however_large_the_noise():
    assert np.abs(_actions(replace(FLAWLESS, action_noise=5.0), 200)).max() == 1.0


def test_a_wrong_goal_moves_only_the_object_and_for_the_whole_episode(still_expert):
    imperfection = replace(FLAWLESS, wrong_goal_prob=1.0, wrong_goal_offset=(0.1, 0.2, 0.3))
    expert = ScriptedExpert(TASK, imperfection, np.random.default_rng(0))
    obs = np.arange(39, dtype=np.float32)
    still_expert.seen.clear()
    for _ in range(3):
        expert.act(obs)
    for seen in still_expert.seen:
        assert seen[4:7] == pytest.approx([4.1, 5.2, 6.3])
        assert np.array_equal(np.delete(seen, [4, 5, 6]), np.delete(obs, [4, 5, 6]))
    assert np.array_equal(obs, np.arange(39))  # what is recorded is the truth


def test_wrong_goals_come_as_often_as_configured_and_mirrored_where_asked(still_expert):
    imperfection = replace(FLAWLESS, wrong_goal_prob=0.3, wrong_goal_mirror=True)
    rng, offsets = np.random.default_rng(0), []
    for _ in range(1000):
        still_expert.seen.clear()
        ScriptedExpert(TASK, imperfection, rng).act(np.zeros(39, np.float32))
        offsets.append(round(float(still_expert.seen[0][4]), 3))
    assert set(offsets) == {-0.12, 0.0, 0.12}
    wrong = [o for o in offsets if o]
    assert len(wrong) / 1000 == pytest.approx(0.3, abs=0.05)
    assert np.mean([o > 0 for o in wrong]) == pytest.approx(0.5, abs=0.1)


def test_a_task_without_an_expert_is_refused():
    with pytest.raises(InputError, match="'Pendulum-v1'"):
        ScriptedExpert("Pendulum-v1", FLAWLESS, np.random.default_rng(0))
