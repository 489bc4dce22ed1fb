"""The frozen base policy: rows, normalisation, and its checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_agents import RecordingVelocity, seeded

from dsrl_offpolicy.base_policies.loading import load_base_policy
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy, ShortcutFlowSpec
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import save_checkpoint


def flow_spec(**changes: object) -> ShortcutFlowSpec:
    values = {
        "env_id": "toy", "control_mode": "delta", "state_dim": 3, "action_dim": 2, "obs_horizon": 2,
        "pred_horizon": 4, "act_horizon": 2, "velocity_net": "mlp", "velocity_widths": (16,), "embed_dim": 8,
        "denoising_steps": 4, "critic_hidden_dims": (16,), "critic_heads": 3, "gamma": 0.9,
        "reward_mode": "sparse", "reward_scale": 2.0, "end_on_success": True,
    }  # fmt: skip
    return ShortcutFlowSpec(**(values | changes))  # type: ignore[arg-type]


def flow_policy(**changes: object) -> ShortcutFlowPolicy:
    torch.manual_seed(0)
    spec = flow_spec(**changes)
    encoder = ObservationEncoder(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 0.5]))
    return ShortcutFlowPolicy(spec, encoder, spec.build_velocity(), spec.build_critic())


def base_content(policy: ShortcutFlowPolicy) -> dict:
    return {
        "spec": policy.spec.to_plain(),
        "encoder": policy.encoder.state_dict(),
        "velocity_net_ema": policy.velocity.state_dict(),
        "critic": policy.critic.network.state_dict(),
    }


def test_base_policy_executes_from_the_newest_frame_on() -> None:
    policy = flow_policy()
    assert list(range(4))[policy.info.executed_rows] == [1, 2]  # o = 2, H = 2: rows o-1 : o-1+H
    assert list(range(4))[policy.critic.rows] == [1, 2]
    assert policy.info.act_horizon == 2
    assert policy.info.latent_shape == (4, 2)
    assert policy.info.feature_dim == 6


def test_base_policy_normalises_frames_and_concatenates_them_oldest_first() -> None:
    obs = torch.tensor([[[2.0, 4.0, 3.5], [1.0, 2.0, 1e6]]])
    # (2-1)/1, (4-2)/2, (3.5-3)/.5 | 0, 0, clamped to 10 standard deviations
    expected = [[1.0, 1.0, 1.0, 0.0, 0.0, 10.0]]
    assert flow_policy().encode(obs).features.tolist() == expected
    assert flow_policy().encode({"state": obs}).features.tolist() == expected


def test_encoder_only_centres_dimensions_that_never_vary() -> None:
    encoder = ObservationEncoder.fit(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    # mean (1, 5); sample standard deviation of (0, 2) is sqrt 2
    expected = torch.tensor([[math.sqrt(0.5), 1.0]])
    torch.testing.assert_close(encoder(torch.tensor([[[2.0, 6.0]]])), expected)


def test_base_policy_is_frozen_deterministic_and_differentiable_in_the_latent() -> None:
    policy = flow_policy()
    assert not any(p.requires_grad for p in policy.parameters())
    features = torch.randn((3, 6), generator=seeded())
    latent = 0.1 * torch.randn((3, 4, 2), generator=seeded(1))
    latent.requires_grad_()
    chunk = policy.decode(Encoding(features), latent)
    assert torch.equal(chunk, policy.decode(Encoding(features), latent))
    assert chunk.abs().max() <= 1
    chunk.sum().backward()
    assert latent.grad is not None and latent.grad.abs().sum() > 0
    assert policy.critic.q_values(features, chunk[:, policy.critic.rows]).shape == (3, 3)


def test_base_policy_decodes_a_latent_once() -> None:
    policy = flow_policy()
    policy.velocity = RecordingVelocity(0.0)
    latent = torch.randn((3, 4, 2), generator=seeded())
    chunk = policy.decode(Encoding(torch.zeros(3, 6)), latent)
    assert len(policy.velocity.calls) == 4
    assert torch.equal(policy.velocity.calls[0][0], latent)
    assert torch.equal(chunk, latent.clamp(-1, 1))


def test_base_policy_refuses_observations_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"obs: expected \[B, 2, 3\], got \[1, 1, 3\]"):
        flow_policy().encode(torch.zeros(1, 1, 3))


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_base_policy_survives_its_checkpoint(tmp_path: Path, network: str) -> None:
    policy = flow_policy(velocity_net=network, velocity_widths=(16, 32))
    save_checkpoint(tmp_path / "base.pt", "base_policy", base_content(policy))
    loaded = load_base_policy(tmp_path / "base.pt")
    assert loaded.spec == policy.spec
    features, latent = torch.randn((3, 6), generator=seeded()), torch.randn((3, 4, 2), generator=seeded(1))
    obs = torch.randn((3, 2, 3), generator=seeded(2))
    assert torch.equal(loaded.decode(Encoding(features), latent), policy.decode(Encoding(features), latent))
    assert torch.equal(
        loaded.critic.q_values(features, latent[:, 1:3]), policy.critic.q_values(features, latent[:, 1:3])
    )
    assert torch.equal(loaded.encode(obs).features, policy.encode(obs).features)
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("missing", ["spec", "encoder", "velocity_net_ema", "critic"])
def test_base_policy_checkpoint_without_a_part_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    content = base_content(flow_policy())
    del content[missing]
    save_checkpoint(tmp_path / "base.pt", "base_policy", content)
    with pytest.raises(InputError, match=f"expected an entry '{missing}'"):
        load_base_policy(tmp_path / "base.pt")


def test_base_policy_with_a_critic_of_another_shape_is_refused(tmp_path: Path) -> None:
    content = base_content(flow_policy())
    content["critic"] = flow_spec(critic_hidden_dims=(17,)).build_critic().state_dict()
    save_checkpoint(tmp_path / "base.pt", "base_policy", content)
    with pytest.raises(InputError, match=r"critic: tensor q_nets\.0\.0\.weight: expected shape \(16, 10\)"):
        load_base_policy(tmp_path / "base.pt")


def test_base_policy_with_unknown_or_missing_fields_is_refused(tmp_path: Path) -> None:
    content = base_content(flow_policy())
    del content["spec"]["gamma"]
    save_checkpoint(tmp_path / "base.pt", "base_policy", content)
    with pytest.raises(InputError, match="gamma"):
        load_base_policy(tmp_path / "base.pt")
