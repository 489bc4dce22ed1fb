"""A Stage 2 run that is killed (SIGKILL) at 20 random moments and resumed each time, against one that was not.

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0]

Most kills fall while the run trains, every fourth while it starts or resumes. After each, a whole checkpoint must
be there, and what it misses must be at most what came since the last save. At the end metrics and weights must be,
to the bit, those of the run that was left alone. Prints a row per kill; exits with 1 where anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.commands import demos as generate_demos
from dsrl_offpolicy.configs.jobs import DemosConfig, Stage0Config
from dsrl_offpolicy.files.checkpoint import read_tensors
from dsrl_offpolicy.files.metrics import NAME, read_metrics
from dsrl_offpolicy.train import pretrain_stage0
from dsrl_offpolicy.train.saves import Saves

TASK = "reach-v3"
PER_KILL, SAVE_FREQ, VECTOR_STEP = 400, 200, 2 * 8
"""Env steps: of the run for every kill, between saves, and of one step of all environments (2 of 8 env steps)."""
FLAGS = (
    f"--env_id {TASK} --warmup_steps 192 --utd_ratio 2 --batch_size 8 --log_freq 4 "
    "--eval_freq 1600 --eval_episodes 2 --num_envs 2 --train_episode_steps 36 --max_episode_steps 36 "
    f"--actor_hidden_dims 16 --critic_hidden_dims 16 --save_freq {SAVE_FREQ} --anneal_from 0.5"
)
WALL_CLOCK = ("minutes", "env_steps_per_s", "gradient_steps_per_s")
COMPARED = ("policy", "training", "counters", "recent", "random")


@dataclass
class Kill:
    """What a kill left: env steps that the metrics had seen, and those of the checkpoint that is loaded."""

    moment: str
    seconds: float
    at: int
    saved: int
    file: str

    @property
    def lost(self) -> int:
        """Env steps that are done again."""
        return self.at - self.saved


def make_base(folder: Path) -> Path:
    """A hardly trained base policy."""
    demos = generate_demos.run(DemosConfig(env_id=TASK, out=folder / "demos.h5", episodes=3, demo_steps=40))
    stage0 = Stage0Config(
        env_id=TASK, demo_path=demos, out=folder / "stage0", total_iters=10, batch_size=16, denoising_steps=2,
        velocity_widths=(16,), critic_hidden_dims=(16,), embed_dim=8,
    )  # fmt: skip
    return pretrain_stage0.run(stage0) / "checkpoints" / "last.pt"


def start(arguments: str) -> subprocess.Popen[str]:
    """``dsrl stage2`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dsrl_offpolicy.cli", "stage2", *arguments.split()],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    """Whole rows of the metrics, without the clock's."""
    found = read_metrics(folder) if (folder / NAME).exists() else []
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in found]


def env_steps(folder: Path) -> int:
    """Of the newest row."""
    return max((row["env_steps"] for row in rows(folder)), default=0)


def kill(process: subprocess.Popen[str], folder: Path, begin: float, number: int, rng: random.Random) -> Kill:
    """Wait for a random moment, end every process of the run, and look at what is left."""
    if number % 4 == 3:
        moment, wait = "starting", rng.uniform(0.5, 8)
    else:
        moment, wait = "training", rng.uniform(0, 0.2)
        mark = env_steps(folder) + rng.randint(SAVE_FREQ, SAVE_FREQ + PER_KILL // 4)
        while env_steps(folder) < mark and process.poll() is None:
            time.sleep(0.005)
    time.sleep(wait)
    if process.poll() is not None:
        raise SystemExit(f"the run ended by itself before kill {number + 1}: {process.communicate()[1]}")
    seconds = time.monotonic() - begin
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    saved, file = whole_checkpoint(folder)
    return Kill(moment, seconds, env_steps(folder), saved, file)


def whole_checkpoint(folder: Path) -> tuple[int, str]:
    """Env steps of the checkpoint that a resume takes, its replay files checked, and which file it is; raises
    InputError where none is whole."""
    said = io.StringIO()
    checkpoints, replay = Saves(folder / "checkpoints", "stage2"), ReplayFiles(folder / "replay")
    with contextlib.redirect_stderr(said):
        content = checkpoints.load(lambda content: replay.check(content["replay"]))
    file = "previous.pt" if "previous.pt" in said.getvalue() else "last.pt"
    return content["counters"]["env_steps"], file


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, tensors within dictionaries and lists included."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run's own end."""
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}: {said}")


def main() -> int:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        base, alone, folder = make_base(Path(scratch)), Path(scratch) / "alone", Path(scratch) / "killed"
        settings = f"{FLAGS} --total_timesteps {PER_KILL * options.kills} --awsc_checkpoint {base}"
        finish(start(f"{settings} --out {alone}"))
        kills: list[Kill] = []
        command = f"{settings} --out {folder}"
        print("kill  while     s after start  env steps  in the checkpoint  lost  from")
        for number in range(options.kills):
            begin = time.monotonic()
            found = kill(start(command), folder, begin, number, rng)
            command = f"--resume {folder}"
            kills.append(found)
            print(
                f"{number + 1:>4}  {found.moment:<8}  {found.seconds:13.1f}  {found.at:9}  {found.saved:17}  "
                f"{found.lost:4}  {found.file}",
                flush=True,
            )
        finish(start(command))
        bound = SAVE_FREQ + 2 * VECTOR_STEP
        one, other = (read_tensors(f / "checkpoints" / "last.pt", "run", "last") for f in (alone, folder))
        verdicts = {
            f"at most {bound} env steps lost ({max(k.lost for k in kills)})": all(k.lost <= bound for k in kills),
            f"{len(rows(alone))} rows of metrics equal": rows(alone) == rows(folder),
            **{f"{name} equal to the bit": same(one[name], other[name]) for name in COMPARED},
        }
    for verdict, holds in verdicts.items():
        print(f"{'yes' if holds else 'NO':<4}{verdict}")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
