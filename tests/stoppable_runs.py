"""Runs small enough to be stopped in a test, in processes of their own, and what of them is compared."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import warm_start

from dsrl_offpolicy.commands import demos as generate_demos
from dsrl_offpolicy.commands import quickstart
from dsrl_offpolicy.configs.jobs import DemosConfig, Stage0Config
from dsrl_offpolicy.files.checkpoint import load_checkpoint
from dsrl_offpolicy.train import pretrain_stage0

TASK = "reach-v3"
# 24 warm-up transitions, then 176 that earn 2 gradient steps each. Episodes have 5 macro-steps.
FLAGS = (
    f"--env_id {TASK} --total_timesteps 1600 --warmup_steps 192 --utd_ratio 2 --batch_size 8 --log_freq 10 "
    "--eval_freq 800 --eval_episodes 2 --num_envs 2 --train_episode_steps 36 --max_episode_steps 36 "
    "--actor_hidden_dims 16 --critic_hidden_dims 16 --save_freq 100 --anneal_from 0.5 --actor_update_every 2"
)
WALL_CLOCK = ("minutes", "env_steps_per_s", "gradient_steps_per_s")


def make_base(folder: Path) -> Path:
    """A hardly trained base policy."""
    demos = generate_demos.run(DemosConfig(env_id=TASK, out=folder / "demos.h5", episodes=3, demo_steps=40))
    stage0 = pretrain_stage0.run(
        Stage0Config(
            env_id=TASK, demo_path=demos, out=folder / "stage0", total_iters=10, batch_size=16,
            denoising_steps=2, velocity_widths=(16,), critic_hidden_dims=(16,), embed_dim=8,
        )
    )  # fmt: skip
    return stage0 / "checkpoints" / "last.pt"


def shorten_quickstart(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let a quickstart of a hundredth have as few and, after training, as short episodes as there can be: the
    simulator is what takes the time. Returns the least of its budget that now holds."""
    least = {**quickstart.MINIMUM, "episodes": 2, "eval_episodes": 1, "eval_freq": 400}
    monkeypatch.setattr(quickstart, "MINIMUM", least)
    settings = quickstart._training

    def short(job: Any, shipped: str, section: str, *args: Any, **values: Any) -> Any:
        if section in ("stage2", "eval"):
            values["max_episode_steps"] = 24
        return settings(job, shipped, section, *args, **values)

    monkeypatch.setattr(quickstart, "_training", short)
    return least


def start(arguments: str) -> warm_start.Job:
    return warm_start.start("dsrl_offpolicy.cli:run", ["stage2", *arguments.split()])


def finish(process: warm_start.Job) -> tuple[int, str]:
    _, said = process.communicate(timeout=240)
    return process.returncode, said


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in WALL_CLOCK} for line in lines]


def wait_for_rows(process: warm_start.Job, folder: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    file = folder / "metrics.jsonl"
    while not file.exists() or file.read_text().count("\n") < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def content(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / "last.pt", "stage2", "test")


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert one == other, where
