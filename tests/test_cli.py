"""The command line: help, and bad input that costs one line and changes nothing on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny_worlds import TASK, TINY_WIDTHS, snapshot

import dsrl_offpolicy
from dsrl_offpolicy.cli import COMMANDS
from dsrl_offpolicy.files.checkpoint import read_tensors
from dsrl_offpolicy.tracking.progress import use_style

TRAIN = Path(dsrl_offpolicy.__file__).parent / "train"


@dataclass(frozen=True)
class Files:
    """What the commands below are given; ``here`` is the working directory and must not change."""

    here: Path
    demos: Path
    base: Path
    stage1: Path

    def edited_demos(self, field: str, data: np.ndarray | None) -> Path:
        """A copy of the demonstrations with a field replaced or taken away, outside the watched folder."""
        path = self.here.parent / "edited.h5"
        shutil.copy(self.demos, path)
        shutil.copy(self.demos.with_suffix(".json"), path.with_suffix(".json"))
        with h5py.File(path, "r+") as handle:
            old = handle[field][()]
            del handle[field]
            if data is not None:
                handle[field] = np.broadcast_to(data, old.shape)
        return path

    def written(self, name: str, content: bytes) -> Path:
        """A file outside the watched folder."""
        path = self.here.parent / name
        path.write_bytes(content)
        return path


@pytest.fixture
def files(tmp_path, monkeypatch, tiny_demos, tiny_base, tiny_stage1) -> Files:
    here = tmp_path / "here"
    (here / "taken" / "checkpoints").mkdir(parents=True)
    (here / "taken" / "checkpoints" / "last.pt").write_text("precious")
    (here / "taken.h5").write_text("precious")
    monkeypatch.chdir(here)
    return Files(here, tiny_demos, tiny_base, tiny_stage1 / "checkpoints" / "last.pt")


def test_help_lists_every_command(run_command):
    done = run_command(["--help"])
    assert done.status == 0 and done.err == ""
    for command in ("quickstart", "demos", "pretrain", "stage1", "stage2", "eval", "export"):
        assert command in done.out
    assert run_command([]).status == 2
    assert run_command(["--version"]).out.strip() == dsrl_offpolicy.__version__


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_a_screen_and_says_how_to_see_the_rest(run_command, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    done = run_command([command, "--help"])
    lines = done.out.splitlines()
    assert done.status == 0 and done.err == ""
    assert any(line.startswith("  --seed INT ") and line.endswith("[1]") for line in lines)
    assert any(line.startswith("  --out PATH ") for line in lines)
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    assert lines[-1].endswith(f"more flags: dsrl {command} --help_all")


@pytest.mark.parametrize("command", COMMANDS)
def test_all_flags_are_explained_in_groups(run_command, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "60")
    few, done = run_command([command, "--help"]), run_command([command, "--help_all"])
    flags, usual = (re.findall(r"^  --(\w+)", out, re.MULTILINE) for out in (done.out, few.out))
    assert done.status == 0 and max(map(len, done.out.splitlines())) <= 60
    (more,) = re.findall(r"^(\d+) more flags", few.out, re.MULTILINE)
    assert set(usual) <= set(flags) and len(flags) == len(set(flags)) == len(usual) + int(more)
    entries = re.split(r"^  --", done.out, flags=re.MULTILINE)[1:]
    assert [entry for entry in entries if len(entry.split()) < 4] == []  # flag, type, and words
    assert re.search(r"^Resume:$|^Environment:$|^This command:$", done.out, re.MULTILINE)


def test_help_is_that_of_the_algorithm_that_is_asked_for(run_command):
    assert "--init_temperature" in run_command(["stage2", "--help_all"]).out
    assert "--distill_actor_fraction" not in run_command(["stage2", "--help_all"]).out
    done = run_command(["stage2", "--algo", "na", "--help-all"])
    assert "--distill_actor_fraction" in done.out and "Heads of Q^A, and of Q^W" in " ".join(done.out.split())


def test_progress_is_shown_as_asked_for(run_command, tmp_path):
    demos = ["demos", "--env_id", TASK, "--episodes", 1, "--demo_steps", 8, "--out"]
    try:
        done = run_command([*demos, tmp_path / "json.h5", "--progress", "json"])
        rows = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
        assert rows[-1]["job"] == "demos" and rows[-1]["unit"] == "episodes" and "episodes" not in done.err
        assert rows[-1]["done"] == rows[-1]["total"] == 1 and rows[-1]["seconds_left"] == 0 <= rows[-1]["seconds"]
        done = run_command([*demos, tmp_path / "quiet.h5", "--progress=quiet"])
        assert done.status == 0 and "episodes" not in done.err and "{" not in done.out
        done = run_command([*demos, tmp_path / "plain.h5"])  # as ever
        assert "demos: 1/1 episodes" in done.err
        done = run_command([*demos, tmp_path / "none.h5", "--progress", "loud"])
        assert done.status == 2
        assert done.error_lines == ["dsrl demos: error: --progress: expected auto, plain, json or quiet, got loud"]
    finally:
        use_style("auto")


def test_rows_of_json_are_alone_on_standard_output(files, run_command):
    out = files.here.parent / "run"
    flags = ["--num_envs", 1, "--total_timesteps", 64, "--warmup_steps", 16, "--max_episode_steps", 16]
    flags += ["--utd_ratio", 1, "--batch_size", 4, "--log_freq", 2, "--eval_freq", 32, "--eval_episodes", 1]
    few = ["--episodes", 2, "--constants", 0, "--best_of", 0, "--num_envs", 1, "--max_episode_steps", 16]
    try:
        done = run_command(_stage2(files, *flags, *TINY_WIDTHS, "--out", out, "--progress", "json"))
        rows = [json.loads(line) for line in done.out.splitlines()]
        assert done.status == 0 and rows[-1]["job"] == "stage2", done.err
        assert {"done", "total", "unit", "gradient_steps", "env/s", "grad/s", "seconds_left"} <= set(rows[-1])
        assert 0 <= rows[-1]["success_low"] <= rows[-1]["success"] <= rows[-1]["success_high"] <= 1
        assert rows[-1]["eval_success_low"] <= rows[-1]["eval_success"] <= rows[-1]["eval_success_high"]
        done = run_command(_eval(files, *few, "--out", files.here.parent / "eval", "--progress", "json"))
        rows = [json.loads(line) for line in done.out.splitlines()]
        assert done.status == 0 and [row["policy"] for row in rows] == ["base (prior noise)", "w = 0"]
        assert rows[0]["success_low"] <= rows[0]["success"] <= rows[0]["success_high"]
        assert "w = 0" in done.err  # the table is for people
        done = run_command(_eval(files, *few, "--out", files.here.parent / "quiet", "--progress", "quiet"))
        assert done.status == 0 and done.err == "" and "w = 0" in done.out
    finally:
        use_style("auto")


def test_an_unknown_command_is_answered_with_the_nearest(run_command):
    done = run_command(["pretran"])
    assert done.status == 2
    assert done.error_lines == ["dsrl: error: unknown command 'pretran'; did you mean pretrain?"]


def _other_base(files: Files) -> Path:
    """A base policy of the same shapes with other weights."""
    content = read_tensors(files.base, "file", "test")
    content["encoder"]["mean"] += 1
    path = files.here.parent / "other_base.pt"
    torch.save(content, path)
    return path


def _stage2(files: Files, *flags: object) -> list[object]:
    return ["stage2", "--env_id", TASK, "--awsc_checkpoint", files.base, *flags]


def _stage1(files: Files, *flags: object) -> list[object]:
    return ["stage1", "--env_id", TASK, "--demo_path", files.demos, "--awsc_checkpoint", files.base, *flags]


def _eval(files: Files, *flags: object) -> list[object]:
    return ["eval", "--env_id", TASK, "--awsc_checkpoint", files.base, *flags]


def _pretrain(files: Files, *flags: object) -> list[object]:
    return ["pretrain", "--env_id", TASK, "--demo_path", files.demos, "--total_iters", 2, *flags]


BAD_INPUT: dict[str, tuple[Callable[[Files], list[object]], list[str]]] = {
    # Missing or wrong checkpoints.
    "no checkpoint given": (lambda f: ["stage2"], ["--base", "dsrl pretrain"]),
    "missing checkpoint": (lambda f: ["stage2", "--awsc_checkpoint", "no.pt"], ["awsc_checkpoint", "no.pt"]),
    "missing checkpoint, stage 1": (
        lambda f: ["stage1", "--demo_path", f.demos, "--awsc_checkpoint", "no.pt"],
        ["awsc_checkpoint", "no.pt"],
    ),
    "missing checkpoint, eval": (lambda f: ["eval", "--awsc_checkpoint", "no.pt"], ["awsc_checkpoint", "no.pt"]),
    "a text file as checkpoint": (
        lambda f: ["stage2", "--awsc_checkpoint", f.written("notes.txt", b"hello")],
        ["awsc_checkpoint", "notes.txt"],
    ),
    "half a checkpoint": (
        lambda f: ["stage2", "--awsc_checkpoint", f.written("half.pt", f.base.read_bytes()[:3000])],
        ["half.pt"],
    ),
    "stage 1 where a base belongs": (
        lambda f: ["stage2", "--awsc_checkpoint", f.stage1],
        ["awsc_checkpoint", "base_policy", "stage1"],
    ),
    "base where stage 1 belongs": (
        lambda f: _stage2(f, "--stage1_checkpoint", f.base),
        ["stage1_checkpoint", "stage1", "base_policy"],
    ),
    "stage 1 where stage 2 belongs": (
        lambda f: _eval(f, "--stage2_checkpoint", f.stage1),
        ["stage2_checkpoint", "stage2", "stage1"],
    ),
    "stage 1 of another base": (
        lambda f: _eval(f, "--awsc_checkpoint", _other_base(f), "--stage1_checkpoint", f.stage1),
        ["stage1_checkpoint", "another"],
    ),
    "stage 1 of another width": (
        lambda f: _stage2(f, "--stage1_checkpoint", f.stage1, "--actor_hidden_dims", 8),
        ["stage1_checkpoint", "actor_hidden_dims", "(8, 39)", "(16, 39)"],
    ),
    "a critic that was never distilled": (
        lambda f: _stage2(f, *TINY_WIDTHS, "--stage1_checkpoint", f.stage1, "--init_critic"),
        ["stage1_checkpoint", "distill_q"],
    ),
    "a critic without the stage 1 that holds it": (
        lambda f: _stage2(f, "--init_critic"),
        ["--stage1_checkpoint", "--init_critic"],
    ),
    # A checkpoint from another task.
    "other dimensions, stage 2": (
        lambda f: _stage2(f, "--env_id", "Pendulum-v1", "--reward_mode", "dense"),
        ["base policy", "3 state dimensions", "Pendulum-v1", "39", "lever-pull-v3"],
    ),
    "other dimensions, demonstrations": (
        lambda f: _stage1(f, "--demo_path", _narrow_demos(f)),
        ["demo_path", "39 state dimensions", "got 5"],
    ),
    # Demonstrations.
    "no demonstrations given": (lambda f: ["pretrain"], ["--demo_path", "dsrl demos"]),
    "missing demonstrations": (lambda f: ["pretrain", "--demo_path", "no.h5"], ["demo_path", "no.h5"]),
    "no obs": (
        lambda f: ["pretrain", "--env_id", TASK, "--demo_path", f.edited_demos("traj_1/obs", None)],
        ["'obs'", "edited.h5", "traj_1"],
    ),
    "no rewards where dense ones are needed": (
        lambda f: _pretrain(f, "--demo_path", f.edited_demos("traj_0/rewards", None), "--reward_mode", "dense"),
        ["'rewards'", "edited.h5"],
    ),
    "non-finite observations": (
        lambda f: _pretrain(f, "--demo_path", f.edited_demos("traj_0/obs", np.array(np.nan))),
        ["finite", "'obs'", "edited.h5"],
    ),
    "non-finite actions, stage 1": (
        lambda f: _stage1(f, "--demo_path", f.edited_demos("traj_2/actions", np.array(np.inf))),
        ["finite", "'actions'", "edited.h5", "traj_2"],
    ),
    "one demonstration where one is held out": (
        lambda f: _stage1(f, "--num_demos", 1),
        ["demo_path", "2 episodes"],
    ),
    # Environments.
    "unknown env, stage 2": (
        lambda f: _stage2(f, "--env_id", "lever-pul-v3"),
        ["env_id", "'lever-pul-v3'", "did you mean lever-pull-v3?"],
    ),
    "unknown env, stage 1": (lambda f: _stage1(f, "--env_id", "lever-pul-v3"), ["did you mean lever-pull-v3?"]),
    "unknown env, eval": (
        lambda f: _eval(f, "--env_id", "lever-pul-v3"),
        ["did you mean lever-pull-v3?"],
    ),
    "unknown env, pretrain": (
        lambda f: _pretrain(f, "--env_id", "lever-pul-v3"),
        ["did you mean lever-pull-v3?"],
    ),
    "other task, pretrain": (
        lambda f: _pretrain(f, "--env_id", "pick-place-v3"),
        ["env_id", "recorded with pick-place-v3", "has lever-pull-v3"],
    ),
    "other task, stage 1": (
        lambda f: _stage1(f, "--env_id", "pick-place-v3"),
        ["env_id", "recorded with pick-place-v3", "has lever-pull-v3"],
    ),
    "unknown env, demos": (lambda f: ["demos", "--env_id", "lever-pul-v3"], ["env_id", "'lever-pul-v3'"]),
    "unknown task, quickstart": (lambda f: ["quickstart", "--task", "lever-pul-v3"], ["'lever-pul-v3'"]),
    "no expert for it, demos": (
        lambda f: ["demos", "--env_id", "Pendulum-v1"],
        ["scripted expert", "Pendulum-v1"],
    ),
    "no planner for it, demos": (
        lambda f: ["demos", "--env_id", "PikCube-v1"],
        ["env_id", "'PikCube-v1'", "did you mean PickCube-v1?", "LiftPegUpright-v1, ", "StackPyramid-v1"],
    ),
    "images of MetaWorld": (
        lambda f: ["demos", "--env_id", TASK, "--obs_mode", "rgb"],
        ["obs_mode", TASK, "ManiSkill", "rgb"],
    ),
    "another control mode of MetaWorld": (
        lambda f: ["demos", "--env_id", TASK, "--control_mode", "pd_ee_delta_pose"],
        ["control_mode", TASK, "pd_ee_delta_pose"],
    ),
    "a planner with a scripted expert's errors": (
        lambda f: ["demos", "--env_id", "PickCube-v1", "--action_noise", 0.2],
        ["action_noise", "PickCube-v1", "scripted expert", "0.2"],
    ),
    "a control mode to which no plan is converted": (
        lambda f: ["demos", "--env_id", "PickCube-v1", "--control_mode", "pd_joint_pos"],
        ["control_mode", "pd_ee_delta_pose", "'pd_joint_pos'", "did you mean pd_joint_delta_pos?"],
    ),
    "discrete actions": (
        lambda f: _stage2(f, "--env_id", "CartPole-v1", "--reward_mode", "dense"),
        ["Box", "CartPole-v1", "Discrete"],
    ),
    "sparse without success": (
        lambda f: _stage2(f, "--env_id", "Pendulum-v1"),
        ["reward_mode", "dense", "sparse"],
    ),
    # Flags, keys, values.
    "unknown flag": (lambda f: _stage2(f, "--utd_ration", 3), ["--utd_ration", "did you mean --utd_ratio?"]),
    "unknown flag, quickstart": (lambda f: ["quickstart", "--bugdet", 1], ["--bugdet", "did you mean --budget?"]),
    "unknown key": (
        lambda f: ["pretrain", "--config", f.written("mine.yaml", b"totl_iters: 3\n")],
        ["mine.yaml", "'totl_iters'", "did you mean total_iters?"],
    ),
    "a word for a number": (lambda f: _stage2(f, "--batch_size", "many"), ["--batch_size", "many"]),
    "act_horizon beyond pred_horizon": (
        lambda f: _pretrain(f, "--pred_horizon", 8, "--act_horizon", 9),
        ["act_horizon", "8", "9"],
    ),
    "act_horizon beyond what frames leave": (
        lambda f: _pretrain(f, "--obs_horizon", 2, "--act_horizon", 8),
        ["act_horizon", "7", "8"],
    ),
    "a chunk that the U-Net cannot halve": (
        lambda f: _pretrain(f, "--velocity_net", "unet", "--velocity_widths", 8, 16, 32, "--pred_horizon", 10),
        ["pred_horizon", "4", "10"],
    ),
    "U-Net widths that cannot be normalised": (
        lambda f: _pretrain(f, "--velocity_net", "unet", "--velocity_widths", 12, 24),
        ["velocity_widths", "8", "12"],
    ),
    "a warm-up as long as the run": (
        lambda f: _stage2(f, "--total_timesteps", 100, "--warmup_steps", 100),
        ["warmup_steps", "100"],
    ),
    "a temperature that cannot be learned": (lambda f: _stage2(f, "--init_temperature", 0), ["init_temperature"]),
    "no such device": (lambda f: _stage2(f, "--device", "abacus"), ["device", "abacus"]),
    # What exists already.
    "existing run folder, pretrain": (lambda f: _pretrain(f, "--out", "taken"), ["out", "taken exists"]),
    "existing run folder, stage 1": (lambda f: _stage1(f, "--out", "taken", "--eval_freq", 0), ["taken exists"]),
    "existing run folder, stage 2": (lambda f: _stage2(f, "--out", "taken"), ["out", "taken exists"]),
    "existing run folder, eval": (
        lambda f: _eval(f, "--out", "taken"),
        ["out", "taken exists"],
    ),
    "existing run folder, quickstart": (lambda f: ["quickstart", "--out", "taken"], ["out", "taken exists"]),
    "existing demonstrations": (lambda f: ["demos", "--out", "taken.h5"], ["out", "taken.h5 exists"]),
    "a file where a folder belongs": (lambda f: _stage2(f, "--out", "taken.h5/run"), ["out", "taken.h5"]),
}


def _narrow_demos(files: Files) -> Path:
    """Demonstrations of another task: 5 state dimensions."""
    path = files.edited_demos("traj_0/obs", None)
    with h5py.File(files.demos) as source, h5py.File(path, "r+") as handle:
        for name in source:
            if f"{name}/obs" in handle:
                del handle[f"{name}/obs"]
            handle[f"{name}/obs"] = source[f"{name}/obs"][:, :5]
    return path


NEEDS_MANISKILL = "a control mode to which no plan is converted"


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2_and_touches_nothing(run_command, files, case, request):
    if case == NEEDS_MANISKILL:
        request.getfixturevalue("maniskill")
    make, words = BAD_INPUT[case]
    argv = make(files)
    before = snapshot(files.here)
    done = run_command(argv)
    assert done.status == 2
    assert len(done.error_lines) == 1, done.err
    assert done.err.startswith(f"dsrl {argv[0]}: error: ")
    for word in words:
        assert word in done.err
    assert snapshot(files.here) == before


def test_demonstrations_never_replace_a_json_of_the_same_name(run_command, files):
    (files.here / "mine.json").write_text("precious")
    before = snapshot(files.here)
    done = run_command(["demos", "--env_id", TASK, "--out", "mine.h5", "--episodes", 1, "--demo_steps", 2])
    assert done.status == 2 and "mine.json" in done.error_lines[-1]
    assert snapshot(files.here) == before


def test_demonstrations_where_no_folder_can_be_are_refused(run_command, files):
    done = run_command(
        ["demos", "--env_id", TASK, "--out", "taken.h5/mine.h5", "--episodes", 1, "--demo_steps", 2]
    )
    assert done.status == 2 and "out" in done.error_lines[-1]


def test_a_real_file_without_states_is_refused(run_command, files, shared_dir):
    path = shared_dir / "demos/LiftPegUpright-v1/trajectory.none.pd_joint_pos.physx_cpu.h5"
    done = run_command(["pretrain", "--env_id", "LiftPegUpright-v1", "--demo_path", path])
    assert done.status == 2 and len(done.error_lines) == 1
    assert "obs_mode" in done.err and path.name in done.err
    path = path.with_name("trajectory.state.pd_ee_delta_pose.physx_cpu.h5")
    done = run_command(_stage1(files, "--demo_path", path))
    assert done.status == 2 and TASK in done.err and "LiftPegUpright-v1" in done.err


def _script(name: str, argv: list[object], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script of ``train/`` run as the seed document does: from its folder, by its file name."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.run(
        [sys.executable, name, *map(str, argv)],
        cwd=TRAIN, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_the_seeds_stage1_command_runs_from_its_folder(tmp_path, tiny_demos, tiny_base):
    before = sorted(TRAIN.iterdir())
    out = tmp_path / "run"
    argv = [
        "--env_id", TASK, "--demo_path", tiny_demos, "--awsc_checkpoint", tiny_base,
        "--total_iters", 2, "--batch_size", 4, "--track",  # the seed's; a machine without a login logs offline
        "--eval_freq", 0, "--num_candidates", 4, "--verify_states", 4, "--verify_samples", 2, "--out", out,
    ]  # fmt: skip
    done = _script("train_stage1_offline.py", argv, tmp_path, WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    assert (out / "checkpoints" / "last.pt").is_file()
    assert len(list((out / "wandb").glob("offline-run-*"))) == 1
    assert json.loads((out / "summary.json").read_text())["gradient_steps"] == 2
    assert "stage1: 2/2 gradient steps" in done.stderr
    assert sorted(TRAIN.iterdir()) == before  # nothing is written into the package


def test_the_seeds_stage2_command_runs_from_its_folder(tmp_path, tiny_base, tiny_stage1):
    out = tmp_path / "run"
    argv = [
        "--env_id", TASK, "--awsc_checkpoint", tiny_base,
        "--stage1_checkpoint", tiny_stage1 / "checkpoints" / "last.pt",
        "--total_timesteps", 64, "--utd_ratio", 2, "--batch_size", 4, "--warmup_steps", 16,
        "--eval_freq", 0, "--num_envs", 1, "--log_freq", 4, *TINY_WIDTHS, "--out", out,
    ]  # fmt: skip
    done = _script("train_stage2_online.py", argv, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (out / "checkpoints" / "last.pt").is_file()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["env_steps"] == 64 and summary["gradient_steps"] > 0
    assert "Traceback" not in done.stderr


def test_a_script_says_what_is_wrong_as_the_command_does(tmp_path):
    done = _script("train_stage2_online.py", ["--env_id", "lever-pull-v3", "--awsc_checkpoint", "no.pt"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "dsrl stage2: error: awsc_checkpoint: expected a base_policy checkpoint, no.pt does not exist"
    ]
