"""The compiled update of Stage 2 against the one written for reading, and both against recorded losses."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from dsrl_offpolicy.agents.compiled_update import CompiledUpdate
from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent

_spec = importlib.util.spec_from_file_location(
    "make_stage2_updates", Path(__file__).parents[1] / "golden" / "make_stage2_updates.py"
)
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)
RECORDED = json.loads(golden.FILE.read_text())

Update = Callable[..., dict[str, torch.Tensor]]


def run(agent: DSRLSACAgent, update: Update, steps: range) -> list[dict[str, float]]:
    rows = []
    for step in steps:
        agent.scale_learning_rates(golden.lr_scale(step))
        metrics = update(golden.make_batch(step), update_actor=golden.update_actor(step))
        rows.append({name: value.item() for name, value in metrics.items()})
    return rows


def assert_rows(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for step, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        assert got.keys() == wanted.keys(), step
        for name, value in wanted.items():
            assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (step, name)


def assert_same_state(first: DSRLSACAgent, second: DSRLSACAgent) -> None:
    for (name, got), wanted in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    for optimizer in ("actor_optimizer", "critic_optimizer"):
        states = (getattr(agent, optimizer).state_dict()["state"] for agent in (first, second))
        for got, wanted in zip(*(s.values() for s in states), strict=True):
            assert got["step"] == wanted["step"]
            torch.testing.assert_close(got["exp_avg_sq"], wanted["exp_avg_sq"], rtol=1e-3, atol=1e-6)
    assert torch.equal(first.generator.get_state(), second.generator.get_state())


@pytest.fixture
def traced_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is traced and runs as its graph says: to compile every kind of it would take minutes."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)


@pytest.mark.parametrize("regularizer", golden.REGULARIZERS)
def test_the_plain_update_is_the_recorded_one(regularizer: str) -> None:
    agent = golden.make_agent(regularizer)
    assert_rows(run(agent, agent.update, range(golden.STEPS)), RECORDED[regularizer])


@pytest.mark.parametrize("regularizer", ["kl", pytest.param("entropy", marks=pytest.mark.slow)])
def test_the_compiled_update_is_the_recorded_one_and_leaves_the_plain_ones_state(regularizer: str) -> None:
    plain, compiled = golden.make_agent(regularizer), golden.make_agent(regularizer)
    before = {name: value.clone() for name, value in compiled.state_dict().items()}
    update = CompiledUpdate(compiled, golden.BATCH)
    assert all(torch.equal(value, before[name]) for name, value in compiled.state_dict().items())
    assert_rows(run(compiled, update, range(golden.STEPS)), RECORDED[regularizer])
    run(plain, plain.update, range(golden.STEPS))
    assert_same_state(compiled, plain)


@pytest.mark.usefixtures("traced_alone")
def test_the_traced_update_is_the_recorded_one_with_entropy() -> None:
    agent = golden.make_agent("entropy")
    assert_rows(run(agent, CompiledUpdate(agent, golden.BATCH), range(golden.STEPS)), RECORDED["entropy"])


def test_the_two_updates_take_over_from_each_other() -> None:
    plain, mixed = golden.make_agent("kl"), golden.make_agent("kl")
    update = CompiledUpdate(mixed, golden.BATCH)
    rows = run(mixed, update, range(7))
    rows += run(mixed, mixed.update, range(7, 14))
    other = golden.make_agent("kl")  # the state of another run, loaded into the one that was compiled
    other.load_training_state(mixed.training_state())
    mixed.load_training_state(other.training_state())
    rows += run(mixed, update, range(14, golden.STEPS))
    assert_rows(rows, RECORDED["kl"])
    run(plain, plain.update, range(golden.STEPS))
    assert_same_state(mixed, plain)


@pytest.mark.usefixtures("traced_alone")
def test_the_compiled_update_knows_the_anchor_and_the_one_that_is_loaded() -> None:
    agents = [golden.make_agent("kl") for _ in range(2)]
    for agent in agents:
        with torch.no_grad():
            agent.actor.net[-1].bias.add_(0.3)
        agent.started()
    compiled, plain = agents
    update = CompiledUpdate(compiled, golden.BATCH)
    found, expected = (run(a, u, range(8)) for a, u in ((compiled, update), (plain, plain.update)))
    assert_rows(found, expected)
    kl = [row["kl"] for row in found if "kl" in row]
    assert kl[0] == pytest.approx(0.0, abs=1e-6) and kl[-1] > 0
    assert_same_state(compiled, plain)
    other = golden.make_agent("kl")
    with torch.no_grad():
        other.actor.net[-1].bias.add_(0.6)
    other.started()
    for agent in agents:
        agent.load_training_state(other.training_state())
    found, expected = (run(a, u, range(8, 14)) for a, u in ((compiled, update), (plain, plain.update)))
    assert_rows(found, expected)
    assert_same_state(compiled, plain)


def test_what_was_compiled_before_is_found_on_disk() -> None:
    CompiledUpdate(golden.make_agent("kl"), golden.BATCH)
    before = dict(counters["inductor"])
    update = CompiledUpdate(agent := golden.make_agent("kl"), golden.BATCH)
    hits, misses = (
        counters["inductor"][n] - before.get(n, 0) for n in ("fxgraph_cache_hit", "fxgraph_cache_miss")
    )
    assert (hits, misses) == (2, 0)  # a step with and one without the actor
    assert_rows(run(agent, update, range(golden.STEPS)), RECORDED["kl"])


@pytest.mark.usefixtures("traced_alone")
def test_a_fixed_temperature_is_left_alone() -> None:
    agent = golden.make_agent("entropy")
    agent.log_alpha.requires_grad_(False)
    del agent.actor_optimizer.param_groups[1]
    update = CompiledUpdate(agent, golden.BATCH)
    metrics = [update(golden.make_batch(step))["alpha"].item() for step in range(3)]
    assert metrics == pytest.approx([0.5] * 3)
    assert agent.alpha.item() == pytest.approx(0.5)


def test_a_machine_without_a_compiler_keeps_the_agent_as_it_was() -> None:
    agent = golden.make_agent("kl")
    no_compiler = {"cpp.cxx": (None, "no-such-compiler"), "compile_threads": 1}
    torch._dynamo.reset()
    with fresh_cache(), torch._inductor.config.patch(no_compiler), pytest.raises(RuntimeError) as error:
        CompiledUpdate(agent, golden.BATCH)
    assert "\n" not in str(error.value) and "ompiler" in str(error.value)
    torch._dynamo.reset()
    assert_rows(run(agent, agent.update, range(golden.STEPS)), RECORDED["kl"])
