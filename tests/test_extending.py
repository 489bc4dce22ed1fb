"""The pages of ``docs/extending``: their files train from outside the package, by name and without an edit."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from extending import finish, run, shown_files, start, write_files
from stoppable_runs import wait_for_rows

from dsrl_offpolicy.files.checkpoint import load_checkpoint

WORLD = ["--env_family", "my_family:MyFamily", "--env_id", "point", "--max_episode_steps", 16, "--num_envs", 2]
WIDTHS = ["--actor_hidden_dims", 16, "--critic_hidden_dims", 16]
SMALL = [
    "--warmup_steps", 32, "--utd_ratio", 1, "--batch_size", 8, "--log_freq", 4, "--eval_freq", 64,
    "--eval_episodes", 2, *WIDTHS,
]  # fmt: skip
STRANGERS = [
    "--base", "my_ddim:DDIMPolicy:noise.pt", *WORLD, "--algo", "my_algo:Ensemble", "--subset", 3,
    "--num_critics", 4, "--loggers", "csv_logger:CsvSink",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: the files of the pages, weights and demonstrations."""
    return write_files(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def resumed(folder: Path) -> tuple[Path, int]:
    """A run of everybody's policy, family, algorithm and logger that was stopped and went on: its folder, and the
    env steps after which it was stopped."""
    process = start(folder, "stage2", *STRANGERS, *SMALL, "--total_timesteps", 10**6, "--out", "run")
    path = folder / "run"
    wait_for_rows(process, path, 8)
    process.send_signal(signal.SIGTERM)
    status, said = finish(process)
    assert status == 128 + signal.SIGTERM, said
    assert "dsrl stage2 --resume run" in said
    settings = yaml.safe_load((path / "config.yaml").read_text())
    done = _saved(path)["counters"]["env_steps"]
    settings["total_timesteps"] = done + 64
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    run(folder, "stage2", "--resume", "run")
    return path, done


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def _saved(path: Path) -> dict[str, Any]:
    return load_checkpoint(path / "checkpoints" / "last.pt", "stage2", "test")


def _csv_is_metrics(path: Path) -> None:
    with (path / "log.csv").open(newline="") as file:
        logged = [(name, axis, int(step), float(value)) for name, axis, step, value in csv.reader(file)]
    axes = {"env_steps", "macro_steps", "gradient_steps"}
    assert logged == [
        (f"{row['group']}/{name}", "env_steps", row["env_steps"], value)
        for row in _rows(path)
        for name, value in row.items()
        if name not in {"group", "minutes"} | axes
    ]


def test_every_page_shows_one_file_that_is_short():
    files = shown_files()
    assert set(files) == {"my_ddim.py", "my_family.py", "my_algo.py", "my_npz.py", "csv_logger.py"}
    for name, text in files.items():
        assert len(text.splitlines()) <= (60 if name == "my_ddim.py" else 40), name


def test_a_run_of_strangers_is_stopped_and_goes_on_without_q_a_and_without_stage_1(resumed):
    path, done = resumed
    steps = [row["env_steps"] for row in _rows(path)]
    assert steps == sorted(steps) and 32 < done < steps[-1]
    assert {row["group"] for row in _rows(path)} == {"train", "eval"}
    assert _saved(path)["counters"]["env_steps"] >= done + 64
    assert json.loads((path / "summary.json").read_text())["utd_effective"] == pytest.approx(1, abs=0.1)


def test_the_run_names_the_strangers_and_the_algorithms_own_flag(resumed):
    settings = yaml.safe_load((resumed[0] / "config.yaml").read_text())
    expected = {
        "base": "my_ddim:DDIMPolicy:noise.pt", "env_family": "my_family:MyFamily", "algo": "my_algo:Ensemble",
        "loggers": ["csv_logger:CsvSink"], "subset": 3, "num_critics": 4,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


def test_the_csv_says_what_metrics_jsonl_says(resumed):
    _csv_is_metrics(resumed[0])
    assert not (resumed[0] / "tensorboard").exists()


def test_the_policy_reads_the_instruction(resumed):
    path, _ = resumed
    transitions = [load_checkpoint(file, "replay", "test") for file in sorted((path / "replay").iterdir())]
    words = torch.cat([part["obs_features"][:, -2:] for part in transitions])
    assert {tuple(row) for row in words.tolist()} == {(0.0, 1.0), (1.0, 0.0)}  # left, right


def test_demonstrations_in_one_npz_train_a_policy_that_is_steered(folder):
    tiny = ["--total_iters", 20, "--batch_size", 16, "--log_freq", 10, "--velocity_widths", 16, "--embed_dim", 8]
    heads = ["--critic_hidden_dims", 16, "--denoising_steps", 2, "--pred_horizon", 4, "--act_horizon", 4]
    demos = ["--demo_path", "mine.npz", "--demo_format", "my_npz:NpzDemos", "--loggers", "csv_logger:CsvSink"]
    run(folder, "pretrain", *demos, *WORLD, *tiny, *heads, "--out", "stage0")
    base = ["--base", "stage0/checkpoints/last.pt", "--loggers", "csv_logger:CsvSink"]
    run(folder, "stage2", *base, *WORLD, *SMALL, "--total_timesteps", 96, "--out", "steered")
    assert _rows(folder / "steered")[-1]["env_steps"] >= 96
    _csv_is_metrics(folder / "steered")


@pytest.mark.slow
def test_strangers_train_for_some_hundred_steps_in_default_widths(folder):
    run(folder, "stage2", *STRANGERS, "--total_timesteps", 800, "--warmup_steps", 200, "--out", "longer",
        "--utd_ratio", 2, "--log_freq", 50, "--eval_freq", 200)  # fmt: skip
    rows = _rows(folder / "longer")
    assert rows[-1]["env_steps"] >= 800 and sum(row["group"] == "eval" for row in rows) >= 4
    assert all(row["utd_effective"] == pytest.approx(2, rel=0.1) for row in rows[-2:] if "utd_effective" in row)
