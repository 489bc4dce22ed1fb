"""The one reader of run folders: kinds and groups as written, and as told in folders of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_rows import KL_RUN, STAGE1_RUN, stage1_rows, stage2_rows, write_run

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.analysis.run_folder import read_runs
from dsrl_offpolicy.configs.jobs import EvalConfig, QuickstartConfig, Stage0Config
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import group_of, rows_of
from dsrl_offpolicy.tracking.run import Run

EVALUATION = {"success_once": 0.5, "success_once_low": 0.2, "success_once_high": 0.8}


@pytest.mark.parametrize("config", [Stage0Config(), STAGE1_RUN, KL_RUN], ids=["stage0", "stage1", "stage2"])
def test_the_kind_that_a_run_wrote_is_read_back(tmp_path, config):
    with Run(tmp_path, config):
        pass
    (run,) = read_runs(tmp_path)
    assert run.kind == config.kind and run.config == config and not run.finished
    (tmp_path / "run.json").unlink()  # of an earlier version: told from the settings
    assert [run.kind for run in read_runs(tmp_path)] == [config.kind]


def test_a_written_kind_is_not_guessed_again(tmp_path):
    write_run(tmp_path, KL_RUN, [])
    (tmp_path / "config.yaml").write_text("seed: 1\n")  # nothing to tell it by
    (tmp_path / "run.json").write_text('{"kind": "stage2"}')
    assert [run.config for run in read_runs(tmp_path)] == [Stage2Config()]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "stage9"}', '{"kind": ["stage2"]}', "\xff"])
def test_a_damaged_kind_is_one_line(tmp_path, text):
    write_run(tmp_path, KL_RUN, [])
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"run\.json: .*expected"):
        read_runs(tmp_path)


def test_a_run_of_another_kind_is_named(tmp_path):
    with Run(tmp_path, EvalConfig()):
        pass
    with pytest.raises(InputError, match="a run of eval"):
        read_runs(tmp_path)


def test_a_quickstart_is_its_stages(tmp_path):
    with Run(tmp_path, QuickstartConfig()):
        pass
    write_run(tmp_path / "stage1", STAGE1_RUN, stage1_rows(), {"minutes": 1})
    write_run(tmp_path / "stage2", KL_RUN, stage2_rows())
    assert [(run.kind, run.finished) for run in read_runs(tmp_path)] == [("stage1", True), ("stage2", False)]


def test_rows_are_read_by_group(tmp_path):
    rows = [
        {"group": "train", "env_steps": 1, "q_mean": 0.0, "success_once": 1.0},  # as it says, whatever it holds
        {"group": "eval", "env_steps": 2, **EVALUATION},
        {"group": "eval", "env_steps": 3, "success_once": 0.5},  # without an interval
    ]
    (run,) = read_runs(write_run(tmp_path, KL_RUN, rows))
    assert run.of("train") == rows[:1] and run.of("eval") == rows[1:] and run.evaluations == rows[1:2]


@pytest.mark.parametrize(
    ("row", "group"),
    [
        (stage2_rows(1)[0], "train"),
        (stage1_rows(1)[0], "stage1"),
        ({"env_steps": 1, "macro_steps": 1, "gradient_steps": 0, **EVALUATION}, "eval"),
        ({"gradient_steps": 5, "success_once": 0.5, "success_at_end": 0.5, "return": -3.0}, "eval"),
        ({"row": 1, "w = 0/success_once": 0.5}, "eval"),
        ({"gradient_steps": 5, "verification/q_prior": -1.0}, "diag"),
        ({"gradient_steps": 5, "flow_loss": 1.0, "critic_loss": 1.0, "q_mean": 1.0}, "stage0"),
        ({"gradient_steps": 5, "flow_loss": 1.0, "pose_loss": 1.0}, "encoder"),
        ({"stages_done": 2, "stage": 1.0}, "stages"),
    ],
)
def test_the_group_of_an_old_row_is_told_by_its_names(row, group):
    assert group_of(row) == group and rows_of([row, {"group": "train"}], group)[0] == row


def test_folders_of_released_formats_are_read():
    golden = Path(__file__).parents[1] / "golden"
    for folder in sorted(golden.glob("format-*/stage2")):
        (run,) = read_runs(folder)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert run.kind == "stage2" and len(run.rows) == len(lines)
        assert {group_of(row) for row in run.rows} <= {"train", "eval"}
