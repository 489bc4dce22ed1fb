"""The gradient step that every agent takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.plain import reading, shown


def gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Back-propagate ``loss`` and step, with gradients dropped (not zeroed) beforehand."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def annealed(done: float, anneal_from: float) -> float:
    """Return the factor on a learning rate: 1 until ``anneal_from`` of the run is done, then linearly to 0."""
    left = 1 - anneal_from
    return 1.0 if done <= anneal_from or left == 0 else max(0.0, (1 - done) / left)


def adam_state(optimizer: torch.optim.Optimizer, state: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a stored state of Adam if its moments fit the parameters and its settings are this optimiser's.

    Torch itself loads any moments and settings, and fails at the next step. Learning rates are taken as they are;
    a setting that the state does not know (of another version of torch) stays as it is.

    Args:
        optimizer: what is to load the state; nothing is loaded here.
        state: a ``state_dict`` of such an optimiser.
        where: the place to name in an error.

    Raises:
        InputError: a state of another optimiser, or one that is not finite.
    """
    with reading(where, "the state of this optimiser"):
        own = optimizer.state_dict()
        groups = own["param_groups"]
        for group, found in zip(groups, map(dict, state["param_groups"]), strict=True):
            for name, value in group.items():
                if not (isinstance(found["lr"], float) if name == "lr" else found.get(name, value) == value):
                    raise InputError(f"{where}: {name}: expected {value}, got {shown(found[name])}")
            group["lr"] = found["lr"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, moments in state["state"].items():
            weight = parameters[index]
            shapes = {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
            found = {name: value.shape for name, value in moments.items()}
            if found != shapes or not all(
                v.dtype == weight.dtype and v.isfinite().all() for v in moments.values()
            ):
                raise InputError(f"{where}: {index}: expected finite moments of shape {tuple(weight.shape)}")
        return {"state": state["state"], "param_groups": groups}
