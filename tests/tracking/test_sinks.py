"""Loggers: found by name, fed with groups and axes, resumed from their own state, refused in one line."""

from __future__ import annotations

import csv
import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from csv_logger import CsvSink
from tiny_worlds import TASK, TINY_WIDTHS, snapshot

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.configs.jobs import EvalConfig, Stage0Config
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import Group, read_metrics
from dsrl_offpolicy.tracking.run import Run
from dsrl_offpolicy.tracking.sink import LoggedVideo, find_sinks

OWN = Stage2Config(loggers=("csv_logger:CsvSink",))


def logged(folder: Path) -> list[list[str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_a_logger_of_ones_own_takes_the_place_of_the_others(tmp_path):
    with Run(tmp_path, OWN) as run:
        run.log("train", {"q_mean": -2.0}, {"env_steps": 8, "gradient_steps": 3})
        run.log("eval", {"success_once": 0.5}, {"env_steps": 16, "gradient_steps": 9})
    assert logged(tmp_path) == [
        ["train/q_mean", "env_steps", "8", "-2.0"],
        ["eval/success_once", "env_steps", "16", "0.5"],
    ]
    assert not (tmp_path / "tensorboard").exists()
    assert [row["group"] for row in read_metrics(tmp_path)] == ["train", "eval"]  # always written


def test_a_resumed_run_hands_every_logger_its_state(tmp_path):
    with Run(tmp_path, OWN) as run:
        run.log("train", {"loss": 1.0}, {"env_steps": 1})
        saved = run.state_dict()
        run.log("train", {"loss": 2.0}, {"env_steps": 2})
    with Run(tmp_path, OWN, resume=saved) as run:
        run.log("train", {"loss": 3.0}, {"env_steps": 2})
    assert [row[3] for row in logged(tmp_path)] == ["1.0", "3.0"]
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0, 3.0]


def test_loggers_are_those_that_are_named_and_track_adds_one():
    assert list(find_sinks(Stage0Config())) == ["tensorboard"] == list(find_sinks(EvalConfig()))
    assert list(find_sinks(replace(OWN, track=True))) == ["csv_logger:CsvSink", "wandb"]
    assert list(find_sinks(Stage2Config(loggers=("wandb",), track=True))) == ["wandb"]
    assert find_sinks(OWN) == {"csv_logger:CsvSink": CsvSink} and find_sinks(Stage2Config(loggers=())) == {}


def test_stage2_by_the_flag(run_command, tiny_base, tmp_path):
    folder = tmp_path / "run"
    done = run_command([
        "stage2", "--env_id", TASK, "--awsc_checkpoint", tiny_base, "--out", folder, "--total_timesteps", 96,
        "--warmup_steps", 32, "--batch_size", 4, "--utd_ratio", 1, "--log_freq", 2, "--eval_freq", 96,
        "--num_envs", 1, "--eval_episodes", 2, "--max_episode_steps", 16, *TINY_WIDTHS,
        "--loggers", "tensorboard", "csv_logger:CsvSink",
    ])  # fmt: skip
    assert done.status == 0, done.err
    names = {name for name, axis, _, _ in logged(folder) if axis == "env_steps"}
    assert {"train/q_mean", "eval/success_once", "eval/success_once_low", "eval/return"} <= names
    rows = read_metrics(folder)
    assert {row["group"] for row in rows} == {"train", "eval"}
    assert sum(len(row) - 5 for row in rows) == len(logged(folder))  # without the group, three axes, minutes
    assert (folder / "tensorboard").is_dir()
    assert json.loads((folder / "run.json").read_text()) == {"kind": "stage2"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorbord", ["loggers", "did you mean tensorboard"]),
        ("csv_logger:CsvSnk", ["loggers", "did you mean CsvSink"]),
        ("csv_logger:Path", ["loggers", "subclass of dsrl_offpolicy.tracking.sink.Sink", "csv_logger:Path"]),
    ],
)
def test_what_is_no_logger_is_one_line_before_anything_is_written(run_command, tiny_base, tmp_path, name, words):
    before = snapshot(tmp_path)
    done = run_command(["stage2", "--awsc_checkpoint", tiny_base, "--out", tmp_path / "run", "--loggers", name])
    assert done.status == 2 and len(done.error_lines) == 1, done.err
    for word in words:
        assert word in done.err
    assert snapshot(tmp_path) == before


class FakeWandb(types.ModuleType):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[Any, ...]] = []
        self.id = "abc"
        self.api = types.SimpleNamespace(api_key=None)

    def setup(self) -> Any:
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))

    def init(self, **settings: Any) -> FakeWandb:
        self.calls.append(("init", settings["project"], settings["id"], settings["resume"]))
        return self

    def Video(self, path: str, caption: str) -> tuple[str, str]:
        return (Path(path).name, caption)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.calls.append(("axis", name, step_metric))

    def log(self, row: dict[str, float]) -> None:
        self.calls.append(("log", {name: value for name, value in row.items() if name != "minutes"}))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_weights_and_biases_has_the_groups_names_over_their_own_axis(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = Stage2Config(loggers=(), track=True, wandb_project="steering")
    with Run(tmp_path, config) as run:
        run.log("train", {"q_mean": -2.0}, {"env_steps": 8, "gradient_steps": 3})
        run.log("train", {"q_mean": -1.0}, {"env_steps": 9, "gradient_steps": 4})
        run.log("diag", {"q_prior": 1.0}, {"gradient_steps": 5})
        saved = run.state_dict()
    assert wandb.calls == [
        ("init", "steering", None, None),
        ("axis", "train/*", "env_steps"),
        ("log", {"env_steps": 8, "gradient_steps": 3, "train/q_mean": -2.0}),
        ("log", {"env_steps": 9, "gradient_steps": 4, "train/q_mean": -1.0}),
        ("axis", "diag/*", "gradient_steps"),
        ("log", {"gradient_steps": 5, "diag/q_prior": 1.0}),
        ("finish",),
    ]
    for state in (saved, {"minutes": 0.0, "rows": 3, "step": 9, "wandb_id": "abc"}):  # of an earlier version
        wandb.calls.clear()
        Run(tmp_path, config, resume=state).close()
        assert wandb.calls == [("init", "steering", "abc", "allow"), ("finish",)]


def test_weights_and_biases_is_sent_a_video_over_env_steps(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    frames = [np.zeros((4, 6, 3), np.uint8)]
    with Run(tmp_path, Stage2Config(loggers=("wandb", "csv_logger:CsvSink"))) as run:  # the latter takes none
        run.log_video(LoggedVideo("start-000", {"env_steps": 8}, tmp_path / "start-000.mp4", frames, 30))
    assert ("log", {"env_steps": 8, "video": ("start-000.mp4", "start-000")}) in wandb.calls


@pytest.mark.parametrize("state", [{}, {"step": "x"}, {"step": None}])
def test_a_damaged_state_of_a_logger_is_one_line(tmp_path, state):
    with Run(tmp_path, Stage2Config()) as run:
        saved = run.state_dict()
    saved["sinks"]["tensorboard"] = state
    with pytest.raises(InputError, match=r"tensorboard: .*step"):
        Run(tmp_path, Stage2Config(), resume=saved)


def test_a_row_of_an_unknown_group_is_refused(tmp_path):
    for group in ("trian", 3, ["train"], None):
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"group": group, "loss": 1.0}) + "\n")
        with pytest.raises(InputError, match=r"metrics.jsonl, line 1: group: expected .*, got"):
            read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"group": group}) + "\n" for group in get_args(Group))
    )
    assert len(read_metrics(tmp_path)) == len(get_args(Group))
