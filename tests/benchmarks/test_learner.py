"""benchmarks/learner.py: what its arguments choose, and what its rows say."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from dsrl_offpolicy.train import precision

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import learner

OURS = ["ours", "ours, compiled", "ours, compiled, critic norm", "ours, compiled, no norm"]
IN_BF16 = ["ours, bf16", *(name.replace("compiled", "compiled, bf16") for name in OURS[1:])]
OTHERS = ["Stable-Baselines3", "SBX, layer_norm", "SBX"]


@pytest.mark.parametrize(
    ("flags", "has", "precisions", "learners"),
    [
        ([], ["fp32"], ["fp32"], OURS + OTHERS),
        ([], ["fp32", "bf16"], ["fp32", "bf16"], OURS + IN_BF16 + OTHERS),
        (["--precisions", "fp32"], ["fp32", "bf16"], ["fp32"], OURS + OTHERS),
        (["--precisions", "fp32", "bf16"], ["fp32"], ["fp32", "bf16"], OURS + IN_BF16 + OTHERS),
        (["--learners", "SBX", "ours"], ["fp32"], ["fp32"], ["SBX", "ours"]),
    ],
)
def test_learners_and_limits_are_those_of_the_precisions(flags, has, precisions, learners, monkeypatch) -> None:
    monkeypatch.setattr(precision, "supported", lambda device: has)
    arguments = learner.parsed(flags)
    learner.fill_in(arguments)
    assert arguments.precisions == precisions
    assert list(arguments.learners) == learners


@pytest.mark.parametrize(
    ("options", "actor", "critics"),
    # three hidden layers, each with one normalisation where it has any
    [({}, 3, 3), ({"actor_norm": False}, 0, 3), ({"actor_norm": False, "critic_norm": False}, 0, 0)],
)
def test_an_agent_of_the_same_work_as_a_peer_trains_without_those_layers(options, actor, critics) -> None:
    agent = learner.our_agent(8, **options)
    kinds = [type(module).__name__ for module in agent.actor.modules()]
    assert kinds.count("LayerNorm") == actor
    assert [type(m).__name__ for m in agent.critic.online.modules()].count("EnsembleLayerNorm") == critics
    before = [p.clone() for p in agent.actor.parameters()]
    agent.update(learner.filled_buffer(agent.layout.dim, stored=8).sample(4))
    after = list(agent.actor.parameters())
    assert len(after) == len(agent.actor_optimizer.param_groups[0]["params"]) == 8 + 2 * actor
    assert not torch.equal(before[-1], after[-1])


@pytest.mark.parametrize(
    "flags", [["--precisions", "fp16"], ["--learners", "mine"], ["--clock", "cpu", "--device", "cuda"]]
)
def test_what_it_does_not_know_is_refused(flags, capsys) -> None:
    with pytest.raises(SystemExit):
        learner.parsed(flags)
    assert flags[0] in capsys.readouterr().err


def test_its_rows_hold_rates_and_both_limits(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(learner, "STORED", 8)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *held: None)  # of this process, in which others go on
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = [
        "--widths",
        "8",
        "--batches",
        "4",
        "--steps",
        "1",
        "--repeats",
        "2",
        "--precisions",
        "fp32",
        "bf16",
        "--clock",
        "cpu",
        "--learners",
    ]
    assert learner.main([*flags, "ours", "ours, bf16", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["learner"] for row in rows] == ["ours", "ours, bf16"]
    for row in rows:
        assert row["steps_per_second"] > 0 and row["clock"] == "cpu"
        assert row["fraction_of_limit"].keys() == {"fp32", "bf16"}
    printed = capsys.readouterr().out
    assert "of fp32" in printed and "of bf16" in printed and "cpu time" in printed
