"""Frames to features: order, normalisation, images, and observations that a policy cannot take."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import Layout, published_content
from torch import Tensor

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.observation_encoder import ObservationEncoder
from dsrl_offpolicy.base_policies.shortcut_flow import ShortcutFlowPolicy, ShortcutFlowSpec
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.models.visual_encoder import VisualEncoder

S, V, O = 3, 4, 2  # noqa: E741 (the letters of the shapes)


def spec(**changes: Any) -> ShortcutFlowSpec:
    values: dict[str, Any] = {
        "env_id": "toy", "control_mode": "delta", "state_dim": S, "action_dim": 2, "obs_horizon": O,
        "pred_horizon": 4, "act_horizon": 2, "velocity_net": "mlp", "velocity_widths": (16,), "embed_dim": 8,
        "denoising_steps": 4, "critic_hidden_dims": (16,), "critic_heads": 3, "gamma": 0.9,
        "reward_mode": "sparse", "reward_scale": 2.0, "end_on_success": True,
    }  # fmt: skip
    return ShortcutFlowSpec(**{**values, **changes})


def policy(cameras: int = 1, size: tuple[int, int] | None = None) -> ShortcutFlowPolicy:
    torch.manual_seed(0)
    shape = spec(image_channels=3 * cameras, visual_dim=V if cameras else 0, image_size=size)
    visual = VisualEncoder(3 * cameras, V) if cameras else None
    encoder = ObservationEncoder(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 0.5]), visual)
    return ShortcutFlowPolicy(shape, encoder, shape.build_velocity(), shape.build_critic())


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_a_frame_is_visual_then_state_and_frames_follow_oldest_first() -> None:
    base, rgb = policy(), images(1, O, 16, 18, 3)
    state = torch.tensor([[[2.0, 4.0, 3.5], [1.0, 2.0, 1e6]]])
    features = base.encode({"state": state, "rgb": rgb}).features
    assert features.shape == (1, base.info.feature_dim) == (1, O * (V + S))
    visual = base.encoder.visual
    assert visual is not None
    # (2-1)/1, (4-2)/2, (3.5-3)/.5 | 0, 0, clamped to 10 standard deviations
    states = [torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 10.0]])]
    expected = torch.cat([part for i in range(O) for part in (visual(rgb[:, i]), states[i])], dim=1)
    torch.testing.assert_close(features, expected, rtol=1e-6, atol=1e-7)


def test_a_stack_is_its_frames() -> None:
    base, state, rgb = policy(cameras=2), torch.randn(3, O, S), images(3, O, 20, 16, 6)
    frames = [base.encode_frames(state[:, i], rgb[:, i]) for i in range(O)]
    assert frames[0].shape == (3, V + S)
    torch.testing.assert_close(base.encode({"state": state, "rgb": rgb}).features, torch.cat(frames, dim=1))


def test_a_policy_of_states_ignores_images() -> None:
    base, state = policy(cameras=0), torch.randn(3, O, S)
    features = base.encode(state).features
    assert torch.equal(base.encode({"state": state, "rgb": torch.zeros(1)}).features, features)
    assert torch.equal(torch.cat([base.encode_frames(state[:, i], torch.zeros(1)) for i in range(O)], 1), features)
    assert (base.info.image_channels, base.spec.visual_dim, base.info.image_size, base.info.obs_mode) == (
        0,
        0,
        None,
        "state",
    )


def test_fitting_keeps_the_visual_encoder_trainable_until_a_policy_freezes_it() -> None:
    visual = VisualEncoder(3, V)
    encoder = ObservationEncoder.fit(torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0]]), visual)
    assert encoder.mean.tolist() == [1.0, 5.0, 1.0]
    assert encoder.std.tolist() == pytest.approx([math.sqrt(2), 1.0, 1.0])  # what never varies is only centred
    encoder(torch.zeros(2, O, S), images(2, O, 16, 16, 3)).sum().backward()
    assert visual.fc[0].weight.grad is not None and visual.fc[0].weight.grad.abs().sum() > 0
    shape = spec(image_channels=3, visual_dim=V)
    ShortcutFlowPolicy(shape, encoder, shape.build_velocity(), shape.build_critic())
    assert not any(p.requires_grad for p in encoder.parameters())


def _rgb(*shape: int, dtype: torch.dtype = torch.uint8) -> dict[str, Tensor]:
    return {"state": torch.zeros(2, O, S), "rgb": torch.zeros(shape, dtype=dtype)}


BAD: dict[str, tuple[Any, list[str]]] = {
    "a state alone": (torch.zeros(2, O, S), ["rgb", "got none"]),
    "no rgb": ({"state": torch.zeros(2, O, S)}, ["rgb", "got none"]),
    "no state": ({"rgb": images(2, O, 16, 16, 6)}, ["'state'", "['rgb']"]),
    "floats": (_rgb(2, O, 16, 16, 6, dtype=torch.float32), ["uint8", "float32"]),
    "a camera too few": (_rgb(2, O, 16, 16, 3), ["cameras: expected 2, got 1"]),
    "a camera too many": (_rgb(2, O, 16, 16, 9), ["cameras: expected 2, got 3"]),
    "depth beside rgb": (_rgb(2, O, 16, 16, 8), ["6 channels", "[2, 2, 16, 16, 8]"]),
    "channels first": (_rgb(2, O, 6, 16, 16), ["6 channels", "[2, 2, 6, 16, 16]"]),
    "a frame too few": (_rgb(2, 1, 16, 16, 6), ["[2, 2, 24, 16, 6]", "[2, 1, 16, 16, 6]"]),
    "another batch": (_rgb(1, O, 16, 16, 6), ["[2, 2, 24, 16, 6]", "[1, 2, 16, 16, 6]"]),
    "no stack": (_rgb(2, 16, 16, 6), ["[2, 2, 24, 16, 6]", "[2, 16, 16, 6]"]),
    "another size": (_rgb(2, O, 16, 24, 6), ["24 x 16 pixels", "16 x 24"]),
    "another state": ({**_rgb(2, O, 24, 16, 6), "state": torch.zeros(2, O, 4)}, ["[B, 2, 3]", "[2, 2, 4]"]),
    "whole numbers as state": (
        {**_rgb(2, O, 24, 16, 6), "state": torch.zeros(2, O, S, dtype=torch.int64)},
        ["state", "floating-point", "int64"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_observations_that_do_not_fit_are_refused_in_one_line(case: str) -> None:
    obs, words = BAD[case]
    with pytest.raises(InputError) as error:
        policy(cameras=2, size=(24, 16)).encode(obs)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("state", "rgb", "words"),
    [
        ((2, 4), (2, 16, 16, 3), ["state", "[N, 3]", "[2, 4]"]),
        ((2, 3), None, ["rgb", "none"]),
        ((2, 3), (3, 16, 16, 3), ["[2, height, width, 3]", "[3, 16, 16, 3]"]),
        ((2, 3), (2, 16, 16, 6), ["cameras: expected 1, got 2"]),
        ((2, 3), (2, 15, 16, 3), ["at least 16 x 16", "15 x 16"]),
    ],
)
def test_frames_that_do_not_fit_are_refused(
    state: tuple[int, ...], rgb: tuple[int, ...] | None, words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        policy().encode_frames(torch.zeros(state), None if rgb is None else images(*rgb))
    for word in words:
        assert word in str(error.value)


def test_a_published_policy_says_how_many_cameras_it_needs(tmp_path: Path) -> None:
    torch.save(published_content(Layout(cameras=2, visual_dim=4)), tmp_path / "awsc.pt")
    base = load_base_policy(tmp_path / "awsc.pt", pred_horizon=8)
    with pytest.raises(InputError, match="cameras: expected 2, got 1"):
        base.encode({"state": torch.zeros(1, 2, 5), "rgb": images(1, 2, 128, 128, 3)})
