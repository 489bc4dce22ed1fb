"""What a report says of run folders: the verdict with its intervals, several seeds, and folders in a bad state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import TABLE, write_quickstart, write_stage2, write_table
from run_rows import ENTROPY_RUN, write_run

from dsrl_offpolicy.analysis.report import BASE, END, START, Group, Report, make_report
from dsrl_offpolicy.configs.jobs import EvalConfig, PPOConfig
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.tracking.run import Run

CURVE = [8, 14, 19]


def report(*folders: Path) -> Report:
    return make_report(list(folders), 0.8)


def only_group(*folders: Path) -> Group:
    (group,) = report(*folders).groups
    return group


def test_a_quickstart_is_base_start_stage_2_controls_and_cost(tmp_path):
    group = only_group(write_quickstart(tmp_path / "quick", 1, CURVE))
    assert (group.tone, group.headline) == ("better", "Stage 2 is better than its base policy")
    text = " ".join(group.sentences)
    # Wilson of 40, 60 and 95 of 100, to one digit: [30.9, 49.8], [50.2, 69.1], [88.8, 97.8].
    # Newcombe of .95 - .40: down sqrt((.95 - .8882)^2 + (.4980 - .40)^2) = .1158,
    # up sqrt((.9785 - .95)^2 + (.40 - .3094)^2) = .0950: [43.4, 64.5] points.
    assert (
        "from 40.0 % [30.9, 49.8] (base policy) over 60.0 % [50.2, 69.1] (start of Stage 2) to "
        "95.0 % [88.8, 97.8] (Stage 2): +55.0 points [+43.4, +64.5]" in text
    )
    assert "is above its best control, w = 0 45.0 %" in text
    # 30 rows of 1000 gradient steps at 10 per transition after 400, 8 env steps each: 8 (400 + 3000) = 27,200
    assert "27,200 env steps online, 40.0 minutes" in text
    assert [row.name for row in group.policies] == [
        BASE,
        "w = 0",
        START,
        "stage1 stochastic",
        END,
        "stage2 stochastic",
    ]


@pytest.mark.parametrize(
    ("stage2", "tone", "said"),
    [(95, "better", "better than"), (45, "unclear", "not shown to differ"), (10, "worse", "worse than")],
)
def test_the_verdict_follows_the_interval_of_the_difference(tmp_path, stage2, tone, said):
    group = only_group(write_quickstart(tmp_path / "quick", 1, CURVE, TABLE | {"stage2 deterministic": stage2}))
    assert group.tone == tone and said in group.headline


def test_a_gain_over_the_base_that_constant_noise_has_too_is_told(tmp_path):
    table = {"base (prior noise)": 28, "w = 0": 45, "best of 8 constants": 40, "stage2 deterministic": 54}
    group = only_group(write_quickstart(tmp_path / "quick", 1, CURVE, table))
    assert group.tone == "better"
    # .54 - .45 = .09, and the intervals of 54 and 45 of 100 overlap widely
    assert any("Stage 2 is not shown to be above its best control, w = 0 45.0 %" in s for s in group.sentences)


def test_stage_2_alone_is_held_against_its_own_start(tmp_path):
    group = only_group(write_stage2(tmp_path / "run", CURVE))
    # Wilson of 8 and 19 of 20: [.219, .613], [.764, .991]
    assert (group.tone, group.headline) == ("better", "Stage 2 is better than its own start")
    assert any("The base policy was not evaluated here" in sentence for sentence in group.sentences)
    assert group.policies[0].measured == "first evaluation, at 4,000 env steps"  # 8 (400 + 100)


def test_seeds_are_one_group_with_an_interval_over_runs(tmp_path):
    folders = [
        write_quickstart(tmp_path / f"q{seed}", seed, curve, TABLE | {"stage2 deterministic": end})
        for seed, curve, end in ((1, CURVE, 95), (2, [6, 10, 18], 90), (3, [7, 12, 20], 100))
    ]
    found = report(*folders)
    (group,) = found.groups
    by_name = {row.name: row for row in group.policies}
    assert by_name[END].per_source == {"q1": 0.95, "q2": 0.9, "q3": 1.0}
    # A bootstrap over three: 2.5 % of the resamples are three times the least or the greatest (1/27 = 3.7 %).
    assert by_name[END].success.value == pytest.approx(0.95)
    assert (by_name[END].success.low, by_name[END].success.high) == pytest.approx((0.9, 1.0))
    assert any("+55.0 points [+50.0, +60.0]" in s for s in group.sentences)
    assert found.comparison is not None and [len(g.runs) for g in found.comparison.groups] == [3]


def test_settings_tell_groups_apart_and_are_marked(tmp_path):
    folders = [write_stage2(tmp_path / f"tau{tau}", CURVE, tau=tau) for tau in (0.005, 0.01)]
    found = report(*folders)
    assert [group.name for group in found.groups] == ["tau=0.005", "tau=0.01"]
    assert found.comparison is not None and len(found.comparison.pairs) == 1
    (settings,) = found.settings
    assert [(row.name, row.values) for row in settings.rows if row.differs] == [("tau", ["0.005", "0.01"])]
    changed = {row.name: row.default for row in settings.rows if row.changed}
    assert "utd_ratio" in changed and "seed" not in changed  # 10 in these runs


def test_what_is_ill_comes_with_its_remedy(tmp_path):
    found = report(write_stage2(tmp_path / "run", CURVE, changes={"q_mean": lambda p: -55 - 500 * p}))
    (health,) = found.health
    ill = next(verdict for verdict in health.verdicts if verdict.name == "q_bounded")
    assert health.failed >= 1 and ill.ok is False and "critic_lr" in ill.remedy


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    folder = write_stage2(tmp_path / "run", [8], ended=False, total_timesteps=100_000)
    group = only_group(folder)
    assert any("stage2: not at its end: 27,200 of 100,000 steps" in sentence for sentence in group.sentences)
    assert group.headline == "Stage 2 succeeds in 40.0 % [21.9, 61.3]"


def test_a_run_without_evaluations_says_so(tmp_path):
    found = report(write_stage2(tmp_path / "run", []))
    assert found.groups[0].headline == "No evaluation of a policy that learned online yet"
    assert found.health[0].verdicts and any("has none yet" in note for note in found.notes)


def test_damage_is_told_and_the_rest_is_read(tmp_path):
    folder = write_quickstart(tmp_path / "quick", 1, CURVE)
    (folder / "stage1" / "metrics.jsonl").write_text("no row\n")
    (folder / "evaluation.json").write_text('[{"policy": "base (prior noise)", "success_once": 3}]')
    found = report(folder)
    (source,) = found.sources
    assert [run.kind for run in source.runs] == ["stage0", "stage2"]
    assert any("stage1" in p and "line 1" in p for p in source.problems)
    assert any("evaluation.json" in p for p in source.problems)
    assert found.groups[0].tone == "better"  # by the evaluations of Stage 2
    assert sum("cannot be read whole" in s for s in found.groups[0].sentences) == 2


@pytest.mark.parametrize("text", ["[", "{}", "[1]", '[{"policy": 1}]', "[" * 100_000, "[NaN]", "\x00"])
def test_a_damaged_table_is_a_problem_of_one_line(tmp_path, text):
    folder = write_quickstart(tmp_path / "quick", 1, CURVE)
    (folder / "evaluation.json").write_text(text)
    (problem,) = report(folder).sources[0].problems
    assert "evaluation.json" in problem and "\n" not in problem


def test_settings_of_another_version_leave_everything_but_the_verdicts(tmp_path):
    folder = write_stage2(tmp_path / "run", CURVE)
    with (folder / "config.yaml").open("a") as file:
        file.write("a_setting_of_old: 1\n")
    found = report(folder)
    assert "a_setting_of_old" in found.health[0].problem and not found.health[0].verdicts
    assert found.groups[0].tone == "better"


def test_code_that_a_folder_names_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("trap.py").write_text("raise SystemExit('loaded')\n")
    folder = write_stage2(tmp_path / "run", CURVE)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("algo: sac", "algo: trap:Agent"))
    found = report(folder)
    assert "trap:Agent" in found.health[0].problem and "dsrl doctor" in found.health[0].problem
    assert found.groups[0].tone == "better"


def test_the_same_seed_twice_is_two_groups_with_a_note(tmp_path):
    found = report(write_stage2(tmp_path / "a", CURVE), write_stage2(tmp_path / "b", CURVE))
    assert [group.name for group in found.groups] == ["a", "b"]
    assert any("seed 1" in note for note in found.notes)


def test_a_folder_of_an_evaluation_is_its_table(tmp_path):
    with Run(tmp_path / "eval", EvalConfig()) as run:
        run.write_summary({})
    write_table(tmp_path / "eval", TABLE)
    group = only_group(tmp_path / "eval")
    assert group.tone == "better" and not any("cannot be read" in s for s in group.sentences)


def test_ppo_has_curves_and_a_verdict_and_no_health(tmp_path):
    rows = [json.loads(line) for line in (write_stage2(tmp_path / "s", CURVE) / "metrics.jsonl").open()]
    folder = write_run(tmp_path / "ppo", PPOConfig(), rows, {"minutes": 1.0})
    (folder / "run.json").write_text('{"kind": "ppo"}')
    found = report(folder)
    assert found.groups[0].headline == "PPO is better than its own start" and not found.health


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path, "is not there"),
        (lambda path: (path.mkdir(), path)[1], "has no config.yaml"),
        (lambda path: (path.write_text(""), path)[1], "is not one"),
    ],
)
def test_what_is_no_folder_of_a_run_is_refused(tmp_path, make, said):
    with pytest.raises(InputError, match=said):
        report(make(tmp_path / "x"))


def test_the_same_folder_twice_is_refused(tmp_path):
    folder = write_run(tmp_path / "run", ENTROPY_RUN, [])
    with pytest.raises(InputError, match="every run once"):
        report(folder, tmp_path / "." / "run")
