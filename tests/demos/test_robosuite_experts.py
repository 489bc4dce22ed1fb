"""The scripted experts of robosuite's Lift and Can: they succeed, and err as they are told to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.makers.imperfection import Imperfection
from dsrl_offpolicy.demos.makers.robosuite import WAYS, WaypointExpert

FLAWLESS = Imperfection(0.0, 0.0, 0.0, (0.1, 0.0, 0.0), False)
FLAGS = ["--action_noise", 0, "--demo_steps", 200]


def standing(place: list[float], thing: list[float]) -> np.ndarray:
    """A state whose hand is at ``place``, pointing down, and whose object is at ``thing``."""
    return np.concatenate((place, [1.0, 0, 0, 0], [0.02, -0.02], thing, np.zeros(7))).astype(np.float32)


@pytest.mark.parametrize("task", WAYS)
def test_the_hand_goes_above_the_object_open_and_no_further_than_it_may(task: str) -> None:
    expert = WaypointExpert(task, FLAWLESS, np.random.default_rng(0))
    action = expert.act(standing([0, 0, 1], [0.02, -1, 0.9]))
    # To (0.02, -1, 1): 1.5 * 0.02 / 0.05 = 0.6 in x, all of what is allowed in y, no turn, and -1 opens.
    assert action == pytest.approx([0.6, -1, 0, 0, 0, 0, -1], abs=1e-5) and action.dtype == np.float32


def test_a_wrong_goal_is_the_right_one_moved() -> None:
    wrong = Imperfection(0.0, 0.0, 1.0, (0.1, 0.0, 0.0), False)
    for imperfection, place in ((FLAWLESS, 0.0), (wrong, 0.1)):
        expert = WaypointExpert("robosuite:Lift", imperfection, np.random.default_rng(0))
        action = expert.act(standing([place, 0, 1], [0, 0, 0.9]))
        assert np.abs(action[:3]).max() < 1e-5  # it is already there


def test_a_turned_hand_is_turned_back() -> None:
    expert = WaypointExpert("robosuite:Lift", FLAWLESS, np.random.default_rng(0))
    expert.act(standing([0, 0, 1], [0, 0, 0.9]))
    turned = standing([0, 0, 1], [0, 0, 0.9])
    # About the world's z by 0.1: (0, 0, sin 0.05, cos 0.05) times (1, 0, 0, 0) is (cos 0.05, sin 0.05, 0, 0).
    turned[3:7] = [np.cos(0.05), np.sin(0.05), 0, 0]
    # Back by 0.1 of the 0.5 rad that an action of 1 asks for.
    assert expert.act(turned)[3:6] == pytest.approx([0, 0, -0.2], abs=1e-5)


def test_an_object_that_is_lost_is_grasped_again() -> None:
    expert = WaypointExpert("robosuite:Lift", FLAWLESS, np.random.default_rng(0))
    for place, steps in (([0, 0, 1], 1), ([0, 0, 0.9], 9)):  # above the object; at it, and closing
        actions = [expert.act(standing(place, [0, 0, 0.9])) for _ in range(steps)]
    assert actions[-1][6] == 1
    assert expert.act(standing([0, 0, 0.95], [0, 0, 0.9]))[6] == 1  # held, 5 cm off
    assert expert.act(standing([0, 0, 0.97], [0, 0, 0.9]))[6] == -1


def test_noise_is_on_the_arm_alone() -> None:
    noisy = Imperfection(0.3, 0.5, 0.0, (0.0, 0.0, 0.0), False)
    expert = WaypointExpert("robosuite:Lift", noisy, np.random.default_rng(0))
    state = standing([0, 0, 1], [0, 0, 0.9])
    actions = np.stack([expert.act(state) for _ in range(5)])
    assert (actions[:, :6].std(0) > 0.01).all()
    assert (actions[:, 6] == -1).all()


def test_without_robosuite_its_extra_is_named(
    run_command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "robosuite", None)
    done = run_command(["demos", "--env_id", "robosuite:Lift", "--out", tmp_path / "demos.h5"])
    assert done.status == 2 and "dsrl_offpolicy[robosuite]" in done.error_lines[-1]


def test_a_task_without_an_expert_is_answered_with_those_that_have_one(run_command: Callable) -> None:
    done = run_command(["demos", "--env_id", "robosuite:Square"])
    assert done.status == 2 and "robosuite:Lift, robosuite:Can" in done.error_lines[-1]


@pytest.mark.usefixtures("robosuite")
@pytest.mark.parametrize(("task", "width"), [("robosuite:Lift", 19), ("robosuite:Can", 23)])
def test_the_experts_succeed_and_fail_with_a_wrong_grasp(
    run_command: Callable, tmp_path: Path, task: str, width: int
) -> None:
    successes = []
    for name, wrong in (("right", 0), ("wrong", 1)):
        path = tmp_path / f"{name}.h5"
        argv = ["demos", "--env_id", task, "--out", path, "--episodes", 2, *FLAGS, "--wrong_goal_prob", wrong]
        done = run_command(argv)
        assert done.status == 0, done.err
        demos = read_demonstrations(path, need_rewards=True)
        assert (demos.env_id, demos.state_dim, demos.action_dim) == (task, width, 7) and demos.has_gripper
        successes.append([t.succeeds for t in demos.trajectories])
    assert successes == [[True, True], [False, False]]  # by default the grasp is 6 cm off
