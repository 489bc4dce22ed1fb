"""Demonstrations in Stage 2: inverted once, sampled beside the replay buffer, and exact when a run resumes."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stoppable_runs import FLAGS, assert_same, content, finish, rows, start, wait_for_rows
from tiny_worlds import TASK, TINY_WIDTHS, HalvingPolicy

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.offline_transitions import OfflineTransitions
from dsrl_offpolicy.contracts import Encoding, MacroBatch, MacroTransitions
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.checkpoint import load_checkpoint, save_checkpoint
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.train.offline_data import OfflineData, check_invertible
from dsrl_offpolicy.train.train_stage2_online import Stage2, settings

FULL = LatentLayout("full", 4, 1, slice(1, 3), 2.0)


def transitions(count: int, value: float) -> MacroBatch:
    row = torch.full((count,), value)
    return MacroBatch(row[:, None], row[:, None], row, row, row[:, None])


def online() -> MacroReplayBuffer:
    """A buffer of a zero."""
    buffer = MacroReplayBuffer(1, 1, 1, generator=torch.Generator().manual_seed(0))
    zero, no = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    n_steps = torch.ones(1, dtype=torch.int32)
    buffer.add(MacroTransitions(zero[:, None], zero[:, None], zero, zero[:, None], no, no, n_steps), gamma=0.9)
    return buffer


def data(**settings: object) -> OfflineData:
    """Without files: its transitions are ones."""
    found = OfflineData.__new__(OfflineData)
    found.config = Stage2Config(**settings)
    found.transitions = OfflineTransitions(transitions(5, 1.0), generator=torch.Generator().manual_seed(0))
    return found


@pytest.mark.parametrize(("fraction", "offline"), [(0.5, 4), (0.0, 0), (1.0, 8), (0.3, 2)])
def test_a_batch_has_the_share_of_demonstrations_that_was_asked_for(fraction, offline) -> None:
    batch = data(offline_fraction=fraction).batch(online(), 8, 0)
    assert batch.reward.sum() == offline and len(batch.reward) == 8
    assert torch.equal(batch.latent[:, 0], batch.reward) and torch.equal(batch.next_obs_features, batch.latent)


def test_the_share_falls_linearly() -> None:
    found = data(offline_fraction=0.5, offline_anneal_steps=1000)
    assert [found.share(steps) for steps in (0, 500, 1000, 5000)] == [0.5, 0.25, 0.0, 0.0]


def refuse(policy: HalvingPolicy, layout: LatentLayout) -> None:
    check_invertible(policy, layout, torch.device("cpu"), flag="demo_path", instead="leave it out")


def test_what_cannot_be_inverted_is_refused_with_what_still_works() -> None:
    with pytest.raises(InputError, match="demo_path: HalvingPolicy cannot be inverted; leave it out"):
        refuse(HalvingPolicy(), FULL)
    with pytest.raises(InputError, match="steer_mode repeat"):
        refuse(HalvingPolicy(), LatentLayout("repeat", 4, 1, slice(1, 3), 2.0))

    class Contextual(HalvingPolicy):
        def encode(self, obs):
            return Encoding(torch.as_tensor(obs).flatten(1), context="instruction")

    with pytest.raises(InputError, match="decodes from more than its features"):
        refuse(Contextual(), FULL)
    early = HalvingPolicy()
    early.info = replace(early.info, executed_rows=slice(0, 2))  # though two frames are stacked
    with pytest.raises(InputError, match="obs_horizon - 1 = 1 on, this one executes them from 0 on"):
        refuse(early, FULL)


@pytest.fixture(scope="module")
def flags(reach_base: Path) -> str:
    demos = reach_base.parents[2] / "demos.h5"
    return (
        f"{FLAGS} --awsc_checkpoint {reach_base} --demo_path {demos} --critic_burnin_steps 20 "
        "--offline_anneal_steps 1000 --num_demos 3"
    )


def test_a_run_with_demonstrations_goes_on_to_the_bit(flags: str, run_command, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    status, said = finish(start(f"{flags} --out {whole}"))
    assert status == 0, said
    assert "windows of demonstrations turned into noise" in said
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["utd_effective"] == 2.0 and summary["burnin_steps"] == 20  # demonstrations earn no steps
    report = summary["offline"]
    kept = load_checkpoint(whole / "offline.pt", "offline_transitions", "x")["transitions"]
    assert len(kept["reward"]) == report["windows"] - report["left_out"] > 50
    shares = [row["offline_fraction"] for row in rows(whole) if row["group"] == "train"]
    assert 0 < shares[0] < 0.5 and shares[-1] == 0

    process = start(f"{flags} --out {stopped}")
    wait_for_rows(process, stopped, 9)
    os.killpg(process.pid, signal.SIGTERM)
    assert finish(process)[0] == 143
    config = stopped / "config.yaml"
    text = config.read_text()
    config.write_text(re.sub("demo_path: .*", "demo_path: null", text))
    done = run_command(["stage2", "--resume", stopped])
    assert done.status == 2 and "the demonstrations changed since the run began" in done.err
    config.write_text(text)
    status, said = finish(start(f"--resume {stopped}"))
    assert status == 0 and "turned into noise" not in said, said  # read from the run folder
    assert rows(stopped) == rows(whole)
    assert_same(content(stopped)["training"], content(whole)["training"], "training")
    assert torch.equal(content(stopped)["offline"], content(whole)["offline"])


def test_who_stops_an_inversion_has_begun_no_run(flags, tmp_path, monkeypatch) -> None:
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OfflineData, "_inverted", stopped)
    with pytest.raises(KeyboardInterrupt):
        Stage2(settings([*flags.split(), "--out", str(tmp_path / "run")])).run()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def from_stage1(tiny_stage1: Path, tiny_base: Path, tmp_path: Path):
    """Builds Stage 2 on the tiny Stage 1, with flags and with what its checkpoint says changed."""

    def build(*flags: str, **said: object) -> Stage2:
        path = tiny_stage1 / "checkpoints" / "last.pt"
        if said:
            saved = load_checkpoint(path, "stage1", "x")
            saved["demonstrations"] |= said
            path = tmp_path / "stage1.pt"
            save_checkpoint(path, "stage1", saved)
        argv = ["--env_id", TASK, "--base", str(tiny_base), "--stage1_checkpoint", str(path), *TINY_WIDTHS, *flags]
        return Stage2(settings([str(flag) for flag in argv]))

    return build


def test_stage_2_finds_the_demonstrations_of_stage_1(from_stage1, tiny_demos: Path, capsys) -> None:
    stage2 = from_stage1()
    assert stage2.config.demo_path == tiny_demos.resolve()  # so it stands in config.yaml, and resumes
    assert f"demonstrations of Stage 1: {tiny_demos.resolve()}" in capsys.readouterr().err
    given = from_stage1("--demo_path", str(tiny_demos))
    assert torch.equal(stage2.offline.transitions.rows.latent, given.offline.transitions.rows.latent)


def test_stage_2_goes_without_demonstrations_that_are_unwanted_changed_or_useless(
    from_stage1, tmp_path: Path, capsys
) -> None:
    assert from_stage1("--offline_fraction", "0").offline is None
    assert from_stage1("--steer_mode", "full", path=str(tmp_path / "gone.h5")).offline is None
    assert "goes without the demonstrations of Stage 1: " in capsys.readouterr().err
    assert from_stage1(digest="of another file").offline is None
    assert "is not what it was; --demo_path gives others" in capsys.readouterr().err
    found = from_stage1("--inversion_tolerance", "1e-9")
    assert found.offline is None and found.config.demo_path is None
    assert "makes none of" in capsys.readouterr().err


def test_demonstrations_that_teach_nothing_are_refused(
    flags: str, tmp_path: Path, monkeypatch, run_command
) -> None:
    def given(**changes: object) -> None:
        from dsrl_offpolicy.train import offline_data

        original = offline_data.load_policy_windows

        def changed(*args: object):
            demos, windows = original(*args)
            if "success" in changes:
                for trajectory in demos.trajectories:
                    trajectory.success[...] = False
            windows.chunks[...] *= changes.get("scale", 1)
            return demos, windows

        monkeypatch.setattr(offline_data, "load_policy_windows", changed)

    def error() -> str:
        done = run_command(["stage2", *flags.split(), "--out", tmp_path / f"run{len(list(tmp_path.iterdir()))}"])
        monkeypatch.undo()
        assert done.status == 2 and "Traceback" not in done.err, done.err
        return done.error_lines[-1]

    given(success=False)
    assert "expected at least one demonstration that succeeds, got none of 3" in error()
    given(scale=3.0)
    assert "expected actions in [-1, 1]" in error()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--offline_fraction 1.5", "offline_fraction"),
        ("--inversion_tolerance 0", "inversion_tolerance"),
        ("--inversion_tolerance 1e-9", "makes none of"),
        ("--steer_mode repeat", "steer_mode repeat"),
        ("--demo_path missing.h5", "missing.h5"),
        ("--env_id push-v3", "push-v3"),
    ],
)
def test_bad_input_is_one_line(flags: str, tmp_path: Path, run_command, flag, said) -> None:
    done = run_command(["stage2", *flags.split(), *flag.split(), "--out", tmp_path / "run"])
    assert done.status == 2 and said in done.error_lines[-1] and "Traceback" not in done.err
