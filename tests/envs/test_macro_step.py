"""One chunk, run correctly: rewards by hand, ends in the middle of a chunk, frame stacks."""

from __future__ import annotations

import numpy as np
import pytest
from small_worlds import CountingEnv, counting_spec

from dsrl_offpolicy.envs.macro_step import MacroStepEnv, read_news


def _chunk(rows: int) -> np.ndarray:
    return np.linspace(-0.9, 0.9, rows, dtype=np.float32)[:, None]


def test_reward_is_discounted_per_env_step_inside_the_chunk():
    env = MacroStepEnv(CountingEnv(), counting_spec(act_horizon=3))
    env.reset(seed=0)
    _, reward, *_, info = env.step(_chunk(3))
    assert reward == pytest.approx(1 + 0.5 * 2 + 0.25 * 3)  # = 2.75
    assert info["n_steps"] == 3
    _, reward, *_, info = env.step(_chunk(3))
    assert reward == pytest.approx(4 + 0.5 * 5 + 0.25 * 6)  # = 8: gamma^0 belongs to the chunk's first step
    assert info["episode_return"] == pytest.approx(1 + 2 + 3 + 4 + 5 + 6)  # undiscounted
    assert info["episode_length"] == 6


def test_every_row_of_the_chunk_is_executed_in_order():
    counting = CountingEnv()
    env = MacroStepEnv(counting, counting_spec(act_horizon=3))
    env.reset(seed=0)
    env.step(_chunk(3))
    assert counting.actions == [[-0.9], [0.0], [0.9]]


@pytest.mark.parametrize("how", ["terminate_at", "truncate_at"])
def test_chunk_is_cut_short_where_the_episode_ends(how):
    counting = CountingEnv(**{how: 2})
    env = MacroStepEnv(counting, counting_spec(act_horizon=3))
    env.reset(seed=7)
    obs, reward, terminated, truncated, info = env.step(_chunk(3))
    assert info["n_steps"] == 2
    assert reward == pytest.approx(1 + 0.5 * 2)  # the third row was never executed
    assert (terminated, truncated) == (how == "terminate_at", how == "truncate_at")
    assert counting.steps == 2 and counting.resets == 1
    assert obs.tolist() == [[7, 1], [7, 2]]  # the true last frames, nothing of a next episode


def test_termination_and_truncation_on_the_same_step_are_both_told():
    env = MacroStepEnv(CountingEnv(terminate_at=1, truncate_at=1), counting_spec())
    env.reset(seed=0)
    *_, terminated, truncated, _ = env.step(_chunk(2))
    assert terminated and truncated


@pytest.mark.parametrize(("how", "flags"), [("terminate_at", (True, False)), ("truncate_at", (False, True))])
def test_an_ended_episode_stands_still_until_reset(how, flags):
    counting = CountingEnv(**{how: 2})
    env = MacroStepEnv(counting, counting_spec(act_horizon=2))
    env.reset(seed=7)
    last, *_ = env.step(_chunk(2))
    obs, reward, terminated, truncated, info = env.step(_chunk(2))  # CountingEnv raises if it is stepped
    assert np.array_equal(obs, last)
    assert (reward, info["n_steps"], info["episode_length"]) == (0.0, 0, 2)
    assert (terminated, truncated) == flags
    env.reset(seed=8)
    *_, terminated, truncated, info = env.step(_chunk(1))
    assert (terminated, truncated, info["n_steps"]) == (False, False, 1)


def test_reset_fills_the_frame_stack_with_the_first_observation():
    env = MacroStepEnv(CountingEnv(), counting_spec(obs_horizon=3))
    obs, info = env.reset(seed=7)
    assert obs.tolist() == [[7, 0]] * 3
    assert info == {
        "n_steps": 0, "success": False, "success_once": False, "intervened": False, "episode_return": 0.0,
        "episode_length": 0,
    }  # fmt: skip
    obs, *_ = env.step(_chunk(2))
    assert obs.tolist() == [[7, 0], [7, 1], [7, 2]]  # oldest first
    obs, _ = env.reset(seed=8)
    assert obs.tolist() == [[8, 0]] * 3  # no frame of the episode before


def test_success_once_outlives_the_step_that_succeeded():
    env = MacroStepEnv(CountingEnv(success_at=[2]), counting_spec(act_horizon=3))
    env.reset(seed=0)
    *_, info = env.step(_chunk(3))
    assert (info["success"], info["success_once"]) == (False, True)  # the last env step, and any
    _, info = env.reset(seed=1)
    assert (info["success"], info["success_once"]) == (False, False)
    *_, info = env.step(_chunk(2))
    assert (info["success"], info["success_once"]) == (True, True)


def test_spaces_tell_chunk_and_frame_stack():
    env = MacroStepEnv(CountingEnv(), counting_spec(obs_horizon=3, act_horizon=5))
    assert env.action_space.shape == (5, 1)
    assert env.observation_space.shape == (3, 2)


def test_the_news_of_a_macro_step_say_what_is_experience_and_what_has_ended():
    info = {
        "lost": np.array([True, False, False, False]), "intervened": np.array([True, True, False, False]),
        "success_once": [0, 0, 1, 0], "episode_return": [-1, -2, -3, -4], "episode_length": [4, 5, 6, 7],
    }  # fmt: skip
    news = read_news(info, ended=np.array([False, False, True, False]))
    # The first was lost, and what was lost is no intervention besides; of the second somebody chose an action.
    assert news.kept.tolist() == [False, False, True, True]
    assert news.lost.tolist() == [True, False, False, False]
    assert news.intervened.tolist() == [False, True, False, False]
    assert news.finished == [(True, -3.0, 6)]
