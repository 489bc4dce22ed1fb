"""The gradient step that every agent takes."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Back-propagate ``loss`` and step, with gradients dropped (not zeroed) beforehand."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
