"""Several compiled learners in one process."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.config
from tiny_agents import random_batch, sac

from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
from dsrl_offpolicy.models.latent_layout import LatentLayout

LAYOUT = LatentLayout("full", 1, 1, slice(0, 1), 2.0)


def test_every_learner_of_a_process_is_compiled_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lambda *tensors: graph(*tensors)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **options: compile_(step, backend=backend, **options))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):  # two graphs a learner: with the actor's step and without
        for size in (4, 5):
            agent = sac(LAYOUT)
            update = CompiledUpdate(agent, size)
            compiled = len(graphs)
            for step in range(2):
                update(random_batch(size), update_actor=step == 0)
            assert len(graphs) == compiled  # nothing is compiled once a run has begun
    torch._dynamo.reset()
    assert len(graphs) == 4
