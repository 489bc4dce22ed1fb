"""Windows worked out by hand: padding on both sides, rewards, discounts, and what ends an episode."""

from __future__ import annotations

import numpy as np
import pytest

from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.demos.windows import WindowSpec, cut_windows, split_episodes, stack_states
from dsrl_offpolicy.errors import InputError

GAMMA = 0.5


def _trajectory(n=5, success_at=(), terminated_at=(), truncated_at=(), rewards=True, first=0):
    """Observation i is [first + i]; action i is [first + i + 1, -(first + i + 1)] / 100; reward i is i + 1."""
    steps = np.arange(n)
    values = (first + steps + 1) / 100
    return Trajectory(
        obs=(first + np.arange(n + 1, dtype=np.float32))[:, None],
        actions=np.stack([values, -values], 1).astype(np.float32),
        success=np.isin(steps, success_at),
        terminated=np.isin(steps, terminated_at),
        truncated=np.isin(steps, truncated_at),
        rewards=(steps + 1).astype(np.float32) if rewards else None,
    )


def _spec(**changes):
    values = {
        "obs_horizon": 2, "pred_horizon": 4, "act_horizon": 2, "gamma": GAMMA, "reward_mode": "dense",
        "reward_scale": 1.0, "end_on_success": True,
    }  # fmt: skip
    return WindowSpec(**{**values, **changes})


def _hundredths(chunk: np.ndarray) -> list[list[int]]:
    return np.rint(100 * chunk).astype(int).tolist()


def test_every_step_of_every_trajectory_is_a_window():
    windows = cut_windows([_trajectory(5), _trajectory(3, first=10)], "pd_ee_delta_pos", _spec())
    assert len(windows) == 8
    assert windows.episode.tolist() == [0] * 5 + [1] * 3
    assert windows.rows.shape == (8, 2) and windows.chunks.shape == (8, 4, 2)


def test_on_the_left_the_first_observation_and_action_repeat():
    windows = cut_windows([_trajectory()], "pd_ee_delta_pos", _spec())
    assert windows.rows[:3].tolist() == [[0, 0], [0, 1], [1, 2]]
    assert _hundredths(windows.chunks[0]) == [[1, -1], [1, -1], [2, -2], [3, -3]]  # row o-1 = 1 is action 0
    assert _hundredths(windows.chunks[1]) == [[1, -1], [2, -2], [3, -3], [4, -4]]


def test_on_the_right_delta_control_gets_zeros_and_the_last_gripper_command():
    windows = cut_windows([_trajectory()], "pd_ee_delta_pose", _spec())
    assert _hundredths(windows.chunks[3]) == [[3, -3], [4, -4], [5, -5], [0, -5]]
    assert _hundredths(windows.chunks[4]) == [[4, -4], [5, -5], [0, -5], [0, -5]]


def test_on_the_right_other_control_gets_the_last_action():
    windows = cut_windows([_trajectory()], "pd_joint_pos", _spec())
    assert _hundredths(windows.chunks[4]) == [[4, -4], [5, -5], [5, -5], [5, -5]]


def test_padding_does_not_change_the_trajectory_itself():
    trajectory = _trajectory()
    before = trajectory.actions.copy()
    cut_windows([trajectory], "pd_ee_delta_pose", _spec())
    assert np.array_equal(trajectory.actions, before)


def test_reward_and_discount_of_whole_and_of_cut_chunks():
    windows = cut_windows([_trajectory(5)], "pd_ee_delta_pos", _spec())
    assert windows.reward.tolist() == [1 + 0.5 * 2, 2 + 0.5 * 3, 3 + 0.5 * 4, 4 + 0.5 * 5, 5]
    assert windows.discount.tolist() == [0.25, 0.25, 0.25, 0.25, 0.5]  # gamma^n, n = 1 for the last
    assert windows.next_rows.tolist() == [[1, 2], [2, 3], [3, 4], [4, 5], [4, 5]]


def test_three_step_chunks():
    windows = cut_windows([_trajectory(4)], "pd_ee_delta_pos", _spec(obs_horizon=1, act_horizon=3))
    assert windows.reward.tolist() == [1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2, 4]
    assert windows.discount.tolist() == [0.125, 0.125, 0.25, 0.5]
    assert windows.rows[:, 0].tolist() == [0, 1, 2, 3]
    assert windows.next_rows[:, 0].tolist() == [3, 4, 4, 4]
    assert _hundredths(windows.chunks[0])[0] == [1, -1]  # o = 1: row 0 is the action of this step


def test_termination_has_no_bootstrap_and_truncation_keeps_it():
    terminated = cut_windows([_trajectory(3, terminated_at=[2])], "pd_ee_delta_pos", _spec())
    assert terminated.discount.tolist() == [0.25, 0, 0]  # windows 1 and 2 reach the last step
    truncated = cut_windows([_trajectory(3, truncated_at=[1, 2])], "pd_ee_delta_pos", _spec())
    assert truncated.discount.tolist() == [0.25, 0.25, 0.5]


def test_rows_index_the_frames_of_all_trajectories():
    # Trajectory 0 (2 steps) has frames 0, 1, 2 in rows 0, 1, 2; trajectory 1 (3 steps) frames 10..13 in rows 3..6.
    # Windows of 2 frames start at t = 0, 1 and t = 0, 1, 2; on the left each trajectory's own first row repeats.
    trajectories = [_trajectory(2), _trajectory(3, first=10)]
    windows = cut_windows(trajectories, "pd_ee_delta_pos", _spec())
    assert len(stack_states(trajectories)) == 7
    assert stack_states(trajectories)[:, 0].tolist() == [0, 1, 2, 10, 11, 12, 13]
    assert windows.rows.tolist() == [[0, 0], [0, 1], [3, 3], [3, 4], [4, 5]]
    # H = 2: the next frames end at t + min(2, steps left) = 2, 2 and 2, 3, 3.
    assert windows.next_rows.tolist() == [[1, 2], [1, 2], [4, 5], [5, 6], [5, 6]]


def test_a_success_leaves_the_frames_after_it_in_the_table():
    # Trajectory 0 is cut after step 1, but its 6 frames stay: trajectory 1 starts at row 6.
    trajectories = [_trajectory(5, success_at=[1]), _trajectory(2, first=10)]
    windows = cut_windows(trajectories, "pd_ee_delta_pos", _spec())
    assert windows.rows.tolist() == [[0, 0], [0, 1], [6, 6], [6, 7]]
    assert len(stack_states(trajectories)) == 9


def test_a_time_limit_inside_a_demonstration_ends_nothing():
    # ManiSkill's recordings: truncated from the registered limit (here step 1) on, terminated while successful.
    trajectory = _trajectory(4, truncated_at=[1, 2, 3], terminated_at=[3])
    windows = cut_windows([trajectory], "pd_ee_delta_pose", _spec())
    assert len(windows) == 4
    assert windows.discount.tolist() == [0.25, 0.25, 0, 0]  # windows 2 and 3 reach step 3, no other ends anything
    assert windows.next_rows.tolist() == [[1, 2], [2, 3], [3, 4], [3, 4]]


def test_a_termination_inside_a_demonstration_ends_the_windows_that_reach_it():
    # Steps 1 and 3 of 5 terminate (a success lost and found again), and success does not cut the demonstration.
    # First termination from t on: 1, 1, 3, 3, none; n = min(2, that - t + 1) = 2, 1, 2, 1, and 1 (the last step).
    trajectory = _trajectory(5, terminated_at=[1, 3])
    windows = cut_windows([trajectory], "pd_ee_delta_pose", _spec(end_on_success=False))
    assert windows.next_rows[:, -1].tolist() == [2, 2, 4, 4, 5]
    assert windows.discount.tolist() == [0, 0, 0, 0, 0.5]
    assert windows.reward.tolist() == [1 + 0.5 * 2, 2, 3 + 0.5 * 4, 4, 5]  # nothing beyond a termination


def test_success_ends_and_terminates_the_demonstration():
    windows = cut_windows([_trajectory(6, success_at=[2, 3])], "pd_ee_delta_pos", _spec(reward_mode="sparse"))
    assert len(windows) == 3
    assert windows.reward.tolist() == [-1 - 0.5, -1 + 0, 0]
    assert windows.discount.tolist() == [0.25, 0, 0]
    assert _hundredths(windows.chunks[2]) == [[2, -2], [3, -3], [0, -3], [0, -3]]  # nothing after the success


def test_success_can_be_left_inside():
    spec = _spec(reward_mode="sparse", end_on_success=False, reward_scale=2.0)
    windows = cut_windows([_trajectory(4, success_at=[1])], "pd_ee_delta_pos", spec)
    assert windows.reward.tolist() == [-2 + 0, 0 - 1, -2 - 1, -2]
    assert windows.discount.tolist() == [0.25, 0.25, 0.25, 0.5]


def test_dense_rewards_are_scaled():
    windows = cut_windows([_trajectory(3)], "pd_ee_delta_pos", _spec(reward_scale=0.1))
    assert windows.reward.tolist() == pytest.approx([0.2, 0.35, 0.3])


def test_dense_rewards_that_are_not_there_are_refused():
    trajectories = [_trajectory(3, rewards=False)]
    assert len(cut_windows(trajectories, "", _spec(reward_mode="sparse"))) == 3
    with pytest.raises(InputError, match="rewards"):
        cut_windows(trajectories, "", _spec())


def test_more_rows_than_the_chunk_holds_are_refused():
    _spec(obs_horizon=2, pred_horizon=4, act_horizon=3)  # rows 1, 2, 3
    with pytest.raises(InputError, match=r"act_horizon.*3.*got 4"):
        _spec(obs_horizon=2, pred_horizon=4, act_horizon=4)
    with pytest.raises(InputError, match=r"act_horizon"):
        _spec(obs_horizon=1, pred_horizon=4, act_horizon=5)


def test_episodes_are_held_out_whole():
    trajectories = [_trajectory(3, first=10 * i) for i in range(5)]
    windows = cut_windows(trajectories, "", _spec())
    train, held_out = split_episodes(windows, 0.4)
    assert sorted(set(train.episode)) == [0, 1, 2] and sorted(set(held_out.episode)) == [3, 4]
    assert len(train) == 9 and len(held_out) == 6
    # 4 frames each: trajectory 3 starts at row 12 of the whole table, where its first observation is 30.
    assert held_out.rows[0].tolist() == [12, 12]
    assert stack_states(trajectories)[held_out.rows[0, -1], 0] == 30
    train, held_out = split_episodes(windows, 0.01)
    assert sorted(set(held_out.episode)) == [4]  # at least one
    train, held_out = split_episodes(windows, 0.99)
    assert sorted(set(train.episode)) == [0]  # and at least one to train on


def test_one_episode_cannot_be_split():
    with pytest.raises(InputError, match="2 episodes"):
        split_episodes(cut_windows([_trajectory(3)], "", _spec()), 0.1)


def test_a_success_that_ends_nothing_bootstraps_although_maniskill_recorded_a_termination():
    trajectory = _trajectory(3, success_at=[1, 2], terminated_at=[1, 2])
    windows = cut_windows([trajectory], "pd_ee_delta_pos", _spec(end_on_success=False))
    # gamma 0.5, H = 2: the windows at 0 and 1 take two steps, the last one step.
    assert windows.discount.tolist() == [0.25, 0.25, 0.5]
    assert cut_windows([trajectory], "pd_ee_delta_pos", _spec()).discount.tolist() == [0, 0]
