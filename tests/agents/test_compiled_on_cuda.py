"""The compiled update on CUDA, where its kernels are recorded and replayed, against the plain update there."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from test_compiled_update import assert_rows, assert_same_state, golden

from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.contracts import MacroBatch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def batch_on_cuda(step: int) -> MacroBatch:
    batch = golden.make_batch(step)
    return MacroBatch(**{field.name: getattr(batch, field.name).cuda() for field in fields(batch)})


def run(agent: DSRLSACAgent, update, steps: range) -> list[dict[str, float]]:
    rows = []  # read at the end: a replay must not write over the metrics of the one before
    for step in steps:
        agent.scale_learning_rates(golden.lr_scale(step))
        rows.append(update(batch_on_cuda(step), update_actor=golden.update_actor(step)))
    return [{name: value.item() for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("regularizer", golden.REGULARIZERS)
def test_recorded_kernels_compute_the_plain_update(regularizer: str) -> None:
    plain, compiled = (golden.make_agent(regularizer, "cuda") for _ in range(2))
    before = {name: value.clone() for name, value in compiled.state_dict().items()}
    update = CompiledUpdate(compiled, golden.BATCH)
    assert all(torch.equal(value, before[name]) for name, value in compiled.state_dict().items())
    steps = range(golden.STEPS)
    assert_rows(run(compiled, update, steps), run(plain, plain.update, steps))
    assert_same_state(compiled, plain)


def test_a_recording_is_made_anew_for_a_state_that_was_loaded() -> None:
    plain, compiled = (golden.make_agent("kl", "cuda") for _ in range(2))
    update = CompiledUpdate(compiled, golden.BATCH)
    run(compiled, update, range(7))
    other = golden.make_agent("kl", "cuda")
    run(other, other.update, range(5))
    for agent in (compiled, plain):
        agent.load_training_state(other.training_state())
    steps = range(5, 15)
    assert_rows(run(compiled, update, steps), run(plain, plain.update, steps))
    assert_same_state(compiled, plain)
