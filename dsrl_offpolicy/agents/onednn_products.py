"""Matrix products of a traced graph in float32, done by oneDNN where torch's own library is slow.

torch multiplies float32 with MKL, which gives processors of other makers than Intel its AVX2 kernels even where
they have AVX-512: half of what they can do (docs/performance.md). oneDNN, which torch has too, asks for the
instructions alone. Which of the two a processor gets depends on what it is, never on a timing, so that a run that
resumes on it computes the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

SMALLEST = 2**22
"""Multiplications from which a product is given to oneDNN, whose calls cost more."""

torch.library.define("dsrl_offpolicy::product", "(Tensor left, Tensor right, Tensor? bias) -> Tensor")
torch.library.define("dsrl_offpolicy::products", "(Tensor left, Tensor right) -> Tensor")


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    return out


def _products(left: Tensor, right: Tensor) -> Tensor:
    return torch.stack([_product(one, other, None) for one, other in zip(left, right, strict=True)])


torch.library.impl("dsrl_offpolicy::product", "cpu", _product)
torch.library.impl("dsrl_offpolicy::products", "cpu", _products)


@torch.library.register_fake("dsrl_offpolicy::product")
def _fake_product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


@torch.library.register_fake("dsrl_offpolicy::products")
def _fake_products(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(*left.shape[:2], right.shape[2])


def faster_here(processor: Mapping[str, Any]) -> bool:
    """Say whether oneDNN multiplies faster than MKL on a processor of ``torch.cpu.get_capabilities()``."""
    intel = "intel" in str(processor.get("cpu_name", "intel")).lower()
    return bool(processor.get("avx512_f")) and not intel and torch.backends.mkldnn.is_available()


def use_onednn(traced: GraphModule) -> int:
    """Give the large float32 products of a traced graph to oneDNN, in place; return how many."""
    given = 0
    for node in list(traced.graph.nodes):
        call = _call_of(node)
        if call is not None:
            target, arguments = call
            with traced.graph.inserting_before(node):
                ours = traced.graph.call_function(target, arguments)
            ours.meta = dict(node.meta)
            node.replace_all_uses_with(ours)
            traced.graph.erase_node(node)
            given += 1
    traced.recompile()
    return given


def _call_of(node: Node) -> tuple[Any, tuple[Any, ...]] | None:
    """The call that does the product of ``node``; None where it is left as it is."""
    ops, aten = torch.ops.dsrl_offpolicy, torch.ops.aten
    factors: list[Any] = list(node.args)
    bias = None
    if node.target is aten.addmm.default:
        bias, *factors = factors
        if node.kwargs or bias.meta["val"].dim() != 1:  # scaled, or not the bias of a layer
            return None
    elif node.target not in (aten.mm.default, aten.bmm.default):
        return None
    left, right = (factor.meta["val"] for factor in factors)
    if left.dtype != torch.float32 or math.prod(left.shape[-2:]) * right.shape[-1] < SMALLEST:
        return None
    return (ops.products.default, tuple(factors)) if left.dim() == 3 else (ops.product.default, (*factors, bias))
