"""Which settings tell groups of runs apart."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.analysis.run_folder import RunFolder
from dsrl_offpolicy.analysis.stage2_runs import differing_settings, group_runs
from dsrl_offpolicy.configs.loading import to_plain
from dsrl_offpolicy.errors import InputError

TOLD_APART_BY_NOTHING = {
    "seed", "out", "resume", "device", "torch_threads", "loggers", "track", "wandb_project", "log_freq",
    "save_freq", "compile", "render_backend", "env_timeout", "eval_freq", "eval_episodes", "awsc_checkpoint",
    "stage1_checkpoint", "total_timesteps", "video_every",
}  # fmt: skip
"""Checkpoints where every seed has its own, and total_timesteps where the learning rates stay."""


def run(name: str, number: int, **settings: object) -> RunFolder:
    given = {"seed": number, "awsc_checkpoint": f"{name}.pt", "stage1_checkpoint": f"{name}1.pt"}
    return RunFolder(Path(name), "stage2", to_plain(Stage2Config()) | given | settings)


@pytest.mark.parametrize("setting", [field.name for field in fields(Stage2Config)])
def test_a_setting_that_changes_what_is_learnt_makes_groups(setting):
    other = 7 if setting == "seed" else "another"
    groups = group_runs([run("a", 1), run("b", 2, **{setting: other})])
    expected = 1 if setting in TOLD_APART_BY_NOTHING else 2
    assert len(groups) == expected
    assert len(differing_settings([run("a", 1), run("b", 2, **{setting: other})])) == (
        0 if setting in TOLD_APART_BY_NOTHING | {"env_id"} else 1
    )


def test_groups_stand_in_the_order_of_their_values():
    runs = [run(f"r{i}", 1, utd_ratio=ratio, actor_lr=lr) for i, (ratio, lr) in enumerate(
        [(20.0, 1e-4), (5.0, 3e-4), (100.0, 1e-4), (5.0, 1e-4)]
    )]  # fmt: skip
    assert list(group_runs(runs)) == [
        "utd_ratio=5.0, actor_lr=0.0001",
        "utd_ratio=5.0, actor_lr=0.0003",
        "utd_ratio=20.0, actor_lr=0.0001",
        "utd_ratio=100.0, actor_lr=0.0001",
    ]


def test_settings_that_a_run_of_another_version_does_not_have_are_none():
    runs = [run("a", 1), run("b", 2, from_the_future=3)]
    assert list(group_runs(runs)) == ["from_the_future=3", "from_the_future=none"]


def test_the_same_seed_twice_is_no_group():
    with pytest.raises(InputError, match=r"each seed once .* seed 4 in a and b; .*--group"):
        group_runs([run("a", 4), run("b", 4)])
