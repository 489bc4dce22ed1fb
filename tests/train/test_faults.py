"""What Stage 2 does when an environment dies or hangs, or a number is not finite: real processes and signals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
import torch
import warm_start
from stoppable_runs import FLAGS, content, finish, rows, start, wait_for_rows

from dsrl_offpolicy.files.checkpoint import load_checkpoint


def training_workers(process: warm_start.Job) -> list[psutil.Process]:
    """The environment processes, those for training first: children of the fork server, oldest first."""
    found = psutil.Process(process.pid).children(recursive=True)
    return sorted((p for p in found if p.ppid() != process.pid), key=lambda p: p.create_time())


def run_with_a_fault(reach_base: Path, folder: Path, number: int) -> tuple[int, str]:
    # Episodes as long as the run: the fault finds the worker in a step, not in a reset.
    flags = f"{FLAGS} --env_timeout 5 --train_episode_steps 500 --eval_freq 0"
    process = start(f"{flags} --awsc_checkpoint {reach_base} --out {folder}")
    wait_for_rows(process, folder, 6)
    os.kill(training_workers(process)[0].pid, number)
    return finish(process)


@pytest.mark.parametrize(
    ("number", "says"), [(signal.SIGKILL, "died (exit code -9)"), (signal.SIGSTOP, "took more than 5 s")]
)
def test_a_lost_worker_costs_one_macro_step(reach_base, tmp_path, number, says) -> None:
    folder = tmp_path / "run"
    status, said = run_with_a_fault(reach_base, folder, number)
    assert status == 0 and "note: environment process" in said and says in said and "Traceback" not in said
    counters = content(folder)["counters"]
    assert counters["lost_macro_steps"] == 1 and rows(folder)[-1]["lost_macro_steps"] == 1
    # Every vector step stores two transitions, but the one in which the worker was lost stored one.
    assert counters["macro_steps"] % 2 == 1
    assert content(folder)["replay"]["total_added"] == counters["macro_steps"]
    # Gradient steps are earned by what was stored.
    assert counters["gradient_steps"] == 2 * counters["earning_transitions"]
    assert json.loads((folder / "summary.json").read_text())["env_steps"] >= 1600


def snapshot(folder: Path) -> dict:
    return load_checkpoint(folder / "non_finite.pt", "snapshot", "test")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("NanReward", "replay buffer: expected finite numbers, got NaN or infinity in reward"),
        ("NanObservation", "environment: expected finite observations, got NaN or infinity"),
    ],
)
def test_an_environment_that_is_not_finite_ends_the_run_with_a_snapshot(
    reach_base, tmp_path, monkeypatch, kind, says
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    folder = tmp_path / "run"
    flags = f"{FLAGS} --eval_freq 0 --env_id small_worlds:{kind}-v0 --max_episode_steps 100"
    flags += " --train_episode_steps 100 --save_freq 16 --reward_mode dense"
    status, said = finish(start(f"{flags} --awsc_checkpoint {reach_base} --out {folder}"))
    assert status == 2 and says in said and f"a snapshot is in {folder / 'non_finite.pt'}" in said
    assert "Traceback" not in said
    found = snapshot(folder)
    # Chunks of 8: the fourth holds env step 30, and three of each environment were stored before.
    assert found["counters"]["macro_steps"] == 6 and says in found["message"]
    if kind == "NanReward":
        assert found["evidence"]["transitions"]["reward"].isnan().all()
        assert found["evidence"]["transitions"]["next_obs_features"].isfinite().all()
    else:
        assert found["evidence"]["obs"][:, -1, 3].isnan().all()
    assert content(folder)["replay"]["total_added"] <= 6  # the run's own save is as it was


def test_a_loss_that_is_not_finite_ends_the_run_before_a_save_keeps_it(reach_base, tmp_path) -> None:
    folder = tmp_path / "run"
    rates = "--critic_lr 1e9 --actor_lr 1e9 --no-critic_layer_norm --critic_hidden_dims 16 16"
    flags = f"{FLAGS} --eval_freq 0 {rates} --log_freq 100000"
    status, said = finish(start(f"{flags} --awsc_checkpoint {reach_base} --out {folder}"))
    assert status == 2 and "got NaN or infinity" in said and "a snapshot is in" in said
    assert "Traceback" not in said
    found = snapshot(folder)
    assert found["batch"]["reward"].isfinite().all() and len(found["batch"]["reward"]) == 8
    assert any(not t.isfinite().all() for t in found["networks"].values() if t.is_floating_point())
    saved = content(folder)
    assert all(t.isfinite().all() for t in saved["policy"].values())
    assert all(torch.as_tensor(t).isfinite().all() for t in saved["training"]["networks"].values())
