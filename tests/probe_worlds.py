"""Base policies for ``latent_worlds:Reach-v0`` whose dependence on noise is known by hand.

By name for a command: ``probe_worlds:Guided``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny_worlds import HalvingPolicy
from torch import Tensor

from dsrl_offpolicy.contracts import Encoding


class Guided(HalvingPolicy):
    """Walks towards the goal by half the noise: away from it where the noise is negative. Rows 1 and 2 of 4 are
    executed."""

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        return encoding.features[:, -1:, None] * 0.5 * latent


class Aimless(HalvingPolicy):
    """Walks by the noise alone, whatever the goal."""


class Sure(HalvingPolicy):
    """Walks to the goal: half a step per env step, and a little more or less by the noise."""

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        return encoding.features[:, -1:, None] * 0.5 + 0.001 * latent


class Deaf(HalvingPolicy):
    """Stands still: its noise moves rows alone that nobody executes."""

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        chunk = torch.zeros_like(latent)
        chunk[:, 3] = latent[:, 3]
        return chunk


class Ignorant(HalvingPolicy):
    """Decodes any noise to the same chunk."""

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        return torch.zeros_like(latent)


class Moody(HalvingPolicy):
    """Draws noise of its own."""

    def decode(self, encoding: Encoding, latent: Tensor) -> Tensor:
        return 0.5 * latent + torch.randn_like(latent)


class TwoArmed(HalvingPolicy):
    """Has two actions, where the world has one."""

    def __init__(self) -> None:
        super().__init__()
        self.info = replace(self.info, latent_shape=(4, 2), action_shape=(4, 2))


class Puller(HalvingPolicy):
    """Of the shapes of MetaWorld's tasks; nobody can invert it."""

    def __init__(self) -> None:
        super().__init__(state_dim=39, obs_horizon=1, rows=8, act_horizon=8)
        self.info = replace(self.info, latent_shape=(8, 4), action_shape=(8, 4))
