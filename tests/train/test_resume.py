"""Interrupted runs of Stage 2 go on as if nothing had happened: real processes, real signals, real MetaWorld."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import stopped_job
from stoppable_runs import FLAGS, assert_same, content, finish, rows, start, wait_for_rows

DRAW = "dsrl_offpolicy.evaluation.episodes:NoiseStreams.draw"
"""Once in every macro-step of an evaluation."""


@pytest.fixture(scope="module")
def whole(reach_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, said = finish(start(f"{FLAGS} --awsc_checkpoint {reach_base} --out {folder}"))
    assert status == 0, said
    return folder


def assert_went_on_as_the_whole_run(folder: Path, whole: Path) -> None:
    assert rows(folder) == rows(whole)
    one, other = content(folder), content(whole)
    for name in ("policy", "training", "counters", "recent", "random"):
        assert_same(one[name], other[name], name)
    assert json.loads((folder / "summary.json").read_text())["env_steps"] >= 1600


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],  # one handler takes both
)
def test_a_stopped_run_is_saved_and_goes_on_to_the_bit(
    reach_base, whole, run_command, tmp_path, number, status
) -> None:
    folder = tmp_path / "run"
    process = start(f"{FLAGS} --awsc_checkpoint {reach_base} --out {folder}")
    wait_for_rows(process, folder, 12)
    os.killpg(process.pid, number)  # as a terminal or a batch system does: every process of the group
    found, said = finish(process)
    assert found == status and f"dsrl stage2 --resume {folder}" in said and "Traceback" not in said
    before = content(folder)["counters"]
    assert before["env_steps"] < 1100
    found, said = finish(start(f"--resume {folder}"))
    assert found == 0, said
    assert "note" not in said
    assert_went_on_as_the_whole_run(folder, whole)
    # 200 gradient steps and more were taken after the resume
    assert content(folder)["counters"]["gradient_steps"] - before["gradient_steps"] >= 200
    done = run_command(["stage2", "--resume", folder])
    assert done.status == 2 and "has finished" in done.err


def test_a_killed_run_loses_what_came_after_its_last_save_and_nothing_else(reach_base, whole, tmp_path) -> None:
    folder = tmp_path / "run"
    process = start(f"{FLAGS} --awsc_checkpoint {reach_base} --out {folder}")
    wait_for_rows(process, folder, 9)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    env_steps = rows(folder)[-1]["env_steps"]
    assert env_steps - content(folder)["counters"]["env_steps"] <= 100 + 2 * 8
    # The last file is torn besides: the one before is whole, and the user is told.
    last = folder / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    status, said = finish(start(f"--resume {folder}"))
    assert status == 0, said
    assert "altered or cut" in said and "resuming from previous.pt" in said
    assert_went_on_as_the_whole_run(folder, whole)


def test_a_second_process_in_the_same_folder_is_refused(reach_base, run_command, tmp_path) -> None:
    folder = tmp_path / "run"
    process = start(f"{FLAGS} --compile off --total_timesteps 60000 --awsc_checkpoint {reach_base} --out {folder}")
    wait_for_rows(process, folder, 8)
    done = run_command(["stage2", "--resume", folder])
    assert done.status == 2 and "another process" in done.err
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)


def test_a_stop_during_an_evaluation_is_heard_and_the_evaluation_made_up_for(reach_base, tmp_path) -> None:
    folder = tmp_path / "run"
    # So many episodes take minutes, and are the first thing of the run: the signal finds it before its first row.
    argv = ["stage2", *FLAGS.split(), "--eval_episodes", 20000, "--awsc_checkpoint", reach_base, "--out", folder]
    status, said = stopped_job.start(DRAW, 3, signal.SIGTERM, argv)
    assert status == 143 and "--resume" in said and "Traceback" not in said
    assert rows(folder) == []
    assert content(folder)["counters"]["env_steps"] == 16 and content(folder)["next_evaluation"] == 0


@pytest.mark.parametrize("macro_step", [pytest.param(7, marks=pytest.mark.slow), 12])
def test_an_evaluation_that_was_stopped_is_the_first_thing_that_goes_on(
    reach_base, whole, tmp_path, macro_step
) -> None:
    # An evaluation has 5 macro-steps: the 7th is in the second evaluation, the 12th in the final one.
    folder = tmp_path / "run"
    argv = ["stage2", *FLAGS.split(), "--awsc_checkpoint", reach_base, "--out", folder]
    status, said = stopped_job.start(DRAW, macro_step, signal.SIGTERM, argv)
    assert status == 143 and f"dsrl stage2 --resume {folder}" in said and "Traceback" not in said
    status, said = finish(start(f"--resume {folder}"))
    assert status == 0, said
    assert_went_on_as_the_whole_run(folder, whole)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--resume {here}/none", "does not exist"),
        ("--resume {here} --utd_ratio 3", "--utd_ratio: expected nothing beside --resume"),
        ("--resume {here} --total_timesteps 500000", "--total_timesteps: expected nothing beside"),  # the default
    ],
)
def test_bad_input_is_one_line(run_command, tmp_path, flags, says) -> None:
    done = run_command(["stage2", *flags.format(here=tmp_path).split()])
    assert done.status == 2 and says in done.err and len(done.error_lines) == 1
