"""Several compiled learners in one process."""

from __future__ import annotations

import pytest
import torch
import torch._inductor
from tiny_agents import layout, random_batch, sac


def learner(seed: int):
    return sac(layout(1, 2, magnitude=2.0), 2, seed, actor_hidden_dims=(8,), critic_hidden_dims=(8,))


def test_learners_of_one_process_are_compiled_once_each_and_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []
    # what is traced is run as it is, in place of what inductor would make of it
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graphs.append(graph) or graph)
    plain, compiled = ([learner(seed) for seed in range(3)] for _ in range(2))
    updates = [agent.compiled(4 + seed) for seed, agent in enumerate(compiled)]
    assert len(graphs) == 6  # two a learner: with the actor's step and without
    for step in range(4):
        for seed, (agent, update) in enumerate(zip(plain, updates, strict=True)):
            batch = random_batch(4 + seed, 2, 2, seed=step)
            wanted = agent.update(batch, update_actor=step % 2 == 0)
            found = update(batch, update_actor=step % 2 == 0)
            assert found.keys() == wanted.keys()
            for name, value in found.items():
                assert value.item() == pytest.approx(wanted[name].item(), rel=1e-4, abs=1e-6), (seed, step, name)
    assert len(graphs) == 6, "compiled in the middle of a run"


def test_a_batch_of_another_size_gets_the_plain_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)
    plain, compiled = learner(0), learner(0)
    update = compiled.compiled(4)
    for size in (4, 6, 4):
        found, wanted = update(random_batch(size, 2, 2)), plain.update(random_batch(size, 2, 2))
        assert found["critic_loss"].item() == pytest.approx(wanted["critic_loss"].item(), rel=1e-4)
