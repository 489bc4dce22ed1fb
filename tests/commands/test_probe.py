"""``dsrl probe`` on policies whose dependence on noise is known by hand, and what it says of bad input."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_worlds import TASK, snapshot

from dsrl_offpolicy.commands.probe import PRIOR
from dsrl_offpolicy.seeding import torch_generator

WORLD = ["--env_id", "latent_worlds:Reach-v0", "--num_envs", 2]
SMALL = [*WORLD, "--episodes", 20, "--states", 8, "--noises", 4]


def probed(run_command, policy: str, *flags: object) -> dict:
    done = run_command(["probe", "--base", f"probe_worlds:{policy}", *SMALL, *flags, "--json"])
    assert done.status == 0, done.err
    return json.loads(done.out)


def rules(found: dict) -> list[str]:
    return [sentence["rule"] for sentence in found["expect"]]


def test_a_planted_good_constant_is_found(run_command):
    found = probed(run_command, "Guided")
    rows = found["success"]
    generator = torch_generator(1, "constants")
    drawn = {f"constant {i}": torch.randn(4, 1, generator=generator) for i in range(1, 9)}
    # Of its 12 env steps the policy spends 6 on each executed row and gains .125 of the row's noise by each: it
    # must come within .15 of 1, so 6 * .125 (c1 + c2) > .85, c1 + c2 > 1.133.
    good = {name for name, c in drawn.items() if float(c[1] + c[2]) > 1.134}
    above = {name for name, row in rows.items() if row["standing"] == "above"}
    assert above == good and len(good) > 0 and rows["w = 0"]["successes"] == 0
    assert {rows[name]["successes"] for name in above} == {20}
    assert {row["episodes"] for name, row in rows.items() if name not in above | {PRIOR}} <= {5, 10}
    assert rules(found) == ["constant_above", "other_rows_idle"]
    effect = found["noise_effect"]
    assert effect["repeated"] == effect["other_rows"] == 0.0 and effect["by_row"][0] == effect["by_row"][3] == 0.0
    assert found["env_steps"] == sum(row["env_steps"] for row in rows.values())
    assert rows["w = 0"]["env_steps"] == 12 * rows["w = 0"]["episodes"]  # to the time limit


def test_a_sure_base_leaves_little_to_gain_and_episodes_end_at_success(run_command):
    found = probed(run_command, "Sure", "--constants", 2)
    # A step is an eighth: 7 of them make .875, within .15 of 1. The noise's .001 * .25 does not change that.
    prior = found["success"][PRIOR]
    assert (prior["successes"], prior["env_steps"]) == (20, 20 * 7)
    # No start is left to win, so every comparison ends at its first look, after 5 of 20 starts.
    assert {row["episodes"] for name, row in found["success"].items() if name != PRIOR} == {5}
    assert rules(found)[0] == "near_ceiling" and "hardly_moves" in rules(found)


def test_noise_that_moves_nothing_executed_costs_the_prior_alone(run_command):
    found = probed(run_command, "Deaf")
    assert rules(found) == ["ignores_noise"] and list(found["success"]) == [PRIOR]
    assert found["env_steps"] == 20 * 12


def test_the_same_seed_gives_the_same_numbers_whatever_runs_beside(run_command):
    flags = ("--constants", 2)
    one, other = probed(run_command, "Aimless", *flags), probed(run_command, "Aimless", *flags, "--num_envs", 3)
    assert one["success"] == other["success"]
    assert one == probed(run_command, "Aimless", *flags)


def test_the_screen_shows_table_and_page_and_nothing_is_written(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command(["probe", "--base", "probe_worlds:Guided", *SMALL])
    assert done.status == 0, done.err
    for words in (
        "equal to the bit",
        "w = 0",
        "not shown",
        "against the prior",
        "A constant noise alone is better",
    ):
        assert words in done.out
    assert snapshot(tmp_path) == {}


@pytest.mark.timeout(240)
def test_demonstrations_are_inverted_where_the_policy_can_be(run_command, tiny_base, tiny_demos):
    small = ["--episodes", 2, "--constants", 0, "--states", 2, "--noises", 2, "--max_episode_steps", 16]
    argv = ["probe", "--base", tiny_base, "--env_id", TASK, "--demo_path", tiny_demos, "--num_envs", 1, *small]
    done = run_command([*argv, "--json"])
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["inversion"]["windows"] > 100 and found["inversion"]["error_p90"] < 1e-3
    assert rules(found)[-1] == "inverts"
    done = run_command([*argv, "--inversion_tolerance", 1e-9])
    assert done.status == 0 and "inversion error, median" in done.out and "Only" in done.out


BAD = {
    "no base": ([], ["--base", "dsrl pretrain"]),
    "unknown base": (["--base", "nowhere.pt"], ["base", "nowhere.pt"]),
    "unknown module": (["--base", "probe_wrlds:Guided"], ["probe_wrlds", "neither a file"]),
    "another width": (["--base", "probe_worlds:TwoArmed"], ["expected 1 action dimensions", "got 2"]),
    "not deterministic": (["--base", "probe_worlds:Moody"], ["same latent decoded", "deterministic"]),
    "ignores its noise": (["--base", "probe_worlds:Ignorant"], ["two different latents", "cannot be steered"]),
    "no episodes": (["--base", "probe_worlds:Guided", "--episodes", 0], ["episodes", ">= 1", "0"]),
    "one noise": (["--base", "probe_worlds:Guided", "--noises", 1], ["noises", ">= 2", "1"]),
    "unknown flag": (["--base", "probe_worlds:Guided", "--episode", 3], ["--episode", "did you mean --episodes?"]),
    "a run folder": (["--base", "probe_worlds:Guided", "--out", "x"], ["--out"]),
    "unknown env": (["--base", "probe_worlds:Guided", "--env_id", "lever-pul-v3"], ["lever-pull-v3"]),
    "no demonstrations": (["--base", "probe_worlds:Guided", "--demo_path", "no.h5"], ["no.h5"]),
}


@pytest.mark.parametrize(("argv", "words"), BAD.values(), ids=BAD)
def test_bad_input_costs_one_line(run_command, argv, words):
    world = WORLD if "--env_id" not in argv else []
    done = run_command(["probe", *world, *argv])
    assert done.status == 2 and done.out == ""
    assert len(done.error_lines) == 1 and done.err.startswith("dsrl probe: error:"), done.err
    for word in words:
        assert word in done.err


def test_a_policy_that_cannot_be_inverted_is_told_so(run_command, tiny_demos):
    argv = ["probe", "--base", "probe_worlds:Puller", "--env_id", TASK, "--demo_path", tiny_demos]
    small = ["--episodes", 1, "--constants", 0, "--states", 2, "--noises", 2, "--max_episode_steps", 8]
    done = run_command([*argv, *small, "--num_envs", 1, "--json"])
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["inversion"] == "Puller cannot be inverted; Stage 2 works without them"
    assert rules(found)[-1] == "no_inversion"


def test_help_explains_the_flags(run_command):
    done = run_command(["probe", "--help"])
    assert done.status == 0 and "--constants" in done.out and "--out" not in done.out
    assert "probe" in run_command(["--help"]).out
