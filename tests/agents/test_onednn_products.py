"""Products of the compiled update that oneDNN does: which processors get them, and that they compute the same."""

from __future__ import annotations

import pytest
import torch
from test_compiled_update import RECORDED, assert_rows, golden, run
from torch.fx.experimental.proxy_tensor import make_fx

from dsrl_offpolicy.agents import compiled_update, onednn_products
from dsrl_offpolicy.agents.onednn_products import faster_here, use_onednn


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"cpu_name": "AMD EPYC 9755", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC 7763"}, False),  # its AVX2 is what MKL uses anyway
        ({"cpu_name": "Intel Xeon Platinum 8480", "avx512_f": True}, False),
        ({"avx512_f": True}, False),  # of a maker that is not known
        ({}, False),
    ],
)
def test_oneDNN_is_for_avx512_of_other_makers(processor: dict, expected: bool) -> None:
    assert faster_here(processor) is expected


def products(a: torch.Tensor, b: torch.Tensor, heads: torch.Tensor, bias: torch.Tensor) -> list[torch.Tensor]:
    half = (a.bfloat16() @ b.bfloat16()).float()
    return [a @ b, a.t() @ a, torch.addmm(bias, a, b), torch.addmm(a @ b, a, b), heads @ heads.mT, half]


def test_a_graph_keeps_its_values_and_gives_away_large_products_of_float32(monkeypatch) -> None:
    monkeypatch.setattr(onednn_products, "SMALLEST", 8 * 6 * 5)
    inputs = [torch.randn(8, 6), torch.randn(6, 5), torch.randn(3, 8, 6), torch.randn(5)]
    traced = make_fx(products, tracing_mode="fake")(*inputs)
    # of 240 multiplications and more: a @ b twice, a^T a (288), the addmm of one bias, heads (8 * 6 * 8 each);
    # not the addmm of a matrix, and not bf16
    assert use_onednn(traced) == 5
    assert [str(node.target).count("dsrl_offpolicy") for node in traced.graph.nodes].count(1) == 5
    for got, wanted in zip(traced(*inputs), products(*inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(onednn_products, "SMALLEST", 8 * 6 * 5 + 1)
    # a^T a and heads are left
    assert use_onednn(make_fx(products, tracing_mode="fake")(*inputs)) == 2


def test_the_update_that_oneDNN_multiplies_for_is_the_recorded_one(monkeypatch) -> None:
    given = []
    monkeypatch.setattr(onednn_products, "SMALLEST", 0)
    monkeypatch.setattr(compiled_update, "faster_here", lambda processor: True)
    monkeypatch.setattr(compiled_update, "use_onednn", lambda traced: given.append(use_onednn(traced)))
    # As its graph says, uncompiled: what inductor makes of such a graph is the compiled runs' own to show.
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)
    agent = golden.make_agent("kl")
    update = compiled_update.CompiledUpdate(agent, golden.BATCH)
    assert_rows(run(agent, update, range(golden.STEPS)), RECORDED["kl"])
    # Critics and actor have 3 linear layers each. Critics' step: the policy at next_obs, critics' targets, critics
    # forward, gradients of their weights, and of the inputs of all layers but the first. Actor's step: actor and
    # critics forward, gradients of the critics' inputs, of the actor's weights, and of its inputs but the first.
    critics, actor = 3 + 3 + 3 + 3 + 2, 3 + 3 + 3 + 3 + 2
    assert given == [critics + actor, critics]
