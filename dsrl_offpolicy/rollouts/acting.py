"""The frozen policy between an environment and whoever chooses latents."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dsrl_offpolicy.contracts import BasePolicy, Encoding, observation_tensors
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.errors import NonFiniteError


@torch.no_grad()
def encode(base_policy: BasePolicy, obs: Any, device: torch.device) -> Encoding:
    """Encode what vectorised environments observe.

    Raises:
        NonFiniteError: observations that are not finite.
    """
    tensors = observation_tensors(obs, device)
    state = tensors if isinstance(tensors, Tensor) else tensors["state"]
    if not bool(state.isfinite().all()):
        raise NonFiniteError("environment: expected finite observations, got NaN or infinity", {"obs": state})
    return base_policy.encode(tensors)


@torch.no_grad()
def executed_chunk(
    base_policy: BasePolicy, encoding: Encoding, noise: Float[Tensor, "B T W"]
) -> Float[Tensor, "B H A"]:
    """Decode noise to the rows that environments execute.

    Raises:
        NonFiniteError: actions that are not finite.
    """
    chunk = base_policy.decode(encoding, noise)[:, base_policy.info.executed_rows]
    if not bool(chunk.isfinite().all()):
        evidence = {"features": encoding.features, "latent": noise, "chunk": chunk}
        raise NonFiniteError("policy: expected finite actions, got NaN or infinity", evidence)
    return chunk


def send(env: MacroVectorEnv, chunks: Float[Tensor, "E H A"], device: torch.device) -> None:
    """Set environments going with their chunks, as tensors on the device or as arrays."""
    env.step_async(chunks.to(device) if env.capabilities.batched else chunks.cpu().numpy())
