"""Noise from actions: the Euler steps of a flow, backward."""

from __future__ import annotations

import torch
from torch import nn

from dsrl_offpolicy.models.velocity import integrate, invert_integration


class Linear(nn.Module):
    """v(x, t, d, s) = x / 2 + s, the first feature added everywhere."""

    def forward(self, x, t, d, features):
        return x / 2 + features[:, :1, None]


def test_steps_are_solved_backward_from_the_last_to_the_first() -> None:
    # Two steps of y = x + (x / 2 + s) / 2 = 1.25 x + s / 2. From y = 0.9 with s = 0.2: (0.9 - 0.1) / 1.25 = 0.64,
    # then (0.64 - 0.1) / 1.25 = 0.432. The fixed-point iteration shrinks its error by 1/4 each time.
    actions, features = torch.full((1, 2, 1), 0.9), torch.tensor([[0.2]])
    found = invert_integration(Linear(), actions, features, steps=2, iterations=12)
    assert torch.allclose(found, torch.full((1, 2, 1), 0.432), atol=1e-6)
    assert torch.allclose(integrate(Linear(), found, features, 2), actions, atol=1e-6)


def test_one_iteration_is_one_step_backward() -> None:
    # x <- y - v(y) / 1 = 0.5 - 0.25 = 0.25, not yet the 1/3 of y = 1.5 x.
    found = invert_integration(Linear(), torch.full((1, 1, 1), 0.5), torch.zeros(1, 1), steps=1, iterations=1)
    assert found.item() == 0.25


def test_the_time_of_each_step_is_that_of_the_integration() -> None:
    times: list[float] = []

    class Timed(nn.Module):
        def forward(self, x, t, d, features):
            times.append(round(float(t[0]), 6))
            assert float(d[0]) == 0.25
            return torch.zeros_like(x)

    invert_integration(Timed(), torch.zeros(1, 1, 1), torch.zeros(1, 1), steps=4, iterations=2)
    assert times == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0, 0.0]


def test_iterations_end_where_nothing_changes_any_more() -> None:
    # From y = 0.5 in one step of y = 1.5 x + s: x = 0.25, 0.375, 0.3125, changes of 0.25, 0.125, 0.0625.
    calls: list[int] = []

    class Counted(Linear):
        def forward(self, x, t, d, features):
            calls.append(1)
            return super().forward(x, t, d, features)

    found = invert_integration(Counted(), torch.full((1, 1, 1), 0.5), torch.zeros(1, 1), 1, 50, settled=0.1)
    assert found.item() == 0.3125 and len(calls) == 3
