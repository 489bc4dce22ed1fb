"""What Stage 2 takes over from Stage 1: its policy, its Q^W, and how far it is from the prior."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_worlds import TASK, TINY_STAGE1, TINY_WIDTHS

from dsrl_offpolicy.files.checkpoint import load_checkpoint, save_checkpoint
from dsrl_offpolicy.train.train_stage2_online import Stage2, settings


@pytest.fixture(scope="module")
def distilled(tiny_demos: Path, tiny_base: Path, tmp_path_factory, run_command) -> Path:
    """Checkpoint of a Stage 1 with a Q^W."""
    folder = tmp_path_factory.mktemp("stage1") / "run"
    files = ["--demo_path", tiny_demos, "--awsc_checkpoint", tiny_base, "--out", folder]
    done = run_command(["stage1", *files, *TINY_STAGE1, "--distill_q"])
    assert done.status == 0, done.err
    return folder / "checkpoints" / "last.pt"


def stage2(base: Path, stage1: Path, *flags: object) -> Stage2:
    argv = ["--env_id", TASK, "--base", base, "--stage1_checkpoint", stage1, *TINY_WIDTHS, *flags]
    return Stage2(settings([str(flag) for flag in argv]))


def test_q_w_is_scaled_to_the_rewards_of_the_run(distilled, tiny_base) -> None:
    agents = [stage2(tiny_base, distilled, "--init_critic", "--reward_scale", scale).agent for scale in (1.0, 0.1)]
    features, latents = torch.randn(5, agents[0].feature_dim), torch.randn(5, agents[0].layout.dim)
    for name in ("online", "target"):  # values are sums of rewards, so a tenth of the rewards is a tenth of Q
        whole, tenth = (getattr(agent.critic, name)(features, latents) for agent in agents)
        torch.testing.assert_close(tenth, 0.1 * whole)
        assert whole.abs().max() > 0.1


def test_by_default_kl_is_measured_to_a_start_far_from_the_prior_only(distilled, tiny_base, tmp_path) -> None:
    content = load_checkpoint(distilled, "stage1", "x")
    assert 0 <= content["kl_to_prior"] < 10  # six steps from the prior
    assert stage2(tiny_base, distilled).agent.anchor is None
    far = tmp_path / "far.pt"
    save_checkpoint(far, "stage1", content | {"kl_to_prior": 10.5})
    assert stage2(tiny_base, far).agent.anchor is not None


def test_the_start_acts_from_the_first_env_step_on_unless_told_otherwise(distilled, tiny_base) -> None:
    for flags, who in (((), "stage1"), (("--warmup_policy", "prior"), "prior")):
        run = stage2(tiny_base, distilled, "--warmup_steps", 100, *flags)
        with torch.no_grad():
            run.agent.actor.net[-1].bias[:] += 1.0  # unlike the prior
        noise = torch.randn(3, *run.base.info.latent_shape)
        features = torch.randn(3, run.agent.feature_dim)
        same = torch.equal(run._acting()(features, noise), run.agent.source()(features, noise))
        assert same == (who == "stage1")
