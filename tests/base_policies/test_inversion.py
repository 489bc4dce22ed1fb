"""Windows of demonstrations as noise: what is kept, and what is counted."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_worlds import HalvingPolicy

from dsrl_offpolicy.base_policies.inversion import invert_windows
from dsrl_offpolicy.models.latent_layout import LatentLayout


class Doubling(HalvingPolicy):
    """Decodes half of the latent, clamped; the latents of its chunks are twice the chunk."""

    def decode(self, encoding, latent):
        return super().decode(encoding, latent).clamp(-1, 1)

    def invert(self, encoding, actions):
        error = (self.decode(encoding, 2 * actions) - actions).square().mean((1, 2)).sqrt()
        return 2 * actions, error


def inverted(chunks: torch.Tensor, mode: str = "full", magnitude: float = 2.0):
    layout = LatentLayout(mode, 4, 1, slice(1, 3), magnitude)
    generator = torch.Generator().manual_seed(0)
    return invert_windows(Doubling(), torch.zeros(len(chunks), 4), chunks, layout, 1e-3, generator)


def test_latents_errors_and_the_share_beyond_by_hand() -> None:
    chunks = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, -0.95, 1.0, 0.0], [1.5, 0.0, 0.0, 0.0]])[:, :, None]
    found = inverted(chunks, magnitude=1.0)
    assert torch.allclose(found.latent, 2 * chunks[:, :, 0])
    # The third chunk cannot be made: 1.5 is clamped to 1, an error of .5 / sqrt(4). Of the other eight latents,
    # 1.0 (of 0.5), -1.9 and 2.0 are not below the magnitude 1 in size.
    assert found.accepted.tolist() == [True, True, False]
    assert torch.allclose(found.error, torch.tensor([0.0, 0.0, 0.25]), atol=1e-6)
    assert found.beyond == 3 / 8
    report = found.report()
    assert (report["windows"], report["left_out"], report["error_median"]) == (3, 1, 0)
    assert report["error_p90"] == pytest.approx(0.2)  # between 0 and .25, at 80 % of the way


def test_where_only_executed_rows_are_steered_only_these_are_judged() -> None:
    chunks = torch.tensor([[1.5, 0.2, -0.3, 1.5]])[:, :, None]  # rows 1 and 2 are executed
    found = inverted(chunks, "act_horizon")
    assert torch.allclose(found.latent, torch.tensor([[0.4, -0.6]])) and bool(found.accepted[0])
    assert not bool(inverted(chunks).accepted[0])


def test_what_is_not_finite_is_left_out() -> None:
    found = inverted(torch.tensor([[math.nan, 0, 0, 0], [0.1, 0, 0, 0]])[:, :, None])
    assert found.accepted.tolist() == [False, True] and math.isinf(float(found.error[0]))
    assert found.report()["error_p90"] == 0  # of those that are finite: a log takes no other numbers
