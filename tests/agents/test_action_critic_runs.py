"""``dsrl stage2 --algo na`` and ``--algo lps`` as a user runs them: trained, stopped, resumed, judged, refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from stoppable_runs import assert_same, content, rows
from stopped_job import stopping
from tiny_worlds import TASK, TINY_WIDTHS

from dsrl_offpolicy.analysis.run_folder import read_runs
from dsrl_offpolicy.analysis.run_health import check_run

AGENTS = {
    "na": "dsrl_offpolicy.agents.noise_aliasing:NoiseAliasingAgent",
    "lps": "dsrl_offpolicy.agents.latent_policy_gradient:LatentPolicyGradientAgent",
}


def flags(algo: str, base: Path, out: Path) -> list[object]:
    return [
        "stage2", "--algo", algo, "--env_id", TASK, "--base", base, "--num_envs", 2, "--max_episode_steps", 32,
        "--total_timesteps", 192, "--warmup_steps", 64, "--batch_size", 8, "--log_freq", 4, "--eval_freq", 0,
        "--critic_burnin_steps", 3, "--utd_ratio", 3, "--out", out, *TINY_WIDTHS,
    ]  # fmt: skip


@pytest.mark.parametrize("algo", AGENTS)
def test_a_run_is_judged_and_a_stopped_one_goes_on_to_the_bit(algo: str, tiny_base, tmp_path, run_command) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = run_command(flags(algo, tiny_base, whole))
    assert done.status == 0, done.err
    check_judged(whole, algo)
    if algo == "lps":  # its state is SAC's
        return
    with stopping(f"{AGENTS[algo]}.critic_loss", 20, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        done = run_command(flags(algo, tiny_base, stopped))
    assert done.status == 143, done.err
    assert content(stopped)["counters"]["gradient_steps"] == 17  # and 3 of burn-in
    done = run_command(["stage2", "--resume", stopped])
    assert done.status == 0, done.err
    assert rows(stopped) == rows(whole)
    for name in ("policy", "training", "counters"):
        assert_same(content(stopped)[name], content(whole)[name], name)


def check_judged(folder: Path, algo: str) -> None:
    """The checks that go by the names of metrics find them."""
    (run,) = read_runs(folder)
    assert run.rows[-1]["gradient_steps"] >= 40 and ("distill_loss" in run.rows[-1]) == (algo == "na")
    verdicts = {verdict.name: verdict for verdict in check_run(run.config, run.rows, run.summary)}
    assert {"q_bounded", "td_error", "alpha", "kl", "actor_moves"} <= set(verdicts)
    for name in ("q_bounded", "td_error", "alpha", "kl", "warmup", "learning_rates"):
        assert verdicts[name].ok is not None, verdicts[name]
    assert "q_policy" in verdicts["q_bounded"].found


@pytest.mark.parametrize("algo", AGENTS)
def test_what_stage_1_distilled_is_refused(algo: str, tiny_base, tiny_stage1, tmp_path, run_command) -> None:
    start = ["--stage1_checkpoint", tiny_stage1 / "checkpoints" / "last.pt", "--init_critic"]
    done = run_command([*flags(algo, tiny_base, tmp_path / "run"), *start])
    assert done.status == 2 and len(done.error_lines) == 1
    assert f"init_critic: {algo} learns Q^A" in done.err
    assert not (tmp_path / "run").exists()
