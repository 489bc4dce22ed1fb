"""The doctor on demonstrations as noise and on the choice of a start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_rows import stage2_rows

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.analysis.run_health import check_run
from dsrl_offpolicy.configs.jobs import Stage1Config

RUN = Stage2Config(demo_path=Path("demos.h5"), regularizer="kl", batch_size=400, reward_scale=1.0)


def of(verdicts, name):
    (found,) = [v for v in verdicts if v.name == name]
    return found


def inversion(windows: float, left_out: float):
    return {
        "group": "diag", "env_steps": 0, "gradient_steps": 0,
        "inversion_windows": windows, "inversion_left_out": left_out, "inversion_error_median": 1e-4,
    }  # fmt: skip


@pytest.mark.parametrize(("left_out", "ok"), [(0, True), (50, True), (51, False)])
def test_most_windows_must_invert(left_out, ok) -> None:
    found = of(check_run(RUN, [inversion(100, left_out), *stage2_rows(9)], {}), "demonstrations")
    assert found.ok is ok and found.values["left_out"] == left_out / 100


def test_before_they_are_inverted_nothing_is_said_and_without_any_nothing_is_asked() -> None:
    assert of(check_run(RUN, stage2_rows(9), {}), "demonstrations").ok is None
    assert not [
        v for v in check_run(replace(RUN, demo_path=None), stage2_rows(9), {}) if v.name == "demonstrations"
    ]


def test_the_warm_up_needs_what_a_batch_takes_of_it() -> None:
    # 400 macro-transitions before the first update: too few for a batch of 600, enough for its half.
    config = replace(RUN, batch_size=600)
    rows = stage2_rows(9)
    assert of(check_run(config, rows, {}), "warmup").ok is False
    assert of(check_run(config, [{**row, "offline_fraction": 0.5} for row in rows], {}), "warmup").ok is True


def choice(chosen: float, prior: float):
    trials = {"prior": {"success_once": prior}, "constant 1": {"success_once": chosen}}
    return {"choice": {"chosen": "constant 1", "trials": trials}}


def test_what_is_handed_over_is_held_against_the_prior() -> None:
    config = Stage1Config(method="golden_ticket")
    (found,) = check_run(config, [], choice(0.75, 0.5))
    assert found.ok and "75 % against 50 %" in found.found
    assert check_run(config, [], choice(0.25, 0.5))[0].ok is False
    for unknown in ({}, {"choice": None}, {"choice": {"chosen": "x", "trials": {}}}, {"choice": []}):
        assert check_run(config, [], unknown)[0].ok is None


def test_auto_is_judged_by_both() -> None:
    names = [v.name for v in check_run(Stage1Config(method="auto"), [], {})]
    assert names[0] == "start" and "policy_above_prior" in names
    assert "start" not in [v.name for v in check_run(Stage1Config(), [], {})]
