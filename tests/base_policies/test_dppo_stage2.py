"""A policy of DPPO, steered and evaluated on Gymnasium's Hopper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "dppo" / "plain_mlp_hist2"
"""Of Hopper's width: 11 numbers, two frames, 3 actions."""

SMALL = [
    "--reward_mode", "dense", "--total_timesteps", 200, "--warmup_steps", 80, "--utd_ratio", 1, "--batch_size", 16,
    "--num_envs", 2, "--eval_freq", 100, "--eval_episodes", 2, "--max_episode_steps", 60, "--log_freq", 5,
    "--actor_hidden_dims", 16, "--critic_hidden_dims", 16,
]  # fmt: skip


def test_a_run_trains_and_evaluates(run_command: Callable, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run_command(["stage2", "--base", f"dppo:{GOLDEN}", "--env_id", "Hopper-v4", "--out", out, *SMALL])
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    returns = [row["return"] for row in rows if "return" in row]
    # Hopper pays 1 for every step on its feet: a dense return is above 0, where a sparse one would be below.
    assert returns and min(returns) > 0
    assert any("critic_loss" in row for row in rows)


def test_a_table_without_success_needs_its_rewards(run_command: Callable, tmp_path: Path) -> None:
    out = tmp_path / "table"
    argv = ["eval", "--base", f"dppo:{GOLDEN}", "--env_id", "Hopper-v4", "--episodes", 2, "--constants", 0]
    argv += ["--num_envs", 1, "--max_episode_steps", 20, "--out", out]
    done = run_command(argv)
    assert done.status == 2 and "reward_mode: expected dense for Hopper-v4" in done.error_lines[-1]
    done = run_command([*argv, "--reward_mode", "dense"])
    assert done.status == 0, done.err
    rows = {row["policy"]: row for row in json.loads((out / "evaluation.json").read_text())}
    assert set(rows) == {"base (prior noise)", "w = 0"}  # without Q^A there is no best of N
    assert all(row["episode_return"] > 0 for row in rows.values())


def test_no_start_is_chosen_where_nothing_succeeds(run_command: Callable, tmp_path: Path) -> None:
    out = tmp_path / "start"
    argv = ["stage1", "--method", "golden_ticket", "--base", f"dppo:{GOLDEN}", "--env_id", "Hopper-v4"]
    argv += ["--max_episode_steps", 20, "--num_envs", 1, "--out", out]
    done = run_command(argv)
    assert done.status == 2 and not out.exists()
    assert "Hopper-v4, which reports no success" in done.error_lines[-1]
    assert "no start can be chosen there by success (stage1 --method)" in done.error_lines[-1]


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("Reacher-v4", "base policy: expected 2 action dimensions for Reacher-v4, got 3"),
        ("Walker2d-v4", "base policy: expected 17 state dimensions for Walker2d-v4, got 11"),
    ],
)
def test_spaces_of_another_width_are_refused(
    run_command: Callable, tmp_path: Path, env_id: str, said: str
) -> None:
    out = tmp_path / "run"
    done = run_command(["stage2", "--base", f"dppo:{GOLDEN}", "--env_id", env_id, "--out", out, *SMALL])
    assert done.status == 2 and said in done.error_lines[-1] and not out.exists()


def test_a_missing_folder_is_refused(run_command: Callable, tmp_path: Path) -> None:
    done = run_command(["stage2", "--base", "dppo:nowhere", "--env_id", "Hopper-v4", "--out", tmp_path / "run"])
    assert done.status == 2 and len(done.error_lines) == 1
    assert "base: expected a folder with checkpoint.pt of DPPO, nowhere is none" in done.err
    done = run_command(["stage2", "--base", "dppo", "--env_id", "Hopper-v4", "--out", tmp_path / "run"])
    assert done.status == 2 and "base: expected dppo:PATH" in done.err
