"""A signal is heard between two gradient steps and while the learner compiles, and nothing of the run is lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from stoppable_runs import assert_same, content, rows

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.train import run, train_stage2_online

# 192 env steps of warm-up, 15 steps of burn-in, then 40 gradient steps after each of 8 vector steps.
FLAGS = (
    "--env_id reach-v3 --total_timesteps 320 --warmup_steps 192 --utd_ratio 20 --batch_size 8 --log_freq 10 "
    "--eval_freq 8 --eval_episodes 1 --num_envs 2 --train_episode_steps 36 --max_episode_steps 36 "
    "--actor_hidden_dims 16 --critic_hidden_dims 16 --save_freq 100 --anneal_from 0.5 --actor_update_every 2 "
    "--critic_burnin_steps 15"
)


@pytest.fixture(scope="module")
def whole(reach_base: Path, run_command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run_command(["stage2", *FLAGS.split(), "--awsc_checkpoint", reach_base, "--out", folder])
    assert done.status == 0, done.err
    return folder


def stop_after_updates(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """From now on, SIGTERM comes during the ``count``-th update. Returns the numbers of the updates to come."""
    original, calls = DSRLSACAgent.update, []

    def update(self, *args, **options):
        calls.append(len(calls) + 1)
        if len(calls) == count:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args, **options)

    monkeypatch.setattr(DSRLSACAgent, "update", update)
    return calls


def test_burn_in_and_updates_stop_at_the_next_step_and_resume_to_the_bit(
    reach_base, whole, run_command, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "run"
    argv = ["stage2", *FLAGS.split(), "--awsc_checkpoint", reach_base, "--out", folder]
    # Within burn-in; then within the second 40 updates, after the 10 steps of burn-in that are left.
    for count, burnin, updates in ((5, 5, 0), (10 + 53, 15, 53)):
        with monkeypatch.context() as patch:
            calls = stop_after_updates(patch, count)
            done = run_command(argv)
        assert done.status == 143 and f"dsrl stage2 --resume {folder}" in done.err
        assert len(calls) == count
        counters = content(folder)["counters"]
        assert (counters["burnin_steps"], counters["gradient_steps"]) == (burnin, updates)
        argv = ["stage2", "--resume", folder]
    done = run_command(argv)
    assert done.status == 0, done.err
    assert "note" not in done.err
    assert rows(folder) == rows(whole)
    one, other = content(folder), content(whole)
    for name in ("policy", "training", "counters", "recent", "best"):
        assert_same(one[name], other[name], name)
    for library in ("numpy", "torch"):  # run-time checks of types draw from python's
        assert_same(one["random"][library], other["random"][library], library)


def test_a_signal_during_compilation_saves_the_run_as_it_stood(
    reach_base, whole, run_command, tmp_path, monkeypatch
) -> None:
    folder, never, compiled = tmp_path / "run", threading.Event(), []

    def endless(agent: DSRLSACAgent, batch_size: int) -> None:
        threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        compiled.append(never.wait(200))

    argv = ["stage2", *FLAGS.split(), "--compile", "on", "--awsc_checkpoint", reach_base, "--out", folder]
    with monkeypatch.context() as patch:
        patch.setattr(DSRLSACAgent, "compiled", endless)
        patch.setattr(run, "TELL_EVERY", 0.5)
        done = run_command(argv)
    assert not compiled  # not waited for
    # told at the start and, while it took 2 s, at least twice: after half a second, and again (waits are of 0.2 s)
    assert done.err.count("stage2: compiling the learner") == 1
    assert done.err.count("Ctrl-C saves the run and ends it") >= 2
    assert done.status == 143 and f"dsrl stage2 --resume {folder}" in done.err
    assert content(folder)["counters"]["env_steps"] == 192
    never.set()
    monkeypatch.setattr(train_stage2_online.Stage2, "_worth_compiling", lambda self: False)
    done = run_command(["stage2", "--resume", folder])
    assert done.status == 0, done.err
    assert rows(folder) == rows(whole)
    assert_same(content(folder)["training"], content(whole)["training"])
