"""Interrupted runs of Stages 0 and 1 and of the quickstart go on as if nothing had happened: real signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, run_dsrl
from stoppable_runs import assert_same, rows, shorten_quickstart
from stopped_job import start, stopping
from tiny_worlds import TASK, TINY_BASE, TINY_STAGE1

from dsrl_offpolicy.files.checkpoint import load_checkpoint
from dsrl_offpolicy.train import demonstrations

STAGE0_STEP = "dsrl_offpolicy.agents.awsc:AWSCAgent.update"
ENCODER_STEP = "dsrl_offpolicy.agents.awsc:EncoderTraining.update"
STAGE1_STEP = "dsrl_offpolicy.agents.aw_mle:AWMLEAgent.update"
STAGE2_STEP = "dsrl_offpolicy.agents.dsrl_sac_agent:DSRLSACAgent.update"
MACRO_STEP = "gymnasium.vector:AsyncVectorEnv.step_wait"


def stop_here(after: str, count: int, number: signal.Signals, argv: Sequence[object]) -> Outcome:
    """``dsrl ARGV`` in this process, which gets the signal."""
    with stopping(after, count, lambda: os.kill(os.getpid(), number)):
        return run_dsrl(argv)


def summary(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in content.items() if k != "minutes"}


def assert_went_on_as_the_whole_run(folder: Path, whole: Path, kind: str) -> None:
    assert rows(folder) == rows(whole)
    assert summary(folder) == summary(whole)
    names = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == names
    for name in names:
        contents = [load_checkpoint(run / "checkpoints" / name, kind, "test") for run in (folder, whole)]
        for content in contents:
            content.get("demonstrations", {}).pop("path", None)  # of a quickstart: in its own folder
        assert_same(*contents, name)
    assert not (folder / "unfinished").exists()


def saved(folder: Path, kind: str) -> dict[str, Any]:
    return load_checkpoint(folder / "unfinished" / "last.pt", kind, "test")


class TestStage0:
    @pytest.fixture(scope="class")
    def flags(self, tiny_demos: Path) -> list[object]:
        return ["pretrain", "--demo_path", tiny_demos, *TINY_BASE, "--save_freq", 4]

    def test_a_stopped_run_goes_on_to_the_bit(self, flags, tiny_stage0, tmp_path) -> None:
        folder = tmp_path / "run"
        status, said = start(STAGE0_STEP, 13, signal.SIGTERM, [*flags, "--out", folder])
        assert status == 143 and "Traceback" not in said
        advice = f"dsrl pretrain --resume {folder}"
        assert said.splitlines()[-1] == f"dsrl pretrain: stopped by SIGTERM; resume with: {advice}"
        assert saved(folder, "unfinished_stage0")["gradient_steps"] == 13  # the step is finished

        # Until its end there is no base policy, and whoever asks for it is told.
        missing = folder / "checkpoints" / "last.pt"
        for path in (missing, folder / "unfinished" / "last.pt"):
            done = run_dsrl(["stage1", *TINY_STAGE1, "--demo_path", flags[2], "--awsc_checkpoint", path])
            assert done.status == 2 and len(done.error_lines) == 1
            assert f"stopped after 13 of 20 gradient steps; resume with: {advice}" in done.err

        assert run_dsrl(["pretrain", "--resume", folder]).status == 0
        assert_went_on_as_the_whole_run(folder, tiny_stage0, "base_policy")
        done = run_dsrl(["pretrain", "--resume", folder])
        assert done.status == 2 and len(done.error_lines) == 1 and "has finished" in done.err

    def test_a_killed_run_goes_on_from_its_last_whole_save(self, flags, tiny_stage0, tmp_path) -> None:
        folder = tmp_path / "run"
        status, _ = start(STAGE0_STEP, 15, signal.SIGKILL, [*flags, "--out", folder])
        assert status == -signal.SIGKILL
        assert saved(folder, "unfinished_stage0")["gradient_steps"] == 12  # every 4
        last = folder / "unfinished" / "last.pt"
        last.write_bytes(last.read_bytes()[:-100])
        done = run_dsrl(["pretrain", "--resume", folder])
        assert done.status == 0, done.err
        assert "altered or cut" in done.err and "resuming from previous.pt" in done.err
        assert_went_on_as_the_whole_run(folder, tiny_stage0, "base_policy")

    def test_a_stop_during_the_evaluation_leaves_only_that_to_do(self, flags, tiny_stage0, tmp_path) -> None:
        flags = [*flags, "--eval_episodes", 2, "--num_envs", 1, "--max_episode_steps", 16]
        folder, whole = tmp_path / "run", tmp_path / "whole"
        assert run_dsrl([*flags, "--out", whole]).status == 0
        assert stop_here(MACRO_STEP, 1, signal.SIGINT, [*flags, "--out", folder]).status == 130
        with stopping(STAGE0_STEP, 1, lambda: pytest.fail("a gradient step after the last one")):
            assert run_dsrl(["pretrain", "--resume", folder]).status == 0
        assert_went_on_as_the_whole_run(folder, whole, "base_policy")
        assert summary(folder)["base"]["episodes"] == 2

    def test_a_state_of_other_settings_is_refused(self, flags, tmp_path) -> None:
        folder = tmp_path / "run"
        assert stop_here(STAGE0_STEP, 3, signal.SIGTERM, [*flags, "--out", folder]).status == 143
        config = folder / "config.yaml"
        text = config.read_text()
        assert "critic_hidden_dims:\n- 16\n" in text
        config.write_text(text.replace("critic_hidden_dims:\n- 16\n", "critic_hidden_dims:\n- 24\n"))
        done = run_dsrl(["pretrain", "--resume", folder])
        assert done.status == 2 and len(done.error_lines) == 1
        assert "critic_hidden_dims: expected [16], with which the run began, got [24]" in done.err

    def test_changed_demonstrations_are_refused(self, flags, tmp_path) -> None:
        folder, demos = tmp_path / "run", tmp_path / "demos.h5"
        for suffix in (".h5", ".json"):
            shutil.copy(flags[2].with_suffix(suffix), demos.with_suffix(suffix))
        argv = ["pretrain", "--demo_path", demos, *flags[3:], "--out", folder]
        assert stop_here(STAGE0_STEP, 3, signal.SIGTERM, argv).status == 143
        other = run_dsrl(["demos", "--env_id", TASK, "--out", tmp_path / "other.h5", "--episodes", 2, "--seed", 5])
        assert other.status == 0
        for suffix in (".h5", ".json"):
            shutil.copy(tmp_path / f"other{suffix}", demos.with_suffix(suffix))
        done = run_dsrl(["pretrain", "--resume", folder])
        assert done.status == 2 and len(done.error_lines) == 1
        assert "the demonstrations changed since the run began" in done.err


@pytest.mark.maniskill
@pytest.mark.usefixtures("maniskill")
@pytest.mark.slow
def test_either_part_of_stage0_on_images_goes_on_to_the_bit(tmp_path, monkeypatch) -> None:
    """4 steps for the encoder, 4 for everything else."""
    demos, folder, whole = tmp_path / "demos.h5", tmp_path / "run", tmp_path / "whole"
    task = ["--env_id", "LiftPegUpright-v1"]
    argv = ["demos", *task, "--out", demos, "--demonstrator", "scripted", "--obs_mode", "rgb"]
    done = run_dsrl([*argv, "--episodes", 2, "--demo_steps", 8])
    assert done.status == 0, done.err
    ask, answers = demonstrations._order_in_environment, []

    def ask_once(*args: Any) -> Any:  # building the environment is most of the time of so short a run
        if not answers:
            answers.append(ask(*args))
        return answers[0]

    monkeypatch.setattr(demonstrations, "_order_in_environment", ask_once)
    flags = [
        "pretrain", *task, "--demo_path", demos, "--total_iters", 4, "--batch_size", 8, "--velocity_widths", 16,
        "--embed_dim", 8, "--critic_hidden_dims", 16, "--denoising_steps", 2, "--log_freq", 1,
        "--encoder_iters", 4, "--encoder_batch_size", 4, "--visual_dim", 6, "--image_shift", 2,
    ]  # fmt: skip
    assert run_dsrl([*flags, "--out", whole]).status == 0

    argv = [*flags, "--out", folder]
    for after, count, steps in ((ENCODER_STEP, 2, 2), (ENCODER_STEP, 2, 4), (STAGE0_STEP, 2, 2)):
        done = stop_here(after, count, signal.SIGTERM, argv)
        assert done.status == 143, done.err
        state = saved(folder, "unfinished_stage0")
        assert state["gradient_steps"] == steps
        assert (state["encoder_training"] is not None) == (after == ENCODER_STEP)
        argv = ["pretrain", "--resume", folder]
    assert run_dsrl(argv).status == 0
    assert_went_on_as_the_whole_run(folder, whole, "base_policy")


class TestStage1:
    """24 gradient steps."""

    @pytest.fixture(scope="class", params=["fresh", "pool", "pool, Q^W and evaluations"])
    def flags(self, request, tiny_demos: Path, tiny_base: Path) -> list[object]:
        evaluations = ["--eval_freq", 16, "--eval_episodes", 2, "--num_envs", 1, "--max_episode_steps", 16]
        more = {
            "fresh": ["--candidate_pool", 0],
            "pool": ["--candidate_pool", 9],
            "pool, Q^W and evaluations": ["--candidate_pool", 9, "--distill_q", *evaluations],
        }
        return [
            "stage1", "--demo_path", tiny_demos, "--awsc_checkpoint", tiny_base, *TINY_STAGE1, "--total_iters", 24,
            "--save_freq", 5, *more[request.param],
        ]  # fmt: skip

    @pytest.fixture(scope="class")
    def whole(self, flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("whole") / "run"
        assert run_dsrl([*flags, "--out", folder]).status == 0
        return folder

    def test_a_stopped_run_goes_on_to_the_bit(self, flags, whole, tmp_path) -> None:
        folder = tmp_path / "run"
        done = stop_here(STAGE1_STEP, 7, signal.SIGINT, [*flags, "--out", folder])
        assert done.status == 130
        advice = f"dsrl stage1 --resume {folder}"
        assert done.error_lines[-1] == f"dsrl stage1: stopped by SIGINT; resume with: {advice}"
        assert saved(folder, "unfinished_stage1")["gradient_steps"] == 7
        if "--eval_freq" in flags[-8:]:  # stopped again during the evaluation after 16 steps, to be made up for
            done = stop_here(MACRO_STEP, 1, signal.SIGTERM, ["stage1", "--resume", folder])
            assert done.status == 143
            state = saved(folder, "unfinished_stage1")
            assert (state["gradient_steps"], state["evaluated"]) == (16, 0)
        done = run_dsrl(["stage1", "--resume", folder])
        assert done.status == 0, done.err
        assert_went_on_as_the_whole_run(folder, whole, "stage1")
        assert "has finished" in run_dsrl(["stage1", "--resume", folder]).err


def test_a_killed_stage1_goes_on_from_its_last_save(tiny_demos, tiny_base, tiny_stage1, tmp_path) -> None:
    folder = tmp_path / "run"
    files = ["--demo_path", tiny_demos, "--awsc_checkpoint", tiny_base]
    argv = ["stage1", *files, *TINY_STAGE1, "--save_freq", 2, "--out", folder]
    status, _ = start(STAGE1_STEP, 5, signal.SIGKILL, argv)
    assert status == -signal.SIGKILL and saved(folder, "unfinished_stage1")["gradient_steps"] == 4
    done = run_dsrl(["stage1", "--resume", folder])
    assert done.status == 0, done.err
    assert_went_on_as_the_whole_run(folder, tiny_stage1, "stage1")


def test_another_base_policy_is_refused(tiny_demos, tiny_base, tmp_path) -> None:
    folder, base = tmp_path / "run", tmp_path / "base.pt"
    content = load_checkpoint(tiny_base, "base_policy", "test")
    torch.save(content, base)
    argv = ["stage1", "--demo_path", tiny_demos, "--awsc_checkpoint", base, *TINY_STAGE1, "--out", folder]
    assert stop_here(STAGE1_STEP, 2, signal.SIGTERM, argv).status == 143
    critic = content["critic"]  # the latents still fit, their scores do not
    critic[next(iter(critic))].add_(1)
    torch.save(content, base)
    done = run_dsrl(["stage1", "--resume", folder])
    assert done.status == 2 and len(done.error_lines) == 1
    assert "the base policy changed since the run began" in done.err


def test_the_quickstart_goes_on_wherever_it_was_stopped(tmp_path, monkeypatch) -> None:
    least = shorten_quickstart(monkeypatch)
    flags = ["quickstart", "--task", TASK, "--budget", 0.01, "--num_envs", 1]
    folder, whole = tmp_path / "run", tmp_path / "whole"
    done = run_dsrl([*flags, "--out", whole])
    assert done.status == 0, done.err
    resume = ["quickstart", "--resume", folder]
    advice = f"resume with: dsrl quickstart --resume {folder}"

    done = stop_here(
        "dsrl_offpolicy.demos.makers.scripted:record_episode", 1, signal.SIGINT, [*flags, "--out", folder]
    )
    assert done.status == 130 and done.error_lines[-1] == f"dsrl quickstart: stopped by SIGINT; {advice}"
    assert not list(folder.glob("demos*"))  # whole or not at all

    # Stage 0 has a folder and no save.
    status, said = start("dsrl_offpolicy.train.pretrain_stage0:to_batch", 1, signal.SIGKILL, resume, least)
    assert status == -signal.SIGKILL, said
    assert (folder / "stage0").is_dir() and not (folder / "stage0" / "unfinished").exists()

    # Stage 1 has taken three of its four steps and was saved before the first.
    status, said = start(STAGE1_STEP, 3, signal.SIGKILL, resume, least)
    assert status == -signal.SIGKILL, said
    assert f"{folder / 'stage0'} was interrupted before its first save" in said
    assert saved(folder / "stage1", "unfinished_stage1")["gradient_steps"] == 0

    with stopping(STAGE0_STEP, 1, lambda: pytest.fail("Stage 0 was done")):
        done = stop_here(STAGE2_STEP, 20, signal.SIGTERM, resume)
    assert done.status == 143 and done.error_lines[-1] == f"dsrl quickstart: stopped by SIGTERM; {advice}"

    with stopping(STAGE1_STEP, 1, lambda: pytest.fail("Stage 1 was done")):
        done = stop_here("dsrl_offpolicy.commands.evaluate:summarise", 1, signal.SIGTERM, resume)
    assert done.status == 143 and done.error_lines[-1] == f"dsrl quickstart: stopped by SIGTERM; {advice}"

    with stopping(STAGE2_STEP, 1, lambda: pytest.fail("Stage 2 was done")):
        done = run_dsrl(resume)
    assert done.status == 0, done.err
    assert rows(folder) == rows(whole) and summary(folder) == summary(whole)
    assert (folder / "evaluation.csv").read_text() == (whole / "evaluation.csv").read_text()
    for stage, kind in (("stage0", "base_policy"), ("stage1", "stage1")):
        assert_went_on_as_the_whole_run(folder / stage, whole / stage, kind)
    assert rows(folder / "stage2") == rows(whole / "stage2")
    done = run_dsrl(resume)
    assert done.status == 2 and len(done.error_lines) == 1 and "has finished" in done.err


@pytest.mark.parametrize("command", ["pretrain", "stage1", "quickstart"])
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--resume", "none"], "does not exist"),
        (["--resume", "none", "--seed", 1], "--seed: expected nothing beside --resume"),
    ],
)
def test_bad_input_is_one_line(command, argv, says) -> None:
    done = run_dsrl([command, *argv])
    assert done.status == 2 and len(done.error_lines) == 1 and says in done.err
