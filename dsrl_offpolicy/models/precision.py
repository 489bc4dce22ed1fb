"""What a learner's matrix products are done in.

With bf16 the products of hidden layers take numbers of 8 significant bits and add them up in float32; so do the
products of their gradients. Weights, optimisers, targets, normalisations, last layers and whatever is made of
their outputs (losses, log-probabilities, TD targets) stay float32. So do frozen networks, convolutions, and
policies that act.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from dsrl_offpolicy.configs.shared import Precision
from dsrl_offpolicy.models.layers import EnsembleLinear, Layers


class Product(NamedTuple):
    """The product of a hidden layer: for each of ``heads`` a [B, inputs] by an [inputs, outputs]."""

    heads: int
    inputs: int
    outputs: int


def hidden_products(learner: nn.Module) -> list[Product]:
    """Return the products that :func:`use_precision` is about."""
    found = []
    for layers in _layers(learner):
        for layer in list(layers)[:-1]:
            if isinstance(layer, nn.Linear):
                found.append(Product(1, layer.in_features, layer.out_features))
            elif isinstance(layer, EnsembleLinear):
                found.append(Product(*layer.weight.shape))
    return found


def use_precision(learner: nn.Module, precision: Precision) -> None:
    """Let ``learner`` do its products in ``precision``, gradients included; its weights stay as they are.

    tf32 is how a GPU multiplies float32, for all networks of the process at once; networks are left alone by it.
    """
    for layers in _layers(learner):
        layers.products = torch.bfloat16 if precision == "bf16" else None


def _layers(learner: nn.Module) -> Iterator[Layers]:
    return (module for module in learner.modules() if isinstance(module, Layers))
