"""Q^A and velocity networks against the published checkpoint, and how a latent is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_agents import RecordingVelocity, seeded
from torch import Tensor, nn

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_weights
from dsrl_offpolicy.models.action_q_network import ActionQNetwork
from dsrl_offpolicy.models.unet1d import ConditionalUnet1d
from dsrl_offpolicy.models.velocity import MLPVelocity, UNetVelocity, integrate


@pytest.fixture
def published(shared_dir: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    folder = shared_dir / "fixtures" / "awsc"
    weights = torch.load(folder / "state_double_q.pt", weights_only=True)
    with np.load(folder / "state_double_q.npz") as arrays:
        recorded = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return weights, recorded


def stripped(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@pytest.mark.parametrize("agent", ["agent", "ema_agent"])
@pytest.mark.parametrize("network", ["velocity_net", "velocity_net_ema"])
def test_unet_decodes_as_the_published_code_did(published: tuple, agent: str, network: str) -> None:
    weights, recorded = published
    velocity = UNetVelocity(7, 16, 64, (16, 32, 64), 16, use_step_size=False)
    load_weights(velocity, stripped(weights[agent], f"{network}."), network)
    with torch.no_grad():
        actions = integrate(velocity, recorded["latent"], recorded["obs_features"], 8)
    torch.testing.assert_close(actions, recorded[f"actions.{agent}.{network}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("agent", ["agent", "ema_agent"])
def test_action_critic_scores_as_the_published_code_did(published: tuple, agent: str) -> None:
    weights, recorded = published
    critic = ActionQNetwork(64, 8, 7, (64, 64, 64), 2)
    renamed = {
        f"q_nets.{head}.{name}": value
        for head in range(2)
        for name, value in stripped(weights[agent], f"critic.q{head + 1}_net.").items()
    }
    load_weights(critic, renamed, "critic")
    with torch.no_grad():
        q = critic(recorded["obs_features"], recorded[f"actions.{agent}.velocity_net"][:, 0:8])
    torch.testing.assert_close(q, recorded[f"q_values.{agent}"], rtol=0, atol=1e-5)


def test_action_critic_takes_actions_first_row_by_row() -> None:
    critic = ActionQNetwork(1, 2, 2, (), 1)
    with torch.no_grad():
        critic.q_nets[0][0].weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0, 10000.0]]))
        critic.q_nets[0][0].bias.zero_()
    # rows (1, 2), (3, 4), then the feature 5: 1 + 20 + 300 + 4000 + 50000
    q = critic(torch.tensor([[5.0]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    assert q.tolist() == [[54321.0]]


def test_unet_conditions_on_the_step_size_only_where_it_is_in_use() -> None:
    torch.manual_seed(0)
    x, features = torch.randn((2, 4, 2), generator=seeded()), torch.randn((2, 3), generator=seeded(1))
    t = torch.full((2,), 0.5)
    for use in (True, False):
        velocity = UNetVelocity(2, 4, 3, (8, 16), 8, use_step_size=use)
        small = velocity(x, t, torch.full((2,), 0.125), features)
        large = velocity(x, t, torch.full((2,), 0.5), features)
        assert torch.equal(small, large) is (not use)


def test_networks_depend_on_features_time_and_noise() -> None:
    torch.manual_seed(0)
    x, features = torch.randn((2, 4, 2), generator=seeded()), torch.randn((2, 3), generator=seeded(1))
    t, d = torch.full((2,), 0.25), torch.full((2,), 0.125)
    for velocity in (UNetVelocity(2, 4, 3, (8, 16), 8), MLPVelocity(2, 4, 3, (16,), 8)):
        v = velocity(x, t, d, features)
        assert v.shape == x.shape
        assert not torch.allclose(v, velocity(x + 1, t, d, features))
        assert not torch.allclose(v, velocity(x, t + 0.5, d, features))
        assert not torch.allclose(v, velocity(x, t, d, features + 1))


def test_mlp_velocity_conditions_on_the_step_size() -> None:
    torch.manual_seed(0)
    velocity = MLPVelocity(2, 4, 3, (16,), 8)
    x, features, t = torch.randn((2, 4, 2), generator=seeded()), torch.ones(2, 3), torch.full((2,), 0.5)
    small, large = torch.full((2,), 0.125), torch.full((2,), 0.5)
    assert not torch.allclose(velocity(x, t, small, features), velocity(x, t, large, features))


def test_unet_film_scales_without_adding_one() -> None:
    # With its condition encoders at zero, scale * h + bias is zero; 1 + scale would let h through.
    torch.manual_seed(0)
    unet = ConditionalUnet1d(2, 3, (8, 16), 8)
    for name, parameter in unet.named_parameters():
        if "cond_encoder" in name:
            nn.init.zeros_(parameter)
    block = unet.down_modules[0][1]
    x = torch.randn((2, 8, 4), generator=seeded())
    expected = block.blocks[1](torch.zeros(2, 8, 4)) + x
    torch.testing.assert_close(block(x, torch.randn((2, 11), generator=seeded(1))), expected)


def test_unet_refuses_a_horizon_it_cannot_halve() -> None:
    with pytest.raises(InputError, match="pred_horizon: expected a multiple of 4"):
        UNetVelocity(2, 6, 3, (8, 16, 32), 8)


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_integrate_takes_each_euler_step_once_from_noise_to_data(steps: int) -> None:
    network = RecordingVelocity(0.25)
    noise = 0.1 * torch.randn((3, 2, 1), generator=seeded())
    actions = integrate(network, noise, torch.zeros(3, 2), steps)
    assert len(network.calls) == steps
    for i, (x, t, d) in enumerate(network.calls):
        assert t.tolist() == [i / steps] * 3
        assert d.tolist() == [1 / steps] * 3
        torch.testing.assert_close(x, noise + 0.25 * i / steps)
    torch.testing.assert_close(actions, noise + 0.25)


@pytest.mark.parametrize("steps", [10, 25, 50])
def test_integrate_asks_at_times_whose_hundredths_survive_rounding(steps: int) -> None:
    # The U-Net embeds floor(100 t): the time of step 5 of 25 must embed as 20, not as 19.
    network = RecordingVelocity(0.0)
    integrate(network, torch.zeros(1, 1, 1), torch.zeros(1, 1), steps)
    hundredths = [torch.floor(100 * t).item() for _, t, _ in network.calls]
    assert hundredths == [100 * i // steps for i in range(steps)]


def test_integrate_follows_the_field_by_euler_and_not_exactly() -> None:
    class Growth(nn.Module):
        def forward(self, x: Tensor, t: Tensor, d: Tensor, features: Tensor) -> Tensor:
            return x

    # dx/dt = x from 0.25 in two Euler steps of 1/2: 0.25 * 1.5^2 = 0.5625
    assert integrate(Growth(), torch.full((1, 1, 1), 0.25), torch.zeros(1, 1), 2).item() == 0.5625


def test_integrate_clamps_the_chunk_and_not_the_noise_or_the_way() -> None:
    network = RecordingVelocity(-3.0)
    actions = integrate(network, torch.tensor([[[3.5], [9.0], [-9.0]]]), torch.zeros(1, 1), 2)
    assert network.calls[0][0].flatten().tolist() == [3.5, 9.0, -9.0]
    assert network.calls[1][0].flatten().tolist() == [2.0, 7.5, -10.5]
    assert actions.flatten().tolist() == [0.5, 1.0, -1.0]
