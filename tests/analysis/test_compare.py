"""``dsrl compare``: run folders to numbers, groups told apart, and bad input that costs one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_worlds import TASK, TINY_WIDTHS, snapshot

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.analysis.comparison import compare
from dsrl_offpolicy.analysis.stage2_runs import evaluated, read_run
from dsrl_offpolicy.commands.compare import write
from dsrl_offpolicy.configs.loading import to_plain
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.intervals import wilson_interval


def write_run(folder: Path, successes: Sequence[int], every: int = 100, offset: int = 0, **settings: Any) -> Path:
    """A run folder with evaluations of 10 episodes every so many env steps, and rows of training between them."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(Stage2Config()) | settings))
    with (folder / "metrics.jsonl").open("w") as file:
        for index, count in enumerate(successes):
            rate = wilson_interval(count, 10)
            row = {"success_once": rate.value, "success_once_low": rate.low, "success_once_high": rate.high}
            steps = offset + every * index
            file.write(json.dumps({"env_steps": steps, **row}) + "\n")
            file.write(json.dumps({"env_steps": steps + 1, "q_mean": -1.0}) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Three seeds each of two values of one setting, as an experiment leaves them; also the working directory."""
    monkeypatch.chdir(tmp_path)
    counts = {1: [[0, 4, 10], [2, 6, 8], [1, 5, 9]], 4: [[0, 2, 4], [2, 2, 10], [1, 0, 3]]}
    for k, curves in counts.items():
        for seed, successes in enumerate(curves, start=1):
            write_run(
                Path(f"q{seed}-k{k}"), successes, seed=seed, actor_update_every=k, out=f"runs/q{seed}-k{k}",
                awsc_checkpoint=f"runs/q{seed}/last.pt", log_freq=seed, eval_freq=seed,
            )  # fmt: skip
    return tmp_path


def compared(run_command, *argv: object) -> dict[str, Any]:
    done = run_command(["compare", *argv, "--json"])
    assert done.status == 0 and done.err == "", done.err
    return json.loads(done.out)


def members(report: dict[str, Any]) -> dict[str, list[str]]:
    return {group["name"]: [Path(run["name"]).name for run in group["runs"]] for group in report["groups"]}


def test_groups_are_the_values_of_the_setting_that_differs(run_command, runs):
    report = compared(run_command, *sorted(runs.iterdir()))
    assert members(report) == {
        "actor_update_every=1": ["q1-k1", "q2-k1", "q3-k1"],
        "actor_update_every=4": ["q1-k4", "q2-k4", "q3-k4"],
    }
    assert (report["first_env_step"], report["last_env_step"]) == (0, 200)
    one, four = report["groups"]
    # Ends 1, .8, .9 and .4, 1, .3. Areas (trapezoids over 200 steps): (0 + 2 * .4 + 1) / 4 = .45,
    # (.2 + 1.2 + .8) / 4 = .55, (.1 + 1 + .9) / 4 = .5; and (0 + .4 + .4) / 4 = .2, (.2 + .4 + 1) / 4 = .4,
    # (.1 + 0 + .3) / 4 = .1.
    assert one["success_mean"] == pytest.approx({"value": 0.9, "low": 0.8, "high": 1.0})
    assert one["area_iqm"] == pytest.approx({"value": 0.5, "low": 0.45, "high": 0.55})
    assert four["area_mean"] == pytest.approx({"value": 0.7 / 3, "low": 0.1, "high": 0.4})
    # .8 is reached at the last evaluation of every run of the first group, and of one of the second
    assert (one["reached_level"], one["median_env_steps_to_level"]) == (3, 200)
    assert (four["reached_level"], four["median_env_steps_to_level"]) == (1, None)
    assert [run["env_steps_to_level"] for run in four["runs"]] == [None, 200, None]
    (pair,) = report["pairs"]
    assert (pair["name"], pair["than"]) == ("actor_update_every=4", "actor_update_every=1")
    # At the end only the run with 1 wins: against .8, .9, and ties with 1: 2.5 of 9 pairs; no area wins.
    assert pair["probability_success"]["value"] == pytest.approx(2.5 / 9)
    assert pair["probability_area"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    # Seed by seed -.6, +.2, -.6 at the end; areas -.25, -.15, -.4.
    assert pair["paired"]
    assert pair["difference_success"] == pytest.approx({"value": -1 / 3, "low": -0.6, "high": 0.2})
    assert pair["difference_area"] == pytest.approx({"value": -0.8 / 3, "low": -0.4, "high": -0.15})
    # 2 / C(6, 3) = 10 %
    assert any("3 runs have 10 different resamples" in note for note in report["notes"])
    assert any("3 and 3 runs are so in 10 % of cases" in note for note in report["notes"])


def test_a_quickstarts_folder_is_its_stage_2(run_command, tmp_path):
    for seed in (1, 2):
        folder = tmp_path / f"quick{seed}"
        write_run(folder / "stage2", [1, 9], seed=seed)
        (folder / "config.yaml").write_text("task: pick-place-v3\nbudget: 1.0\n")
        (folder / "metrics.jsonl").write_text('{"stage": 0}\n')
    report = compared(run_command, tmp_path / "quick1", tmp_path / "quick2")
    assert members(report) == {"pick-place-v3": ["stage2", "stage2"]} and report["pairs"] == []
    done = run_command(["compare", tmp_path / "quick1", tmp_path / "quick1" / "stage2"])
    assert done.status == 2 and "twice" in done.err


def test_groups_by_name_and_the_same_group_against_itself(run_command, runs):
    report = compared(
        run_command, "--group", "slow", *runs.glob("q*-k4"), "--group", "fast", *runs.glob("q*-k1"), "--level", 0.4
    )
    assert list(members(report)) == ["slow", "fast"]
    assert report["pairs"][0]["probability_success"]["value"] == pytest.approx(1 - 2.5 / 9)
    # .4 is first met at 100, 100, 100 of the fast ones and at 200, 200, never of the slow
    assert [group["median_env_steps_to_level"] for group in report["groups"]] == [200, 100]
    for seed in (1, 2, 3):
        write_run(runs / f"copy{seed}", [[0, 4, 10], [2, 6, 8], [1, 5, 9]][seed - 1], seed=seed)
    report = compared(run_command, "--group", "a", *runs.glob("q*-k1"), "--group", "b", *runs.glob("copy*"))
    for score in ("success", "area"):
        assert report["pairs"][0][f"probability_{score}"]["value"] == 0.5
        assert report["pairs"][0][f"difference_{score}"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_what_runs_of_a_named_group_do_not_share_is_said(run_command, runs):
    done = run_command(["compare", "--group", "mixed", *sorted(runs.glob("q1*"))])
    assert done.status == 0
    assert "note: mixed: runs differ in actor_update_every (1, 4)" in done.out


def test_checkpoints_belong_to_seeds_unless_seeds_share_them(run_command, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", [1, 2], seed=seed, awsc_checkpoint="a.pt")
        write_run(tmp_path / f"b{seed}", [3, 4], seed=seed, awsc_checkpoint="b.pt")
    report = compared(run_command, *tmp_path.iterdir())
    assert {name: sorted(found) for name, found in members(report).items()} == {
        "awsc_checkpoint=a.pt": ["a1", "a2"],
        "awsc_checkpoint=b.pt": ["b1", "b2"],
    }
    write_run(tmp_path / "c1", [3, 4], seed=1, awsc_checkpoint="c.pt")
    write_run(tmp_path / "d2", [3, 4], seed=2, awsc_checkpoint="d.pt", stage1_checkpoint="e.pt")
    report = compared(run_command, tmp_path / "a1", tmp_path / "b2")
    assert len(members(report)) == 1
    report = compared(run_command, tmp_path / "c1", tmp_path / "d2")
    assert list(members(report)) == ["stage1_checkpoint=given", "stage1_checkpoint=none"]


def test_where_a_run_ends_is_a_setting_only_where_learning_rates_depend_on_it(run_command, tmp_path):
    for seed, steps in ((1, 300), (2, 600)):
        write_run(tmp_path / f"plain{seed}", [1, 2], seed=seed, total_timesteps=steps)
        write_run(tmp_path / f"annealed{seed}", [1, 2], seed=seed, total_timesteps=steps, anneal_from=0.5)
    assert len(members(compared(run_command, *tmp_path.glob("plain*")))) == 1
    assert list(members(compared(run_command, *tmp_path.glob("annealed*")))) == [
        "total_timesteps=300", "total_timesteps=600",
    ]  # fmt: skip


def test_only_the_common_range_counts_and_grids_may_differ(run_command, tmp_path):
    write_run(tmp_path / "short", [0, 5, 10], seed=1, every=100)  # to 200: 0, .5, 1
    write_run(tmp_path / "long", [0, 8, 10, 10], seed=2, every=160, offset=40)  # 40, 200, 360, 520: 0, .8, 1, 1
    report = compared(run_command, tmp_path / "short", tmp_path / "long", "--level", 0.9)
    assert (report["first_env_step"], report["last_env_step"]) == (40, 200)
    short, long = report["groups"][0]["runs"]
    assert (short["success"], long["success"]) == (1.0, 0.8)
    # .2 at 40 to 1 at 200 in a line: .6; 0 to .8: .4
    assert (short["area"], long["area"]) == pytest.approx((0.6, 0.4))
    assert (short["env_steps_to_level"], long["env_steps_to_level"]) == (200, None)
    # The grid has the 2 points that the long run has there.
    assert [point["env_steps"] for point in report["groups"][0]["curve"]] == [40, 200]
    assert any("1 of 2 runs go on beyond 200 env steps" in note for note in report["notes"])


def test_evaluations_a_few_env_steps_late_count(run_command, tmp_path):
    write_run(tmp_path / "a", [0, 5, 8], seed=1)
    write_run(tmp_path / "b", [0, 5, 8], seed=2, offset=8)
    report = compared(run_command, tmp_path / "a", tmp_path / "b")
    assert [run["env_steps_to_level"] for run in report["groups"][0]["runs"]] == [200, 208]
    assert [point["env_steps"] for point in report["groups"][0]["curve"]] == [8, 104, 200]
    assert not any("go on beyond" in note for note in report["notes"])


def test_equal_runs_tie_wherever_their_evaluations_fall(run_command, tmp_path):
    # The common end is 206. Interpolated there, the runs of the second group would be above .8; their evaluations
    # are not. Success is .9 throughout in the last two, on other grids: so is the area.
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", [0, 9, 8], seed=seed, offset=6)
        write_run(tmp_path / f"b{seed}", [0, 9, 8], seed=seed, offset=30, gamma=0.5)
    (pair,) = compared(run_command, *tmp_path.glob("a*"), *tmp_path.glob("b*"))["pairs"]
    assert pair["probability_success"]["value"] == 0.5
    assert pair["difference_success"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    write_run(tmp_path / "c1", [9] * 8, offset=1, every=31)
    write_run(tmp_path / "d1", [9] * 4, offset=3, every=77, gamma=0.5)
    report = compared(run_command, tmp_path / "c1", tmp_path / "d1")
    assert report["pairs"][0]["probability_area"]["value"] == 0.5
    assert [group["area_mean"]["value"] for group in report["groups"]] == [0.9, 0.9]


def test_one_run_has_the_intervals_of_its_episodes_and_none_over_runs(run_command, tmp_path):
    write_run(tmp_path / "a", [0, 5, 8])
    report = compared(run_command, tmp_path / "a")
    (group,) = report["groups"]
    wilson = wilson_interval(8, 10)
    assert group["interval_over"] == "episodes"
    assert group["success_mean"] == pytest.approx({"value": 0.8, "low": wilson.low, "high": wilson.high})
    assert group["area_mean"]["low"] is None
    done = run_command(["compare", tmp_path / "a"])
    assert "one run has no interval over runs" in done.out
    # One run against two: a probability, and no interval.
    for seed in (2, 3):
        write_run(tmp_path / f"b{seed}", [0, 5, 9], seed=seed, gamma=0.5)
    (pair,) = compared(run_command, *tmp_path.iterdir())["pairs"]
    assert pair["probability_success"] == {"value": 0.0, "low": None, "high": None} and not pair["paired"]


def test_tasks_are_strata_of_a_named_group_and_groups_of_other_tasks_are_not_held_against_it(
    run_command, tmp_path
):
    for seed in (1, 2):
        write_run(tmp_path / f"easy{seed}", [9, 10], seed=seed, env_id="easy")
        write_run(tmp_path / f"hard{seed}", [0, 1], seed=seed, env_id="hard")
    report = compared(run_command, *tmp_path.iterdir())
    assert sorted(members(report)) == ["env_id=easy", "env_id=hard"] and report["pairs"] == []
    assert any("their tasks differ" in note for note in report["notes"])
    both = compared(run_command, "--group", "both", *tmp_path.iterdir())["groups"][0]
    assert both["success_mean"] == pytest.approx({"value": 0.55, "low": 0.55, "high": 0.55})  # resampled by task


def test_files_and_tables_hold_the_same_and_nothing_is_written_over(run_command, runs):
    out = runs / "new" / "report"
    folders = sorted(runs.glob("q*"))
    before = snapshot(runs / "q1-k1")
    done = run_command(["compare", *folders, "--out", out])
    assert done.status == 0 and "compare.png" in done.err
    assert snapshot(runs / "q1-k1") == before
    assert sorted(path.name for path in out.iterdir()) == ["compare.csv", "compare.json", "compare.png"]
    assert json.loads((out / "compare.json").read_text()) == compared(run_command, *folders)
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    with (out / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and rows[2]["group"] == "actor_update_every=1" and rows[2]["env_steps"] == "200"
    assert float(rows[2]["iqm"]) == pytest.approx(0.9)
    shown = " ".join(done.out.split())
    for words in (
        "┃ actor_update_every ┃ seeds ┃", "│ 1 │ 1, 2, 3 │ 90.0 [80.0, 100.0] │ 50.0 [45.0, 55.0] │ 3 of 3, 200 │",
        "27.8 [", "-33.3 [-60.0, +20.0]", "95 % intervals, percentile bootstrap over runs, 10,000 resamples",
    ):  # fmt: skip
        assert words in shown
    held = snapshot(out)
    again = run_command(["compare", *folders, "--out", out])
    assert again.status == 2 and "compare.json exists" in again.err and again.out == ""
    assert snapshot(out) == held


def test_a_file_that_appears_meanwhile_is_not_written_over(tmp_path):
    runs = {"a": [evaluated(read_run(write_run(tmp_path / f"run{seed}", [1, 2], seed=seed))) for seed in (1, 2)]}
    write(compare(runs, 0.5), tmp_path)
    held = snapshot(tmp_path)
    with pytest.raises(InputError, match="File exists"):
        write(compare(runs, 0.9), tmp_path)
    assert snapshot(tmp_path) == held


def test_a_row_that_a_killed_run_left_unfinished_is_no_row(run_command, tmp_path):
    folder = write_run(tmp_path / "a", [0, 5, 8])
    before = compared(run_command, folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 300, "success_once": 0.')
    assert compared(run_command, folder) == before


def test_interquartile_means_are_shown_where_they_are_something_of_their_own(run_command, tmp_path):
    for seed, last in enumerate([0, 8, 9, 10], start=1):
        write_run(tmp_path / f"a{seed}", [0, last], seed=seed)
    done = run_command(["compare", *tmp_path.iterdir()])
    # mean (0 + .8 + .9 + 1) / 4, IQM (.8 + .9) / 2
    assert "success, IQM" in done.out and "67.5 [" in done.out and "85.0 [" in done.out


def test_a_real_run(run_command, tiny_base, tmp_path):
    for seed in (1, 2):
        done = run_command([
            "stage2", "--env_id", TASK, "--awsc_checkpoint", tiny_base, "--out", tmp_path / f"run{seed}",
            "--seed", seed, "--total_timesteps", 96, "--warmup_steps", 32, "--batch_size", 4, "--utd_ratio", 0.5,
            "--eval_freq", 48, "--eval_episodes", 2, "--num_envs", 1, "--max_episode_steps", 16, *TINY_WIDTHS,
        ])  # fmt: skip
        assert done.status == 0, done.err
    report = compared(run_command, tmp_path / "run1", tmp_path / "run2", "--level", 1)
    (group,) = report["groups"]
    assert group["name"] == TASK and [run["seed"] for run in group["runs"]] == [1, 2]
    assert report["last_env_step"] == 96 and 0 <= group["success_mean"]["value"] <= 1


def _damaged(name: str, text: str) -> list[object]:
    folder = write_run(Path(name), [1, 2])
    (folder / "metrics.jsonl").write_text(text)
    return [folder]


def _configured(text: str) -> list[object]:
    folder = write_run(Path("odd"), [1, 2])
    (folder / "config.yaml").write_text(text)
    return [folder]


def _row(steps: object, rate: object) -> str:
    return json.dumps(
        {"env_steps": steps, "success_once": rate, "success_once_low": rate, "success_once_high": rate}
    )


BAD = {
    "nothing": (lambda: [], ["RUN_DIR", "--group", "neither"]),
    "both": (lambda: ["q1-k1", "--group", "a", "q2-k1"], ["--group", "both"]),
    "a name alone": (lambda: ["--group", "a"], ["--group", "'a'"]),
    "a name twice": (lambda: ["--group", "a", "q1-k1", "--group", "a", "q2-k1"], ["'a' twice"]),
    "no folder": (lambda: ["nowhere"], ["RUN_DIR", "nowhere", "does not exist"]),
    "no run": (lambda: ["."], ["config.yaml", "does not exist"]),
    "the same twice": (lambda: ["q1-k1", "./q1-k1/"], ["q1-k1 twice"]),
    "the same in two groups": (lambda: ["--group", "a", "q1-k1", "--group", "b", "q1-k1"], ["q1-k1 twice"]),
    "a seed twice": (
        lambda: ["q1-k1", write_run(Path("again"), [1, 2, 3], seed=1, awsc_checkpoint="runs/q9/last.pt")],
        ["each seed once", "seed 1", "q1-k1", "again", "--group"],
    ),
    "level": (lambda: ["q1-k1", "--level", "80"], ["--level", "(0, 1]", "80"]),
    "level nan": (lambda: ["q1-k1", "--level", "nan"], ["--level", "nan"]),
    "a flag": (lambda: ["q1-k1", "--levle", "1"], ["--levle"]),
    "one evaluation": (lambda: [write_run(Path("one"), [1])], ["one", "two evaluations", "1"]),
    "no evaluation": (lambda: _damaged("none", '{"env_steps": 1, "q_mean": 2}\n'), ["none", "evaluations"]),
    "empty": (lambda: _damaged("empty", ""), ["empty", "evaluations"]),
    "apart": (
        lambda: [write_run(Path("early"), [1, 2]), write_run(Path("late"), [1, 2], offset=500, seed=2)],
        ["early", "late", "100", "500"],
    ),
    "no JSON": (
        lambda: _damaged("bad", f"{_row(1, 0.5)}\nrubbish\n{_row(3, 0.5)}\n"),
        ["line 2", "expected JSON"],
    ),
    "no row": (lambda: _damaged("bad", f"[1]\n{_row(3, 0.5)}\n"), ["line 1"]),
    "no text": (lambda: _damaged("bad", "\n"), ["line 1"]),
    "a rate of 2": (lambda: _damaged("bad", _row(1, 2.0) + "\n"), ["success_once", "[0, 1]", "2.0"]),
    "a rate that is none": (lambda: _damaged("bad", _row(1, "x") + "\n"), ["success_once", "x"]),
    "NaN": (lambda: _damaged("bad", _row(1, float("nan")) + "\n"), ["line 1", "expected JSON"]),
    "env steps back": (lambda: _damaged("bad", f"{_row(5, 0.5)}\n{_row(5, 0.5)}\n"), ["env_steps", "5"]),
    "no env steps": (lambda: _damaged("bad", _row(None, 0.5) + "\n"), ["env_steps", "None"]),
    "a seed that is none": (lambda: [write_run(Path("x"), [1, 2], seed=[1])], ["config.yaml", "seed", "[1]"]),
    "a setting without a name": (
        lambda: _configured("1: 2\nutd_ratio: 9\n"),
        ["config.yaml", "settings by name", "got 1"],
    ),
    "no settings": (lambda: _configured("- 1\n"), ["config.yaml", "mapping"]),
    "out is a file": (lambda: ["q1-k1", "--out", "q1-k1/config.yaml"], ["--out", "q1-k1/config.yaml"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(run_command, runs, case):
    make, words = BAD[case]
    argv = make()
    before = snapshot(runs)
    done = run_command(["compare", *argv])
    assert done.status == 2 and done.out == ""
    assert len(done.error_lines) == 1 and done.err.startswith("dsrl compare: error: "), done.err
    for word in words:
        assert word in done.err
    assert snapshot(runs) == before


def test_other_folders_are_told_from_runs_of_stage_2(run_command, tiny_stage0, tiny_stage1, tmp_path):
    for folder in (tiny_stage0, tiny_stage1):
        done = run_command(["compare", folder])
        assert done.status == 2 and "expected a run of Stage 2" in done.err and len(done.error_lines) == 1
    folder = write_run(tmp_path / "binary", [1, 2])
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    done = run_command(["compare", folder])
    assert done.status == 2 and len(done.error_lines) == 1 and "metrics.jsonl" in done.err


def test_who_reads_only_the_beginning_of_the_output_is_not_told_a_traceback(runs):
    process = subprocess.Popen(
        [sys.executable, "-m", "dsrl_offpolicy.cli", "compare", "q1-k1", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) == 141


def test_help_says_how(run_command):
    done = run_command(["compare", "--help"])
    assert done.status == 0
    for words in ("RUN_DIR", "--group", "--level", "--out", "--json"):
        assert words in done.out
