"""Try a base policy that somebody else wrote against the contract, when it is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy, Encoding, PolicyInfo, observation_tensors
from dsrl_offpolicy.errors import InputError, one_line

CONTRACT = "a base policy is a map (observation, latent) -> action chunk that is deterministic given the latent"
BATCH = 2
TOLERANCE = 1e-5
"""Largest difference of two decodes of the same latent."""


def check_contract(policy: BasePolicy, where: str, device: torch.device) -> BasePolicy:
    """Encode an example and decode it three times. Returns the policy.

    Raises:
        InputError: shapes that are not those of ``policy.info``, numbers that are not finite, a decode that is
            not deterministic or does not depend on its latent, or whatever the policy raises.
    """
    if not isinstance(getattr(policy, "info", None), PolicyInfo):
        raise InputError(f"{where}: expected `info` to be a PolicyInfo; {CONTRACT}")
    generator = torch.Generator().manual_seed(0)
    try:
        shape = (BATCH, *policy.info.latent_shape)
        latents = [torch.randn(shape, generator=generator).to(device) for _ in range(2)]
        with torch.no_grad(), torch.random.fork_rng():
            encoding = policy.encode(observation_tensors(policy.example_observation(BATCH), device))
            first, again, other = (policy.decode(encoding, latents[i]) for i in (0, 0, 1))
            _check_shapes(policy, where, encoding, first)
            _check_critic(policy, where, encoding, first)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        raise InputError(f"{where}: a trial of encode and decode failed: {one_line(error)}") from error
    change = float((first - again).abs().max())
    if change > TOLERANCE:
        raise InputError(f"{where}: the same latent decoded to actions {change:.2g} apart; {CONTRACT}")
    if torch.equal(first, other):
        raise InputError(f"{where}: two different latents decoded to the same actions, so it cannot be steered")
    return policy


def _check_shapes(policy: BasePolicy, where: str, encoding: Any, chunk: Any) -> None:
    info = policy.info
    if not isinstance(encoding, Encoding):
        raise InputError(f"{where}: expected encode to return an Encoding, got {type(encoding).__name__}")
    _check_tensor(encoding.features, (BATCH, info.feature_dim), f"{where}: features of encode")
    _check_tensor(chunk, (BATCH, *info.action_shape), f"{where}: actions of decode")
    first, last = info.executed_rows.start, info.executed_rows.stop
    if None in (first, last) or not 0 <= first < last <= info.action_shape[0]:
        raise InputError(
            f"{where}: executed_rows: expected rows of a chunk of {info.action_shape[0]}, got {info.executed_rows}"
        )


def _check_critic(policy: BasePolicy, where: str, encoding: Encoding, chunk: Tensor) -> None:
    critic = policy.critic
    if critic is not None:
        values = critic.q_values(encoding.features, chunk[:, critic.rows])
        _check_tensor(values, (critic.heads, BATCH), f"{where}: values of critic.q_values")


def _check_tensor(value: Any, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != torch.float32:
        got = f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{what}: expected {list(shape)} of torch.float32, got {got}")
    if not bool(value.isfinite().all()):
        raise InputError(f"{what}: expected finite numbers, got NaN or infinity")
