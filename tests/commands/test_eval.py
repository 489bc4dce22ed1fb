"""``dsrl eval``: controls that are screened, rows that end, and what the table says of both."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from dsrl_offpolicy.configs.jobs import EvalConfig
from dsrl_offpolicy.seeding import torch_generator

GUIDED = ["--base", "probe_worlds:Guided", "--env_id", "latent_worlds:Reach-v0", "--num_envs", 2]
CONSTANTS = 8


@pytest.fixture(scope="module")
def golden(run_command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent policy that always succeeds: a constant that Stage 1 found."""
    out = tmp_path_factory.mktemp("golden") / "run"
    small = ["--constants", 16, "--screening_episodes", 2, "--choosing_episodes", 4, "--actor_hidden_dims", 8]
    done = run_command(["stage1", "--method", "golden_ticket", *GUIDED, *small, "--out", out])
    assert done.status == 0, done.err
    return out / "checkpoints" / "last.pt"


@pytest.fixture
def table(run_command, tmp_path: Path):
    """Runs ``dsrl eval``; returns its rows by name, and what it printed."""

    def run(name: str, *flags: object) -> tuple[dict[str, dict], str]:
        out = tmp_path / name
        small = ["--episodes", 40, "--constants", CONSTANTS, "--screening_episodes", 6]
        done = run_command(["eval", *GUIDED, *small, "--eval_end_on_success", "--out", out, *flags])
        assert done.status == 0, done.err
        rows = {row["policy"]: row for row in json.loads((out / "evaluation.json").read_text())}
        with (out / "evaluation.csv").open(newline="") as file:
            lines = {line["policy"]: line for line in csv.DictReader(file)}
        assert {name: int(line["env_steps"]) for name, line in lines.items()} == {
            name: row["env_steps"] for name, row in rows.items()
        }
        return rows, done.out

    return run


def test_rows_that_are_decided_end_and_the_others_keep_their_numbers(table, golden):
    flags = ("--stage1_checkpoint", golden)
    whole, whole_shown = table("whole", *flags)
    ended, shown = table("ended", *flags, "--end_decided_rows")
    assert list(whole) == list(ended)
    assert {(row["episodes"], row["standing"]) for row in whole.values()} == {(40, None)}
    for name in ("base (prior noise)", "w = 0", "stage1 deterministic"):
        assert {**ended[name], "standing": None} == whole[name]
    # Stage 1's constant succeeds always, w = 0 never: 10 losses at the first look, p = 2^-10 = .00098. With four
    # rows and four looks the level is .05 / 16 = .0031.
    assert ended["w = 0"]["standing"] == "below" and ended["stage1 deterministic"]["standing"] is None
    assert ended["stage1 deterministic"]["success_once"] == 1.0
    for name, row in ended.items():
        full = name in ("base (prior noise)", "w = 0", "stage1 deterministic") or row["standing"] != "below"
        assert row["episodes"] in ((40,) if full else (10, 20, 30, 40)), name
    assert "standing: against stage1 deterministic" in shown and "docs/statistics.md" in shown
    assert "below" in shown and "standing" not in whole_shown


def test_a_row_that_fails_on_every_start_ends_at_the_first_look(table, golden):
    # Constants in this world succeed always or never; of two there is none that succeeds (see the next test).
    rows, _ = table("two", "--stage1_checkpoint", golden, "--end_decided_rows", "--constants", worthless())
    row = rows[f"best of {worthless()} constants"]
    assert (row["standing"], row["episodes"], row["success_once"], row["env_steps"]) == ("below", 10, 0.0, 120)


def worthless() -> int:
    """How many of the constants that ``dsrl eval`` draws first never succeed: those with c1 + c2 < 1.133, as in
    ``test_probe.py``."""
    generator = torch_generator(1, "constants")
    drawn = [torch.randn(4, 1, generator=generator) for _ in range(CONSTANTS)]
    good = [float(c[1] + c[2]) > 1.134 for c in drawn]
    assert 0 < good.index(True) < CONSTANTS
    return good.index(True)


def test_the_best_constant_is_found_on_few_episodes_and_its_cost_told(table):
    rows, shown = table("constants")
    row = rows[f"best of {CONSTANTS} constants"]
    assert row["success_once"] == 1.0 and row["episodes"] == 40
    # Those before the first good one fail once each, 12 env steps; it succeeds on 6 starts, in at most 12 each;
    # what runs beside it in the other slot costs at most as much again.
    assert 12 * worthless() < row["choosing_env_steps"] <= 12 * (worthless() + 2 * 6)
    assert f"{row['choosing_env_steps']:,} env steps more" in shown
    assert {r["choosing_env_steps"] for name, r in rows.items() if "constants" not in name} == {0}
    assert rows["w = 0"]["env_steps"] == 40 * 12 and "480" in shown


def test_without_a_latent_policy_nothing_can_be_decided(run_command, tmp_path):
    done = run_command(["eval", *GUIDED, "--end_decided_rows", "--out", tmp_path / "x"])
    assert done.status == 2 and len(done.error_lines) == 1 and not (tmp_path / "x").exists()
    assert "end_decided_rows" in done.err and "--stage2_checkpoint" in done.err


def test_rows_end_only_where_it_is_asked_for():
    assert EvalConfig().end_decided_rows is False
