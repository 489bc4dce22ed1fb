"""Environment processes that die, raise or hang are replaced, and only their own step is lost. Real processes."""

from __future__ import annotations

import os
import signal
from functools import partial

import numpy as np
import pytest
from small_worlds import Broken, CountingEnv, Fragile, Unbuildable, make_counting, make_leaving

from dsrl_offpolicy.envs.processes import MOST_LOSSES, ProcessVectorEnv
from dsrl_offpolicy.errors import InputError

CHUNKS = np.zeros((2, 2, 1), np.float32)


def pair(kind: type[CountingEnv] = CountingEnv, timeout: float = 60.0) -> ProcessVectorEnv:
    env = ProcessVectorEnv(partial(make_counting, kind), 2, timeout)
    obs, _ = env.reset(seed=[5, 6])
    # frames of the stack: [seed, env steps so far]
    assert obs.tolist() == [[[5, 0], [5, 0]], [[6, 0], [6, 0]]]
    return env


def step(env: ProcessVectorEnv, chunks: np.ndarray = CHUNKS) -> tuple:
    obs, reward, terminated, truncated, info = env.step(chunks)
    assert not terminated.any()
    told = (info["lost"].tolist(), info["n_steps"].tolist(), truncated.tolist())
    return obs[:, -1].tolist(), reward.tolist(), *told


def assert_goes_on(env: ProcessVectorEnv) -> None:
    """The second slot stands after one macro-step of its episode 6, the first at the start of 5: one macro-step
    further, and the reset of a slot."""
    # rewards of env steps k, k+1 with gamma .5: k + .5 (k + 1)
    assert step(env) == ([[5, 2], [6, 4]], [1 + 1.0, 3 + 2.0], [False, False], [2, 2], [False, False])
    obs, _ = env.reset(seed=[9, 9], options={"reset_mask": np.array([True, False])})
    assert obs[:, -1].tolist() == [[9, 0], [6, 4]]
    assert step(env) == ([[9, 2], [6, 6]], [2.0, 5 + 3.0], [False, False], [2, 2], [False, True])


def test_a_process_that_was_killed_between_two_steps_is_replaced(capsys) -> None:
    env = pair()
    before = [p.pid for p in env.processes]
    os.kill(before[0], signal.SIGKILL)
    env.processes[0].join()
    assert step(env) == ([[5, 0], [6, 2]], [0.0, 2.0], [True, False], [0, 2], [False, False])
    assert "note: environment process 0 died (exit code -9)" in capsys.readouterr().err
    assert env.processes[0].pid != before[0] and env.processes[1].pid == before[1]
    assert_goes_on(env)
    env.close()


def test_a_process_that_dies_while_it_steps_is_replaced() -> None:
    env = pair()
    os.kill(env.processes[0].pid, signal.SIGSTOP)  # it cannot answer before it is killed
    env.step_async(CHUNKS)
    os.kill(env.processes[0].pid, signal.SIGKILL)
    *_, info = env.step_wait()
    assert info["lost"].tolist() == [True, False] and info["success_once"].tolist() == [False, False]
    assert_goes_on(env)
    env.close()


def test_a_process_that_hangs_is_replaced_after_its_time(capsys) -> None:
    env = pair(timeout=5.0)
    hung = env.processes[0].pid
    os.kill(hung, signal.SIGSTOP)
    assert step(env)[2] == [True, False]
    assert "process 0 took more than 5 s" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)
    assert_goes_on(env)
    env.close()


def test_a_simulator_that_raises_is_replaced_and_told_of(capsys) -> None:
    env = pair(Fragile)
    chunks = CHUNKS.copy()
    chunks[0, 1] = 1.0  # the second action of the first slot's chunk
    assert step(env, chunks)[2] == [True, False]
    assert "raised RuntimeError: the arm is outside its workspace" in capsys.readouterr().err
    assert_goes_on(env)
    env.close()


def test_a_process_lost_during_a_reset_begins_the_same_episode_anew() -> None:
    env = pair()
    step(env)
    os.kill(env.processes[0].pid, signal.SIGKILL)
    obs, _ = env.reset(seed=[8, None], options={"reset_mask": np.array([True, False])})
    assert obs[:, -1].tolist() == [[8, 0], [6, 2]]
    env.close()


def test_a_process_that_always_dies_ends_the_run() -> None:
    env = pair(Broken)
    for _ in range(MOST_LOSSES):
        assert env.step(CHUNKS)[-1]["lost"].all()
    with pytest.raises(InputError, match=rf"lost {MOST_LOSSES + 1} times in a row: died \(exit code 7\)"):
        env.step(CHUNKS)
    env.close()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("stepping", [True, False])
def test_closing_waits_for_no_process_that_cannot_answer(number, stepping) -> None:
    env = pair(timeout=2.0)
    processes = env.processes
    if stepping:
        env.step_async(CHUNKS)
    os.kill(processes[0].pid, number)
    env.close()
    assert all(p.exitcode is not None for p in processes)


def test_a_process_that_cannot_build_its_environment_is_told_of() -> None:
    with pytest.raises(InputError, match=rf"process 0 could not build .*, it died {MOST_LOSSES + 1} times"):
        ProcessVectorEnv(partial(make_counting, Unbuildable), 1, 60.0)


def test_closing_before_the_first_step_lets_environments_close(tmp_path) -> None:
    env = ProcessVectorEnv(partial(make_leaving, str(tmp_path / "closed")), 1, 60.0)
    (tmp_path / "closed").unlink()  # by the environment that told the spaces
    env.close()
    assert (tmp_path / "closed").exists()
