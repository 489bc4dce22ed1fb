"""A robot with somebody beside it: what is sent, who chose it, and that a stop is one."""

from __future__ import annotations

import json
import os
import pty
import select
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from robot_worlds import Arm, back, strays

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.envs.family import family_of
from dsrl_offpolicy.envs.macro_step import MacroStepEnv
from dsrl_offpolicy.envs.robot import (
    Label,
    Limits,
    OperatedEnv,
    Operator,
    OperatorGone,
    RobotSetup,
    ScriptedOperator,
    TerminalOperator,
)
from dsrl_offpolicy.envs.robot.recording import Recording
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.success import SuccessReward
from dsrl_offpolicy.envs.vector import inspect_env, make_vector_env
from dsrl_offpolicy.errors import InputError

ONES = np.ones(4, np.float32)


class Silent(ScriptedOperator):
    """Never takes over. ``labels`` are given out one by one, ``asked`` holds why it was asked for a reset."""

    def __init__(self, labels: list[Label | None] | None = None) -> None:
        super().__init__(back, lambda obs: False)
        self.labels, self.asked = list(labels or []), []
        self.stop: Any = None

    def start(self, stop: Any) -> None:
        self.stop = stop

    def label(self) -> Label | None:
        return self.labels.pop(0) if self.labels else None

    def ready(self, reason: str) -> None:
        self.asked.append(reason)


def operated(
    operator: Operator, arm: Arm | None = None, recording: Recording | None = None, **values: Any
) -> OperatedEnv:
    class Setup(RobotSetup):
        limits = values.get("limits", Limits())
        hz = values.get("hz")

        def make_env(self) -> Arm:
            return arm or Arm()

        def make_operator(self) -> Operator:
            return operator

    setup = Setup()
    return OperatedEnv(setup.make_env(), setup, recording)


def arm_of(env: OperatedEnv) -> Arm:
    return env.unwrapped


def test_what_is_sent_keeps_within_the_limits() -> None:
    env = operated(Silent(), limits=Limits(low=-0.4, high=[1.0, 1.0, 1.0, 0.2], change=0.25))
    env.reset()
    for action in (ONES, 5 * ONES, -3 * ONES):
        env.step(action)
    # From 0 by at most 0.25 a step: 0.25, 0.5, 0.25; the last number ends at 0.2 and goes down from there.
    expected = [[0.25] * 3 + [0.2], [0.5] * 3 + [0.2], [0.25] * 3 + [-0.05]]
    np.testing.assert_allclose(arm_of(env).sent, expected, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_stops_the_arm(bad: float, capsys: pytest.CaptureFixture) -> None:
    env = operated(Silent())
    env.reset()
    *_, truncated, info = env.step(np.array([0, bad, 0, 0], np.float32))
    assert truncated and info["intervened"] and arm_of(env).sent == [] and arm_of(env).log[1] == "stop"
    assert "robot: stopped: an action that is not finite" in capsys.readouterr().err


def test_a_hand_that_leaves_the_workspace_stops_the_arm_and_nothing_more_is_sent() -> None:
    operator = Silent()
    env = operated(operator, limits=Limits(workspace=((-1.0, -1.0, -1.0), (0.25, 1.0, 1.0))))
    env.reset()
    ends = [env.step(ONES)[3] for _ in range(5)]
    # 0.1, 0.2, 0.3: outside after the third step.
    assert ends == [False, False, True, True, True] and len(arm_of(env).sent) == 3
    env.reset()
    assert "outside the workspace" in operator.asked[-1]
    env.step(ONES)
    assert len(arm_of(env).sent) == 4  # a confirmed reset lets it move again


def test_a_workspace_that_nobody_can_hold_a_hand_against_stops_the_arm() -> None:
    assert Limits().outside(None) == ""
    assert "no ee_pos" in Limits(workspace=((-1.0,) * 3, (1.0,) * 3)).outside(None)


def test_a_stop_from_another_thread_during_a_step_comes_after_its_command() -> None:
    operator, arm = Silent(), Arm(seconds=0.3)
    env = operated(operator, arm)
    env.reset()
    result: list[Any] = []
    stepping = threading.Thread(target=lambda: result.append(env.step(ONES)))
    stepping.start()
    operator.stop("I pressed it")
    stepping.join()
    assert isinstance(arm.log[-1], str) and env.step(ONES)[3]
    # Whether the command was on its way or not, nothing was sent after the last stop.
    assert len(arm.sent) <= 1 and arm.events[1:] == ["stop", "stop"]


def test_a_stop_while_the_operator_is_asked_asks_again() -> None:
    class Hasty(Silent):
        def ready(self, reason: str) -> None:
            super().ready(reason)
            if len(self.asked) == 1:
                self.stop("not yet")

    operator = Hasty()
    env = operated(operator)
    env.reset()
    assert operator.asked == ["a new session", "the arm was stopped: not yet"]
    assert arm_of(env).log == ["stop", "stop", "reset"]


@pytest.mark.parametrize(
    ("label", "success", "terminated", "truncated", "intervened"),
    [
        ("success", True, True, False, False),
        ("failure", False, True, False, False),
        ("discard", False, False, True, True),
    ],
)
def test_a_label_ends_the_episode(
    label: Label, success: bool, terminated: bool, truncated: bool, intervened: bool
) -> None:
    env = operated(Silent([None, label]))
    env.reset()
    assert env.step(ONES)[2:4] == (False, False)
    *_, was_terminated, was_truncated, info = env.step(ONES)
    assert (was_terminated, was_truncated) == (terminated, truncated)
    assert (info["success"], info["intervened"]) == (success, intervened)


def test_an_operator_who_leaves_stops_the_arm() -> None:
    class Leaves(Silent):
        def takeover(self, obs: Any, proposed: np.ndarray) -> np.ndarray | None:
            raise OperatorGone("the cable is out")

    env = operated(Leaves())
    env.reset()
    with pytest.raises(OperatorGone):
        env.step(ONES)
    assert arm_of(env).sent == [] and arm_of(env).log[-1] == "stop"


def heard(terminal: int, words: str) -> None:
    """Read what the operator's terminal shows until these words."""
    shown = ""
    while words not in shown:
        assert select.select([terminal], [], [], 60)[0], shown
        shown += os.read(terminal, 100).decode()


def test_keys_of_a_terminal_take_over_label_reset_and_stop() -> None:
    keyboard, terminal = pty.openpty()
    env = operated(TerminalOperator(device=os.ttyname(terminal)), Arm(limit=10**6))
    resetting = threading.Thread(target=env.reset)
    resetting.start()
    heard(keyboard, "press Enter")
    os.write(keyboard, b"s")
    heard(keyboard, "success comes too late")
    os.write(keyboard, b"\n")
    resetting.join()
    assert not env.step(ONES)[4]["intervened"]
    os.write(keyboard, b"t")
    heard(keyboard, "you have control")
    os.write(keyboard, b"k")
    while arm_of(env).sent[-1][0] >= 0:  # zeros until the key is heard
        assert env.step(ONES)[4]["intervened"]
    np.testing.assert_array_equal(arm_of(env).sent[-1], [-1, 0, 0, 0])
    os.write(keyboard, b"tf")
    heard(keyboard, "the policy has control")
    while not env.step(ONES)[2]:
        pass
    os.write(keyboard, b" ")
    while "stop" not in arm_of(env).events:  # also between steps
        pass
    assert env.step(ONES)[3]
    os.close(terminal)
    os.close(keyboard)
    with pytest.raises(OperatorGone, match="the terminal is closed"):
        env.reset()
    env.close()


def test_a_takeover_is_sent_told_and_recorded_with_what_the_policy_wanted(tmp_path: Path) -> None:
    path = tmp_path / "session.h5"
    recording = Recording(path, "robot:x:Y", "state")
    env = operated(ScriptedOperator(back, strays, rows=2), Arm(limit=7), recording)
    env.reset()
    told = [env.step(ONES)[4]["intervened"] for _ in range(7)]
    # Positions 0.1 .2 .3 .4: strays after the fourth step; back for two, to 0.2, then on.
    assert told == [False] * 4 + [True] * 2 + [False]
    demos = read_demonstrations(path)
    (trajectory,) = demos.trajectories
    assert demos.env_id == "robot:x:Y" and len(trajectory) == 7
    np.testing.assert_allclose(trajectory.actions[:, 0], [1, 1, 1, 1, -1, -1, 1])
    np.testing.assert_allclose(trajectory.obs[:, 0], [0, 0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.3], atol=1e-6)
    assert trajectory.truncated.tolist() == [False] * 6 + [True]
    episode = json.loads(path.with_suffix(".json").read_text())["episodes"][0]
    assert episode["intervened_rows"] == 2 and episode["success"] is False


def test_a_discarded_episode_is_not_recorded_and_an_unfinished_one_is(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "session.h5", "robot:x:Y", "state")
    env = operated(Silent([None, "discard", None, "success"]), recording=recording)
    for _ in range(2):
        env.reset()
        env.step(ONES)
        env.step(-ONES)
    env.reset()
    env.step(ONES)
    env.close()
    found = [(len(t), t.succeeds) for t in read_demonstrations(tmp_path / "session.h5").trajectories]
    assert found == [(2, True), (1, False)]


def test_images_of_every_camera_are_recorded(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "session.h5", "robot:x:Y", "rgb")
    rgb = np.arange(2 * 4 * 4 * 6, dtype=np.uint8).reshape(2, 4, 4, 6)
    recording.begin({"state": np.zeros(3, np.float32), "rgb": rgb[0]})
    recording.see({"state": np.ones(3, np.float32), "rgb": rgb[1]}, ONES, ONES, False, True, True, False, 0.0)
    recording.end({})
    (found,) = read_demonstrations(tmp_path / "session.h5", need_images=True).trajectories
    np.testing.assert_array_equal(found.images.read(slice(None)), rgb)
    np.testing.assert_array_equal(found.obs, [[0, 0, 0], [1, 1, 1]])


def test_a_success_after_a_takeover_is_not_the_policys(run_command, tiny_base: Path, tmp_path: Path) -> None:
    env = operated(ScriptedOperator(back, strays, verdict=lambda obs: "success" if strays(obs) else None))
    macro = MacroStepEnv(SuccessReward(env, EnvSpec("x")), EnvSpec("x", act_horizon=5))
    macro.reset()
    *_, terminated, _, info = macro.step(np.ones((5, 4), np.float32))
    assert terminated and info["success"] and info["intervened"] and not info["success_once"]
    flags = ["--env_id", "robot:robot_worlds:Watched", "--num_envs", 1, "--max_episode_steps", 20]
    done = run_command(["ppo", *flags, "--awsc_checkpoint", tiny_base, "--out", tmp_path / "run"])
    assert done.status == 2 and "dsrl stage2 knows of them" in done.error_lines[-1]
    assert len(done.error_lines) == 1 and not (tmp_path / "run").exists()


def test_late_actions_are_counted_and_not_hurried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsrl_offpolicy.envs.robot import operated as module

    now, waits = [100.0], []

    def sleep(seconds: float) -> None:
        waits.append(round(seconds, 6))
        now[0] += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    arm = Arm(limit=4)
    recording = Recording(tmp_path / "session.h5", "robot:x:Y", "state")
    env = operated(Silent(), arm, recording, hz=10)
    env.reset()
    env.step(ONES)
    env.step(ONES)  # at once: waits for its tick
    now[0] += 0.35  # a learner that takes long
    env.step(ONES)
    env.step(ONES)
    # Ticks are 0.1 s apart: the second waits 0.1, the third is 0.25 late, the fourth waits 0.1 from there.
    assert waits == [0.1, 0.1]
    assert json.loads((tmp_path / "session.json").read_text())["episodes"][0]["late_rows"] == 1


def test_a_robot_is_one_and_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EnvSpec("robot:robot_worlds:Watched", act_horizon=8)
    assert inspect_env(spec).state_dim == 39
    capabilities = family_of(spec).capabilities(spec)
    assert not (capabilities.replayable or capabilities.killable or capabilities.trial_steps)
    with pytest.raises(InputError, match="num_envs: expected 1 for robot:robot_worlds:Watched"):
        make_vector_env(spec, 4)


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("robot:robot_worlds:Unstoppable", "expected an environment with a method stop()"),
        ("robot:robot_worlds:Nobody", "Nobody"),
        ("robot:robot_worlds:Arm", "no subclass of RobotSetup"),
        ("robot:nowhere:Arm", "cannot be imported"),
    ],
)
def test_what_is_no_robot_is_refused(env_id: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        inspect_env(EnvSpec(env_id))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_stage_2_on_a_robot_leaves_out_what_the_operator_did_and_its_recording_becomes_noise(
    run_command, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_worlds import TINY_WIDTHS

    monkeypatch.chdir(tmp_path)
    argv = ["stage2", "--env_id", "robot:robot_worlds:Recorded", "--awsc_checkpoint", tiny_base, "--num_envs", 1]
    argv += ["--max_episode_steps", 20, "--total_timesteps", 120, "--warmup_steps", 24, "--utd_ratio", 1]
    argv += ["--batch_size", 4, "--log_freq", 2, "--eval_freq", 0, *TINY_WIDTHS]
    done = run_command([*argv, "--out", tmp_path / "first"])
    assert done.status == 0, done.err
    (session,) = (tmp_path / "sessions").glob("*.h5")
    episodes = json.loads(session.with_suffix(".json").read_text())["episodes"]
    sent = sum(episode["elapsed_steps"] for episode in episodes)
    assert sum(episode["intervened_rows"] for episode in episodes) > 0
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert summary["env_steps"] < sent  # chunks with a takeover are not experience of the policy
    rows = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert any(0 < row.get("intervened", 0) < 1 for row in rows)

    argv += ["--demo_path", session, "--inversion_tolerance", 100, "--critic_burnin_steps", 2]
    done = run_command([*argv, "--out", tmp_path / "second"])
    assert done.status == 0, done.err
    offline = json.loads((tmp_path / "second" / "summary.json").read_text())["offline"]
    assert offline["windows"] == sent, offline
