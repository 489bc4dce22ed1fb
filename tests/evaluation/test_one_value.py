"""One value has no interval: nothing stands in its place, and no verdict is built on it."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict

import numpy as np
import pytest
from run_rows import STAGE1_RUN, VERIFIED, stage1_rows

from dsrl_offpolicy.analysis.run_health import check_run
from dsrl_offpolicy.commands.evaluate import print_table, row_of, write_table
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome, summarise
from dsrl_offpolicy.evaluation.intervals import mean_interval
from dsrl_offpolicy.tracking.run import Run

OUTCOME = EpisodeOutcome(0, True, True, -3.0, 4)
ONE = summarise([OUTCOME])


def test_a_mean_of_one_value_has_no_bounds():
    assert mean_interval(np.array([2.0])).named("x") == {"x": 2.0, "x_low": None, "x_high": None}


def test_an_evaluation_of_one_episode_is_a_row_without_them_and_strict_json(tmp_path):
    row = ONE.row()
    assert row["return"] == -3.0 and row["success_once_low"] < 1 and "return_low" not in row
    with Run(tmp_path, Stage1Config()) as run:
        assert run.log("eval", row, {"gradient_steps": 1})["length"] == 4
    json.dumps(asdict(ONE), allow_nan=False)


def test_the_table_of_one_episode_keeps_its_columns(tmp_path, capsys):
    write_table(tmp_path, {"base": row_of([OUTCOME])})
    with (tmp_path / "evaluation.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["episode_return"] == "-3.0" and row["episode_return_low"] == row["length_high"] == ""
    (entry,) = json.loads((tmp_path / "evaluation.json").read_text())
    assert entry["episode_return_low"] is None and entry["success_once_high"] == pytest.approx(1.0)
    print_table({"base": row_of([OUTCOME])}, "one episode")
    assert "-3 " in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"difference_low": None, "difference_high": None, "states": 1.0},
        {"states": 1.0},  # as written before: the bounds are the value
    ],
)
def test_no_verdict_passes_on_one_state(changes):
    found = {**VERIFIED["verification"], **changes}
    verdicts = {v.name: v for v in check_run(STAGE1_RUN, stage1_rows(), {"verification": found})}
    assert verdicts["policy_above_prior"].ok is None
    assert {v.name: v for v in check_run(STAGE1_RUN, stage1_rows(), VERIFIED)}["policy_above_prior"].ok is True
