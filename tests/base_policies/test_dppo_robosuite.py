"""A policy that DPPO trained on robosuite's Can, steered there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = [
    "--total_timesteps", 120, "--warmup_steps", 60, "--utd_ratio", 1, "--batch_size", 16, "--num_envs", 1,
    "--eval_freq", 120, "--eval_episodes", 1, "--max_episode_steps", 40, "--log_freq", 5,
    "--actor_hidden_dims", 16, "--critic_hidden_dims", 16,
]  # fmt: skip


@pytest.mark.usefixtures("robosuite")
def test_a_run_trains_and_evaluates(run_command: Callable, shared_dir: Path, tmp_path: Path) -> None:
    base, out = f"dppo:{shared_dir / 'fixtures' / 'dppo' / 'can_trained'}", tmp_path / "run"
    done = run_command(["stage2", "--base", base, "--env_id", "robosuite:Can", "--out", out, *SMALL])
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("critic_loss" in row for row in rows)
    # A sparse episode of 40 steps pays -40 at least, and -1 at most where it succeeds in its second step.
    returns = [row["return"] for row in rows if "return" in row]
    assert returns and all(-40 <= value <= -1 for value in returns)


@pytest.mark.usefixtures("robosuite")
def test_a_task_of_another_width_is_refused(run_command: Callable, shared_dir: Path, tmp_path: Path) -> None:
    base, out = f"dppo:{shared_dir / 'fixtures' / 'dppo' / 'can_trained'}", tmp_path / "run"
    done = run_command(["stage2", "--base", base, "--env_id", "robosuite:Lift", "--out", out, *SMALL])
    assert done.status == 2 and not out.exists()
    assert "expected 19 state dimensions for robosuite:Lift, got 23" in done.error_lines[-1]
