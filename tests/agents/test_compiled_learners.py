"""Several compiled learners in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LEARNERS = """
import torch
import torch._dynamo.config
from tiny_agents import random_batch, sac
from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
from dsrl_offpolicy.models.latent_layout import LatentLayout

graphs, compile_ = [], torch.compile

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

torch.compile = lambda step, **options: compile_(step, backend=backend, **options)
torch._dynamo.config.recompile_limit = 2  # two graphs a learner: with the actor's step and without
for size in (4, 5):
    update = CompiledUpdate(sac(LatentLayout("full", 1, 1, slice(0, 1), 2.0)), size)
    made = len(graphs)
    for step in range(2):
        update(random_batch(size), update_actor=step == 0)
    assert len(graphs) == made, "compiled in the middle of a run"
print(len(graphs))
"""


def test_every_learner_of_a_process_is_compiled_however_many_there_are() -> None:
    # In a process of its own: here every annotation is checked while a function is called, in graphs too.
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{LEARNERS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout == "4\n", done.stderr
