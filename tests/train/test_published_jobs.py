"""Stages 1 and 2 and evaluation over a published checkpoint: what the file does not say is a setting or a note."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_files import Layout, published_content
from tiny_worlds import TASK, TINY_STAGE1, TINY_WIDTHS

from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.base_policies.shortcut_flow import DEFAULT_WEIGHTS
from dsrl_offpolicy.configs.shared import BasePolicyConfig, SimulatorConfig
from dsrl_offpolicy.contracts import RewardTerms
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.rollouts.base_env import base_env_spec
from dsrl_offpolicy.train.start import load_base, rewards_of

HORIZONS = ["--obs_horizon", 1, "--pred_horizon", 8]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Weights for lever-pull: 39 state and 4 action dimensions, 1 frame, 4 executed rows."""
    path = tmp_path_factory.mktemp("published") / "awsc.pt"
    torch.save(published_content(Layout(obs_horizon=1, state_dim=39, action_dim=4)), path)
    return path


def _stage1(published: Path, demos: Path, out: Path, *flags: object) -> list[object]:
    files = ["--demo_path", demos, "--awsc_checkpoint", published, "--out", out]
    return ["stage1", *files, *HORIZONS, *TINY_STAGE1, *flags]


@pytest.fixture(scope="module")
def stage1(run_command, published, tiny_demos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stage1") / "run"
    done = run_command(_stage1(published, tiny_demos, folder, "--distill_q"))
    assert done.status == 0, done.err
    assert "note" not in done.err  # no task is known, so none differs
    return folder / "checkpoints" / "last.pt"


def test_stage2_starts_from_a_distilled_critic_on_the_users_word(run_command, published, stage1, tmp_path):
    out = tmp_path / "run"
    done = run_command(
        [
            "stage2", "--env_id", TASK, "--awsc_checkpoint", published, *HORIZONS, "--out", out,
            "--stage1_checkpoint", stage1, "--init_critic", "--gamma", 0.9, *TINY_WIDTHS, "--num_envs", 1,
            "--total_timesteps", 24, "--warmup_steps", 8, "--batch_size", 4, "--utd_ratio", 1, "--eval_freq", 0,
            "--max_episode_steps", 20, "--offline_fraction", 0,
        ]
    )  # fmt: skip
    assert done.status == 0, done.err
    notes = [line for line in done.error_lines if line.startswith("note:")]
    assert len(notes) == 1 and all(word in notes[0] for word in ("gamma", "reward_mode", "end_on_success"))
    assert json.loads((out / "summary.json").read_text())["env_steps"] >= 24


def test_evaluation_over_a_published_checkpoint(run_command, published, stage1, tmp_path):
    out = tmp_path / "run"
    done = run_command(
        [
            "eval", "--env_id", TASK, "--awsc_checkpoint", published, *HORIZONS, "--out", out, "--num_envs", 1,
            "--stage1_checkpoint", stage1, "--episodes", 1, "--constants", 0, "--max_episode_steps", 10,
        ]
    )  # fmt: skip
    assert done.status == 0, done.err
    rows = {row["policy"]: row for row in json.loads((out / "evaluation.json").read_text())}
    # Unknown rewards are sparse ones of scale 1: -1 in each of 10 env steps without success
    assert rows["base (prior noise)"]["episode_return"] == -10.0
    assert "stage1 deterministic" in rows


def test_a_latent_policy_is_refused_over_other_weights_of_the_same_file(run_command, published, stage1, tmp_path):
    done = run_command(
        [
            "eval", "--env_id", TASK, "--awsc_checkpoint", published, *HORIZONS, "--out", tmp_path / "run",
            "--stage1_checkpoint", stage1, "--weights", "agent.velocity_net", "--episodes", 1, "--constants", 0,
            "--num_envs", 1, "--max_episode_steps", 10,
        ]
    )  # fmt: skip
    assert done.status == 2 and len(done.error_lines) == 1 and "trained over another" in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--weights", "best"], ["weights", "ema_agent.velocity_net_ema", "'best'"]),
        (["--obs_horizon", 2], ["obs_horizon", "39", "got 2"]),
        (["--act_horizon", 8], ["act_horizon", "expected 4", "got 8"]),
        (["--pred_horizon", 7], ["pred_horizon", "7"]),
        (["--act_horizon", 0], ["act_horizon", "whole number >= 1"]),
    ],
)
def test_settings_that_do_not_fit_the_file_are_one_line(
    run_command, published, tiny_demos, tmp_path, flags, words
):
    out = tmp_path / "run"
    done = run_command(_stage1(published, tiny_demos, out, *flags))
    assert done.status == 2 and len(done.error_lines) == 1, done.err
    for word in words:
        assert word in done.err
    assert not out.exists()


def test_a_published_file_of_another_task_names_the_dimensions(run_command, published, tmp_path):
    done = run_command(
        ["stage2", "--env_id", "Pendulum-v1", "--reward_mode", "dense", "--awsc_checkpoint", published, *HORIZONS]
    )
    assert done.status == 2 and len(done.error_lines) == 1
    assert "3 state dimensions" in done.err and "got 39" in done.err and "trained on" not in done.err


def test_settings_reach_the_file(published):
    config = BasePolicyConfig(
        awsc_checkpoint=published, obs_horizon=3, pred_horizon=6, weights="agent.velocity_net"
    )
    policy = load_base(config, torch.device("cpu"))
    assert (policy.info.obs_horizon, policy.info.state_dim, policy.info.latent_shape, policy.info.act_horizon) == (
        3,
        13,
        (6, 4),
        4,
    )


def test_the_default_weights_are_the_same_everywhere():
    assert BasePolicyConfig().weights == DEFAULT_WEIGHTS


def test_the_environment_takes_default_rewards_where_the_file_says_none(published):
    base = load_base_policy(published, obs_horizon=1, pred_horizon=8)
    expected = EnvSpec(
        TASK, reward_mode="sparse", reward_scale=1.0, end_on_success=False, max_episode_steps=None, obs_horizon=1,
        act_horizon=4, gamma=0.99,
    )  # fmt: skip
    rewards = rewards_of(base)
    assert rewards == RewardTerms()
    assert base_env_spec(base.info, rewards, SimulatorConfig(env_id=TASK), end_on_success=False) == expected


def test_a_base_policy_must_be_named():
    with pytest.raises(InputError, match="--base: expected a base policy"):
        load_base(BasePolicyConfig(), torch.device("cpu"))
