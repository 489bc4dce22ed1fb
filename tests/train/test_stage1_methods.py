"""Stage 1 by every method: what it hands over, and what it says of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_worlds import TASK, TINY_WIDTHS

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.contracts import MacroBatch
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation import choosing_start
from dsrl_offpolicy.files.checkpoint import load_checkpoint
from dsrl_offpolicy.models.latent_layout import squash
from dsrl_offpolicy.train import stage1_starts
from dsrl_offpolicy.train.offline_data import NoiseDemonstrations
from dsrl_offpolicy.train.start import build_layout
from dsrl_offpolicy.train.steering_files import load_steering

SHORT = [
    "--env_id", TASK, "--max_episode_steps", 16, "--num_envs", 2, "--eval_freq", 0,
    "--screening_episodes", 1, "--choosing_episodes", 2, "--cloning_iters", 16, "--constants", 2,
    "--total_iters", 2, "--num_candidates", 4, "--verify_states", 4, "--verify_samples", 2, *TINY_WIDTHS,
]  # fmt: skip


@pytest.fixture
def stage1(run_command, tiny_base: Path, tmp_path: Path):
    """Runs ``dsrl stage1`` on the tiny base policy; returns its folder and what it said."""

    def run(method: str, *flags: object) -> tuple[Path, str]:
        folder = tmp_path / method
        argv = ["stage1", "--method", method, "--base", tiny_base, "--out", folder, *SHORT, *flags]
        done = run_command(argv)
        assert done.status == 0, done.err
        return folder, done.err

    return run


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch):
    """Makes the candidates whose names begin so succeed on every start, and no other."""

    def plant(*good: str) -> None:
        original = stage1_starts.choose_start

        def choose(sources, reference, evaluate, **rounds):
            names = {id(source): name for name, source in sources.items()}

            def judged(source, seeds):
                success = names[id(source)].startswith(good)
                return [
                    choosing_start.EpisodeOutcome(o.seed, success, success, o.episode_return, o.length)
                    for o in evaluate(source, seeds)
                ]

            return original(sources, reference, judged, **rounds)

        monkeypatch.setattr(stage1_starts, "choose_start", choose)

    return plant


def handed_over(folder: Path, base_file: Path):
    path = folder / "checkpoints" / "last.pt"
    return load_steering(path, "stage1", "test", load_base_policy(base_file), torch.device("cpu"))


def test_auto_tries_everything_and_hands_over_what_was_best(stage1, planted, tiny_base, tiny_demos) -> None:
    planted("noise_cloning, 8")
    folder, said = stage1("auto", "--demo_path", tiny_demos)
    choice = json.loads((folder / "summary.json").read_text())["choice"]
    cloned = [f"noise_cloning, {steps} steps" for steps in (2, 4, 8, 16)]
    assert list(choice["trials"]) == ["prior", "w = 0", "aw_mle", *cloned, "constant 1", "constant 2"]
    assert choice["chosen"] == "noise_cloning, 8 steps" and "starts from noise_cloning, 8 steps" in said
    # 8 candidates and the prior see 1 start, then the best 4 and the prior a second one; 16 env steps each. The
    # best of the four is the last one left, and has seen as many starts as it may.
    assert choice["env_steps"] == (9 + 5) * 16 and f"took {choice['env_steps']} env steps" in said
    assert choice["inversion"]["windows"] > 0
    policy, content = handed_over(folder, tiny_base)
    assert content["method"] == "noise_cloning, 8 steps"
    assert policy.net[-1].weight.abs().sum() > 0


def test_a_planted_bad_start_leaves_the_prior(stage1, planted, tiny_base, tiny_demos) -> None:
    planted("prior")
    folder, _ = stage1("noise_cloning", "--demo_path", tiny_demos)
    policy, content = handed_over(folder, tiny_base)
    assert content["method"] == "prior" and content["kl_to_prior"] == 0.0
    features = torch.randn(3, load_base_policy(tiny_base).info.feature_dim)
    dist = policy(features)
    assert not dist.mean.any() and not dist.log_sigma.any()  # a fresh policy is the prior


def test_a_golden_ticket_needs_no_demonstrations(stage1, planted, tiny_base) -> None:
    planted("constant 2")
    folder, _ = stage1("golden_ticket")
    policy, content = handed_over(folder, tiny_base)
    features = torch.randn(5, load_base_policy(tiny_base).info.feature_dim)
    dist = policy(features)
    assert torch.equal(dist.mean, dist.mean[:1].expand_as(dist.mean)) and dist.mean.abs().max() > 0.5
    assert torch.allclose(dist.log_sigma.exp(), torch.tensor(0.5))
    # KL(N(m, 1/4) || N(0, 1)) = (m^2 + 1/4 - 1) / 2 + log 2 in each dimension
    kl = ((dist.mean[0].square() - 0.75) / 2 + math.log(2)).sum()
    assert content["kl_to_prior"] == pytest.approx(kl.item(), rel=1e-4)
    chosen = policy.act(features, torch.zeros(5, *load_base_policy(tiny_base).info.latent_shape), True)
    assert torch.allclose(chosen, squash(dist.mean, 2.0))


def test_the_seeds_command_still_means_aw_mle(stage1, tiny_base, tiny_demos) -> None:
    folder, said = stage1("aw_mle", "--demo_path", tiny_demos)
    summary = json.loads((folder / "summary.json").read_text())
    assert "choice" not in summary and "verification" in summary and "starts from" not in said
    assert load_checkpoint(folder / "checkpoints" / "last.pt", "stage1", "x")["method"] == "aw_mle"


@pytest.mark.parametrize("method", ["noise_cloning", "auto", "aw_mle"])
def test_demonstrations_that_are_needed_are_asked_for(run_command, tiny_base, tmp_path, method) -> None:
    done = run_command(["stage1", "--method", method, "--base", tiny_base, "--out", tmp_path / "x", *SHORT])
    assert done.status == 2 and "--demo_path: expected a file of demonstrations" in done.error_lines[-1]


def test_one_row_of_noise_for_all_cannot_be_cloned(run_command, tiny_base, tiny_demos, tmp_path) -> None:
    argv = ["--base", tiny_base, "--demo_path", tiny_demos, "--steer_mode", "repeat", *SHORT]
    done = run_command(["stage1", "--method", "noise_cloning", "--out", tmp_path / "x", *argv])
    assert done.status == 2 and "steer_mode repeat" in done.error_lines[-1]
    assert "golden_ticket works without" in done.error_lines[-1]
    done = run_command(["stage1", "--method", "auto", "--out", tmp_path / "y", *argv])
    assert done.status == 0 and "auto does without noise cloning" in done.err


def test_auto_goes_on_where_demonstrations_cannot_be_cloned(stage1, tiny_demos) -> None:
    folder, said = stage1("auto", "--demo_path", tiny_demos, "--inversion_tolerance", 1e-12)
    assert "auto does without noise cloning" in said
    trials = json.loads((folder / "summary.json").read_text())["choice"]["trials"]
    assert list(trials) == ["prior", "w = 0", "aw_mle", "constant 1", "constant 2"]


def test_nothing_is_distilled_without_a_critic_and_that_is_said(run_command, tiny_base, tmp_path) -> None:
    argv = ["--base", tiny_base, "--out", tmp_path / "x", "--distill_q", *SHORT]
    done = run_command(["stage1", "--method", "golden_ticket", *argv])
    assert done.status == 2 and "distill_q: expected method aw_mle or auto" in done.error_lines[-1]


@pytest.mark.parametrize("episodes", [1, 3])
def test_some_episode_is_left_to_clone_however_many_are_held_out(tiny_base, episodes) -> None:
    base, config = load_base_policy(tiny_base), Stage1Config(held_out_fraction=0.9, cloning_iters=1)
    layout = build_layout(base.info, config)
    rows = torch.zeros(2 * episodes, base.info.feature_dim)
    latent, value = torch.zeros(len(rows), layout.dim), torch.zeros(len(rows))
    episode = torch.arange(episodes).repeat(2)
    batch = MacroBatch(rows, latent, value, value, rows)
    noise = NoiseDemonstrations(batch, torch.ones(len(rows), dtype=torch.bool), episode, {})
    (snapshot,) = stage1_starts.cloned_policies(noise, base, layout, config, torch.device("cpu"))
    assert snapshot.steps == 1 and math.isnan(snapshot.held_out_nll) == (episodes == 1)
    none = NoiseDemonstrations(batch, torch.zeros(len(rows), dtype=torch.bool), episode, {})
    with pytest.raises(InputError, match="all of them are left out"):
        stage1_starts.cloned_policies(none, base, layout, config, torch.device("cpu"))
