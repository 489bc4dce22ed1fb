"""What a run logs is read back from each logger's own files: the same names and numbers, over the same axis."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import read_metrics
from dsrl_offpolicy.tracking.run import Run
from dsrl_offpolicy.tracking.sink import LoggedVideo

Points = dict[str, list[tuple[int, float]]]
"""(env steps, value) by the name of a metric."""

EXPECTED: Points = {
    "train/q_mean": [(8, -2.0), (16, -1.5)],
    "train/td_error": [(8, 0.25), (16, 0.125)],
    "eval/success_once": [(16, 0.75)],
}
NAMES = set(EXPECTED)


def log_tiny_run(folder: Path, *loggers: str, resume: dict | None = None, project: str = "steering") -> dict:
    """Log ``EXPECTED``; returns the state after the first row. A resumed run logs what came after that."""
    config = Stage2Config(loggers=loggers, wandb_project=project)
    with Run(folder, config, resume=resume) as run:
        if resume is None:
            run.log("train", {"q_mean": -2.0, "td_error": 0.25}, {"env_steps": 8, "gradient_steps": 3})
        saved = run.state_dict()
        run.log("train", {"q_mean": -1.5, "td_error": 0.125}, {"env_steps": 16, "gradient_steps": 9})
        run.log("eval", {"success_once": 0.75}, {"env_steps": 16, "gradient_steps": 9})
    return saved


def points(rows: list[dict[str, float]]) -> Points:
    """Rows that hold metrics and ``env_steps``, by metric."""
    found: Points = {}
    for row in rows:
        for name in NAMES & set(row):
            found.setdefault(name, []).append((int(row["env_steps"]), row[name]))
    return found


def of_jsonl(folder: Path) -> Points:
    rows = read_metrics(folder)
    return points([{**row, **{f"{row['group']}/{name}": value for name, value in row.items()}} for row in rows])


def of_tensorboard(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def of_wandb(folder: Path) -> Points:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process writes on after the run has ended
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    rows, axes = [], {}
    for data in leveldb_records(file.read_bytes()[7:]):  # after ":W&B", a magic number and a version
        record = Record.FromString(data)
        if record.HasField("history"):
            held = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append(held)
        elif record.HasField("metric"):
            axes[record.metric.glob_name] = record.metric.step_metric
    assert axes == {"train/*": "env_steps", "eval/*": "env_steps"}
    return points(rows)


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB shorter than a block (32 KiB): checksum, length, type (1: whole), data."""
    assert len(data) < 32 * 1024
    while data:
        length, kind = int.from_bytes(data[4:6], "little"), data[6]
        assert kind == 1
        yield data[7 : 7 + length]
        data = data[7 + length :]


def of_trackio(folder: Path) -> Points:
    database = sqlite3.connect(folder.parent / "trackio" / "steering.db")
    held = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    database.close()
    (name,) = {name for name, _, _ in held}
    assert name.startswith(f"{folder.name}-")
    rows = [json.loads(metrics) for _, _, metrics in held]
    assert [step for _, step, _ in held] == [row["env_steps"] for row in rows]  # what its pages draw over
    return points(rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, and a home of its own for every logger, where no network is of use."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_STORAGE_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads TRACKIO_DIR when it is imported
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("logger", "library", "read"),
    [
        (None, "json", of_jsonl), ("tensorboard", "tensorboard", of_tensorboard), ("wandb", "wandb", of_wandb),
        ("trackio", "trackio", of_trackio),
    ],
)  # fmt: skip
def test_every_logger_has_the_same_names_and_numbers_over_env_steps(logger, library, read, folder, capsys):
    pytest.importorskip(library, reason=f"needs {library}, which the extra dev installs")
    log_tiny_run(folder, *([logger] if logger else []))
    assert read(folder) == EXPECTED
    assert capsys.readouterr().out == ""  # standard output belongs to --progress json


def test_a_resumed_run_goes_on_in_its_run_of_trackio(folder):
    pytest.importorskip("trackio", reason="needs trackio, which the extra dev installs")
    saved = log_tiny_run(folder, "trackio")
    log_tiny_run(folder, "trackio", resume=saved)
    repeated = {name: [*given, *(point for point in given if point[0] == 16)] for name, given in EXPECTED.items()}
    assert of_trackio(folder) == repeated  # the history only grows
    saved["sinks"]["trackio"] = {"name": 3}
    with pytest.raises(InputError, match="trackio: name: expected"):
        log_tiny_run(folder, "trackio", resume=saved)


def test_trackio_keeps_a_copy_of_a_video(folder):
    pytest.importorskip("trackio", reason="needs trackio, which the extra dev installs")
    (folder / "start-000.mp4").write_bytes(b"a video")
    with Run(folder, Stage2Config(loggers=("trackio",))) as run:
        run.log_video(LoggedVideo("start-000", {"env_steps": 8}, folder / "start-000.mp4", [], 30))
    (copy,) = (folder.parent / "trackio" / "media").rglob("*.mp4")
    assert copy.read_bytes() == b"a video" and copy.parent.name == "8"


def test_what_trackio_cannot_open_is_one_line(folder, monkeypatch):
    pytest.importorskip("trackio", reason="needs trackio, which the extra dev installs")
    with pytest.raises(InputError, match=r"loggers trackio: .*Project name 'registry-x' is not allowed"):
        log_tiny_run(folder, "trackio", project="registry-x")
    (folder.parent / "taken").touch()
    monkeypatch.setattr("trackio.TRACKIO_DIR", folder.parent / "taken" / "trackio")
    other = folder.parent / "other"
    other.mkdir()
    with pytest.raises(InputError, match=r"loggers trackio: .*taken"):
        log_tiny_run(other, "trackio")


def test_without_trackio_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match=r"loggers trackio: .*pip install 'dsrl_offpolicy\[trackio\]'"):
        log_tiny_run(folder, "trackio")
