"""Chunks as noise of DPPO's policies, and inversion by gradient of any decode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsrl_offpolicy import load_base_policy
from dsrl_offpolicy.base_policies.dppo_networks import DiffusionMLP
from dsrl_offpolicy.base_policies.dppo_sampling import ddim_steps, invert_sampling, sample
from dsrl_offpolicy.base_policies.inversion import invert_by_gradient, invert_windows
from dsrl_offpolicy.contracts import BasePolicy, Encoding
from dsrl_offpolicy.models.latent_layout import LatentLayout

GOLDEN = Path(__file__).parents[1] / "golden" / "dppo"


def decoded_chunks(policy: BasePolicy, count: int) -> tuple[Encoding, torch.Tensor, torch.Tensor]:
    """Features, noise and what it decodes to."""
    generator = torch.Generator().manual_seed(0)
    encoding = Encoding(torch.rand(count, policy.info.feature_dim, generator=generator) * 2 - 1)
    noise = torch.randn(count, *policy.info.latent_shape, generator=generator)
    return encoding, noise, policy.decode(encoding, noise)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> BasePolicy:
    """A small policy, trained as DPPO trains: its chunks are a line whose slope the state says, and some noise."""
    torch.manual_seed(0)
    shapes = {
        "time_embedding.3.bias": torch.zeros(8),
        "mlp_mean.layers.0.bias": torch.zeros(32),
        "mlp_mean.layers.1.l1.bias": torch.zeros(32),
        "mlp_mean.layers.2.bias": torch.zeros(4),
    }
    network = DiffusionMLP(shapes, 2, 4, 1, "Mish")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    signal = torch.tensor([step.signal for step in ddim_steps(20, 20)]).flip(0)
    for _ in range(400):
        state = torch.rand(128, 2) * 2 - 1
        chunk = state[:, :1] * torch.linspace(-0.5, 0.5, 4) + 0.2 * torch.randn(128, 4)
        noise, time = torch.randn(128, 4, 1), torch.randint(20, (128,))
        share = signal[time][:, None, None]
        x = share * chunk[..., None].clamp(-1, 1) + (1 - share.square()).sqrt() * noise
        loss = (network(x, time.float(), state) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("dppo")
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"model": weights, "ema": weights}, folder / "checkpoint.pt")
    described = "obs_dim: 2\naction_dim: 1\ncond_steps: 1\nhorizon_steps: 4\nact_steps: 4\ndenoising_steps: 20\n"
    (folder / "model.yaml").write_text(described + "model: {use_ddim: true, ddim_steps: 5}\n")
    return load_base_policy(f"dppo:{folder}")


def test_what_is_accepted_decodes_to_the_chunk(small: BasePolicy) -> None:
    encoding, _, chunks = decoded_chunks(small, 48)
    latent, error = small.invert(encoding, chunks)
    off = (small.decode(encoding, latent) - chunks).square().mean((1, 2)).sqrt()
    torch.testing.assert_close(off, error, rtol=0, atol=1e-6)
    assert float(error.median()) < 1e-5 and float((error < 1e-3).float().mean()) >= 0.9, error


def test_gradients_find_what_fixed_points_do_not(small: BasePolicy) -> None:
    # Chunks that nobody decoded: near the policy's own, so that some come out of steps that clip.
    encoding, _, chunks = decoded_chunks(small, 48)
    chunks = (chunks + 0.3 * torch.randn(chunks.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    start = invert_sampling([small.networks[0]] * 5, chunks, encoding.features, small.steps, 60, 1e-6)
    before = (small.decode(encoding, start.nan_to_num(0, 0, 0)) - chunks).square().mean((1, 2)).sqrt()
    after = small.invert(encoding, chunks)[1]
    assert int((after < 1e-3).sum()) > int((before < 1e-3).sum()), (before, after)
    assert bool((after <= before + 1e-6).all())


def test_a_trained_policy_inverts_what_it_decodes(shared_dir: Path) -> None:
    policy = load_base_policy(f"dppo:{shared_dir / 'fixtures' / 'dppo' / 'can_trained'}")
    encoding, _, chunks = decoded_chunks(policy, 32)
    encoding = Encoding(0.5 * encoding.features)
    chunks = policy.decode(encoding, torch.randn(32, 4, 7, generator=torch.Generator().manual_seed(1)))
    layout = LatentLayout("full", 4, 7, policy.info.executed_rows, 2.0)
    found = invert_windows(policy, encoding.features, chunks, layout, 1e-3, torch.Generator())
    assert int(found.accepted.sum()) >= 30, found.report()
    again = policy.decode(encoding, layout.expand(found.latent, torch.zeros(32, 4, 7)))
    assert float((again - chunks)[found.accepted].abs().max()) < 1e-2


def test_where_nothing_is_clipped_fixed_points_find_the_noise_itself() -> None:
    policy = load_base_policy(f"dppo:{GOLDEN / 'plain_mlp_hist2'}")
    encoding, noise, _ = decoded_chunks(policy, 8)
    networks = list(policy.networks) * len(policy.steps)
    free = type(policy.spec.clips)(None, None, None)
    chunk = sample(networks, noise, encoding.features, policy.steps, free)[-1]
    found = invert_sampling(networks, chunk, encoding.features, policy.steps, 100, 1e-7)
    torch.testing.assert_close(found, noise, rtol=0, atol=1e-2)


def shrunk(latent: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (latent / (1 + rows)[:, None, None]).clamp(-1, 1)


def test_gradients_by_hand() -> None:
    # Row i decodes w / (1 + i), clamped: .3 -> .3, .4 -> .8, and 1.2 is never made. The first is given, and stays.
    actions = torch.tensor([0.3, 0.4, 1.2])[:, None, None].expand(3, 2, 1)
    start = torch.zeros(3, 2, 1)
    start[0] = 0.3
    latent, error = invert_by_gradient(shrunk, actions, start)
    torch.testing.assert_close(latent[0], start[0], rtol=0, atol=0)
    torch.testing.assert_close(latent[1], torch.full((2, 1), 0.8), rtol=0, atol=1e-3)
    # At best it decodes to 1, an error of .2.
    torch.testing.assert_close(error, torch.tensor([0.0, 0.0, 0.2]), rtol=0, atol=2e-4)


def test_a_start_that_is_not_finite_begins_at_zero_and_no_steps_leave_it() -> None:
    actions = torch.full((2, 2, 1), 0.5)
    start = torch.full((2, 2, 1), torch.nan)
    latent, error = invert_by_gradient(shrunk, actions, start, steps=0)
    assert latent.tolist() == torch.zeros(2, 2, 1).tolist() and error.tolist() == [0.5, 0.5]
    with torch.no_grad():  # as its callers run
        latent, error = invert_by_gradient(shrunk, actions, start)
    assert bool((error < 1e-3).all()) and latent.flatten().tolist() == pytest.approx([0.5, 0.5, 1, 1], abs=1e-3)
