"""Run folders: never written over, readable by the usual tools, and progress for people and log files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_worlds import snapshot

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.configs.loading import parse_job
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.tracking.run import Run, create_run_folder

CONFIG = Stage2Config(seed=4, out=Path("some/where"), actor_hidden_dims=(8, 4), learn_temperature=False)


def _folder(tmp_path: Path) -> Path:
    return create_run_folder(tmp_path / "run", "unused")


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_existing_folder_is_never_written_over(tmp_path):
    folder = tmp_path / "run"
    (folder / "inside").mkdir(parents=True)
    (folder / "inside" / "kept.txt").write_text("kept")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"out: .*run exists"):
        create_run_folder(folder, "unused")
    (tmp_path / "file").write_text("a file, not a folder")
    before = snapshot(tmp_path)
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"out: (expected a new run folder|cannot make)"):
            create_run_folder(path, "unused")
    assert snapshot(tmp_path) == before


def test_the_default_folder_stands_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert create_run_folder(None, "job-env-seed1") == Path("runs/job-env-seed1")
    assert (tmp_path / "runs" / "job-env-seed1").is_dir()
    with pytest.raises(InputError, match="job-env-seed1 exists"):
        create_run_folder(None, "job-env-seed1")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    folder = _folder(tmp_path)
    with Run(folder, CONFIG) as run:
        run.log("train", {"loss": 1.0}, {"gradient_steps": 1})
    with pytest.raises(FileExistsError):
        Run(folder, CONFIG)
    assert len(_rows(folder)) == 1


def test_metrics_are_lines_of_json_with_their_axes(tmp_path):
    folder = _folder(tmp_path)
    with Run(folder, CONFIG) as run:
        row = run.log("train", {"loss": torch.tensor(0.5), "count": 3}, {"env_steps": 10, "gradient_steps": 20})
        assert row == _rows(folder)[0]
        assert _rows(folder)[0]["loss"] == 0.5  # on disk at once, not at the end
        run.log("train", {"loss": 0.25}, {"env_steps": 11, "gradient_steps": 22})
    first, second = _rows(folder)
    assert first.pop("minutes") >= 0
    assert first == {"group": "train", "env_steps": 10, "gradient_steps": 20, "loss": 0.5, "count": 3.0}
    assert second["env_steps"] == 11 and second["loss"] == 0.25


def test_tensorboard_reads_the_events_back(tmp_path):
    folder = _folder(tmp_path)
    with Run(folder, CONFIG) as run:
        for step in (5, 10):
            run.log("train", {"q_mean": step / 2, "alpha": 0.5}, {"env_steps": step, "gradient_steps": 7 * step})
        run.log("eval", {"success_once": 0.25}, {"env_steps": 10})
        run.log("stages", {"stage": 1.0}, {"stages_done": 3})
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/q_mean", "train/alpha", "eval/success_once", "stages/stage"}
    assert [(e.step, e.value) for e in events.Scalars("train/q_mean")] == [(5, 2.5), (10, 5.0)]  # x: first axis
    assert [(e.step, e.value) for e in events.Scalars("eval/success_once")] == [(10, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("stages/stage")] == [(3, 1.0)]


def test_the_saved_config_is_read_back_to_the_same_config(tmp_path):
    folder = _folder(tmp_path)
    with Run(folder, CONFIG):
        pass
    file = folder / "config.yaml"
    assert set(yaml.safe_load(file.read_text())) == {field.name for field in fields(Stage2Config)}
    assert parse_job(Stage2Config, "stage2_online.yaml", "dsrl", ["--config", str(file)]) == CONFIG


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(-math.inf)])
def test_a_metric_that_is_not_finite_ends_the_run_and_is_not_written(tmp_path, value):
    folder = _folder(tmp_path)
    with Run(folder, CONFIG) as run:
        with pytest.raises(InputError) as error:
            run.log("train", {"loss": 1.0, "q_mean": value}, {"gradient_steps": 8})
        assert "q_mean" in str(error.value) and "finite" in str(error.value) and "8" in str(error.value)
    assert _rows(folder) == []


def test_summary_is_json(tmp_path):
    folder = _folder(tmp_path)
    with Run(folder, CONFIG) as run:
        run.write_summary({"base": {"success": 0.5}, "none": None})
        assert run.checkpoints == folder / "checkpoints"
    assert json.loads((folder / "summary.json").read_text()) == {"base": {"success": 0.5}, "none": None}


def test_weights_and_biases_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens: any network use would fail
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    folder = _folder(tmp_path)
    with Run(folder, replace(CONFIG, track=True)) as run:
        run.log("train", {"loss": 0.125}, {"gradient_steps": 1})
    files = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1 and files[0].stat().st_size > 0
    assert _rows(folder)[0]["loss"] == 0.125


def test_tracking_without_the_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"track: .*wandb.*pip install"):
        Run(_folder(tmp_path), replace(CONFIG, track=True))


def test_progress_into_a_file_is_whole_lines(capsys):
    with ProgressReport("stage2", 200, "env steps") as progress:
        progress.report(50, {"success": 0.12345, "episodes": 3})
        progress.report(200, {"success": 1.0})
    err = capsys.readouterr().err
    assert err.endswith("\n") and "\r" not in err and "\x1b" not in err
    first, second = err.splitlines()
    assert "stage2: 50/200 env steps" in first and "success 0.123" in first and "episodes 3" in first
    assert "elapsed" in first and "left" in first
    assert "200/200" in second and "left 0 s" in second


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with ProgressReport("stage2", 200, "env steps") as progress:
            progress.report(50, {"success": 0.5})
    shown = ""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody holds open with an error
        while part := os.read(leader, 100_000):
            shown += part.decode(errors="replace")
    os.close(leader)
    assert "50/200" in shown and "success 0.5" in shown
