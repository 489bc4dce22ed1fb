"""What a base policy's noise does to its actions, on observations that it met in episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsrl_offpolicy.base_policies.contract import TOLERANCE
from dsrl_offpolicy.contracts import BasePolicy, Encoding, Observation
from dsrl_offpolicy.errors import InputError, NonFiniteError

ACTION_RANGE = 2.0
"""Actions are in [-1, 1]."""


@dataclass(frozen=True)
class NoiseEffect:
    """What noise does to actions. Movements are shares of the actions' range: 0.1 is a movement of 0.2.

    Attributes:
        states: observations on which it was measured.
        noises: noises per observation.
        repeated: largest difference of chunks decoded twice from the same encoding and noise; 0.0 is equality to
            the bit.
        batch_against_single: largest difference of chunks encoded and decoded as one batch or one by one.
        spread: standard deviation of an executed action over noises, mean over everything else.
        spread_by_dimension: the same for each action dimension.
        by_row: root mean square movement of the executed actions where one row of the noise is drawn anew.
        all_rows: the same where all rows are.
        other_rows: the same where all rows but the executed ones are; None where there are no others.
    """

    states: int
    noises: int
    repeated: float
    batch_against_single: float
    spread: float
    spread_by_dimension: tuple[float, ...]
    by_row: tuple[float, ...]
    all_rows: float
    other_rows: float | None


class ObservationKeeper(BasePolicy):
    """A base policy that keeps some of the observations it encodes: a uniform sample of one per call.

    Args:
        base: the policy.
        most: observations to keep.
        seed: of the sample.
    """

    def __init__(self, base: BasePolicy, most: int, seed: int) -> None:
        self.base, self.info, self.most = base, base.info, most
        self.kept: list[Any] = []
        self._calls, self._rng = 0, np.random.default_rng(seed)

    def encode(self, obs: Observation) -> Encoding:
        """Encode as the policy does, and keep one of the observations by reservoir sampling."""
        encoding = self.base.encode(obs)
        row, place = int(self._rng.integers(len(encoding.features))), int(self._rng.integers(self._calls + 1))
        self._calls += 1
        if len(self.kept) < self.most:
            self.kept.append(_row(obs, row))
        elif place < self.most:
            self.kept[place] = _row(obs, row)
        return encoding

    def decode(self, encoding: Encoding, latent: Float[Tensor, "B T W"]) -> Float[Tensor, "B T A"]:
        """Decode as the policy does."""
        return self.base.decode(encoding, latent)


def _row(obs: Any, row: int) -> Any:
    """One observation of a batch, as a batch."""
    if isinstance(obs, Mapping):
        return {name: _row(part, row) for name, part in obs.items()}
    return obs[row : row + 1].clone() if isinstance(obs, Tensor) else [obs[row]]


def _joined(observations: Sequence[Any]) -> Any:
    first = observations[0]
    if isinstance(first, Mapping):
        return {name: _joined([obs[name] for obs in observations]) for name in first}
    return torch.cat(list(observations)) if isinstance(first, Tensor) else [obs[0] for obs in observations]


@torch.no_grad()
def measure_noise_effect(
    base: BasePolicy, observations: Sequence[Any], noises: int, generator: torch.Generator, device: torch.device
) -> NoiseEffect:
    """Decode many noises on the same observations and see what moves.

    Args:
        base: the policy.
        observations: batches of one, on the device.
        noises: K, at least 2.
        generator: of the noises.
        device: where the policy computes.

    Raises:
        InputError: the same noise decoded to different actions.
        NonFiniteError: actions that are not finite.
    """
    states, info = len(observations), base.info
    encoding = base.encode(_joined(observations))
    drawn = torch.randn((noises, states, *info.latent_shape), generator=generator).to(device)
    first = base.decode(encoding, drawn[0])
    repeated = _largest(first, base.decode(encoding, drawn[0]))
    if repeated > TOLERANCE:
        raise InputError(
            f"base policy: the same noise decoded to actions {repeated:.2g} apart on observations of episodes; "
            "steering needs a policy that is deterministic given its noise"
        )
    alone = [base.decode(base.encode(obs), drawn[0, i : i + 1]) for i, obs in enumerate(observations)]

    def executed(noise: Tensor) -> Tensor:
        chunk = base.decode(encoding, noise)[:, info.executed_rows]
        if not bool(chunk.isfinite().all()):
            raise NonFiniteError("policy: expected finite actions, got NaN or infinity", {"latent": noise})
        return chunk.clamp(-1, 1)

    actions = torch.stack([executed(noise) for noise in drawn])  # [K, N, H, A]
    spread = actions.std(0) / ACTION_RANGE  # [N, H, A]
    others = torch.ones(info.latent_shape[0], dtype=torch.bool, device=device)
    others[info.executed_rows] = False

    def moved(rows: Tensor, by: Tensor) -> Tensor:
        """Executed actions less those of the first noise, where some of its rows are another noise's."""
        return executed(torch.where(rows[:, None], by, drawn[0])) - actions[0]

    by_row = []
    for row in range(len(others)):
        only = torch.arange(len(others), device=device) == row
        by_row.append(_movement(moved(only, drawn[1])))
    return NoiseEffect(
        states=states,
        noises=noises,
        repeated=repeated,
        batch_against_single=_largest(first, torch.cat(alone)),
        spread=float(spread.mean()),
        spread_by_dimension=tuple(spread.mean((0, 1)).tolist()),
        by_row=tuple(by_row),
        all_rows=_movement(actions[1:] - actions[0]),
        other_rows=_movement(torch.stack([moved(others, by) for by in drawn[1:]])) if bool(others.any()) else None,
    )


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _movement(change: Tensor) -> float:
    return float(change.square().mean().sqrt()) / ACTION_RANGE
