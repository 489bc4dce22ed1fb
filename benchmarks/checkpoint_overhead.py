"""What saving a Stage 2 run costs with a full replay buffer, at its default settings.

    python benchmarks/checkpoint_overhead.py [--minutes 3]

Takes the sizes of the default task, pick-place-v3 with one frame (39 features) and chunks of 8 rows and 4 actions
(32 latents), fills the buffer of 100,000 macro-transitions, and times: a save of what comes between two saves at
the default ``save_freq``, a first save of the whole buffer, and loading that. Then a real run of the default
settings, with its updates, for ``--minutes``, tells how long those env steps take.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent
from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.commands import demos as generate_demos
from dsrl_offpolicy.configs.jobs import DemosConfig, Stage0Config
from dsrl_offpolicy.contracts import MacroTransitions
from dsrl_offpolicy.files.metrics import NAME, read_metrics
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.train import pretrain_stage0
from dsrl_offpolicy.train.saves import Saves

CONFIG = Stage2Config()
FEATURES, ROWS, ACTIONS = 39, 8, 4
BETWEEN_SAVES = CONFIG.save_freq // ROWS
"""Macro-transitions, as every one is of at most 8 env steps."""
REPEATS = 5


def add(buffer: MacroReplayBuffer, count: int) -> None:
    """Random transitions."""
    no = torch.zeros(count, dtype=torch.bool)
    buffer.add(MacroTransitions(
        obs_features=torch.randn(count, FEATURES), latent=torch.randn(count, ROWS * ACTIONS),
        reward=torch.randn(count), next_obs_features=torch.randn(count, FEATURES), terminated=no, truncated=no,
        n_steps=torch.full((count,), ROWS, dtype=torch.int32),
    ), gamma=CONFIG.gamma)  # fmt: skip


def make_buffer() -> MacroReplayBuffer:
    """Empty, of the default capacity."""
    return MacroReplayBuffer(
        CONFIG.replay_buffer_size, FEATURES, ROWS * ACTIONS, generator=torch.Generator().manual_seed(0)
    )


def make_agent() -> DSRLSACAgent:
    """The default learner."""
    layout = LatentLayout(CONFIG.steer_mode, ROWS, ACTIONS, slice(0, ROWS), CONFIG.action_magnitude)
    return DSRLSACAgent(CONFIG, FEATURES, layout, generator=torch.Generator().manual_seed(1))


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def time_saves(folder: Path) -> tuple[float, float, float]:
    """Seconds of a save between two others, of a first save of everything, and of loading it."""
    buffer, agent = make_buffer(), make_agent()
    for _ in range(CONFIG.replay_buffer_size // 10_000):
        add(buffer, 10_000)
    agent.update(buffer.sample(CONFIG.batch_size))
    checkpoints, replay = Saves(folder / "checkpoints", "stage2"), ReplayFiles(folder / "replay")

    def save() -> None:
        checkpoints.save({"training": agent.training_state(), "replay": replay.save(buffer)})
        replay.discard_older()

    whole, between, loads = seconds(save), [], []
    for _ in range(REPEATS):
        add(buffer, BETWEEN_SAVES)
        between.append(seconds(save))
    for _ in range(REPEATS):
        empty, other = make_buffer(), make_agent()

        def load(empty: MacroReplayBuffer = empty, other: DSRLSACAgent = other) -> None:
            content = checkpoints.load(lambda content: replay.check(content["replay"]))
            other.load_training_state(content["training"])
            ReplayFiles(folder / "replay").load(empty, content["replay"])

        loads.append(seconds(load))
        assert torch.equal(empty.reward, buffer.reward) and len(empty) == CONFIG.replay_buffer_size
    return statistics.median(between), whole, statistics.median(loads)


def env_steps_per_second(folder: Path, minutes: float) -> float:
    """Of a real run of the default settings, once its updates have begun (evaluations left out)."""
    demos = generate_demos.run(DemosConfig(out=folder / "demos.h5", episodes=3))
    base = pretrain_stage0.run(Stage0Config(demo_path=demos, out=folder / "stage0", total_iters=10))
    flags = ["--awsc_checkpoint", str(base / "checkpoints" / "last.pt"), "--out", str(folder / "run")]
    command = [sys.executable, "-m", "dsrl_offpolicy.cli", "stage2", "--eval_freq", "0", *flags]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    rows: list[dict[str, Any]] = []
    while not rows or rows[-1]["minutes"] - rows[0]["minutes"] < minutes:
        time.sleep(1)
        if process.poll() is not None:
            raise SystemExit("the run ended by itself")
        if (folder / "run" / NAME).exists():
            rows = read_metrics(folder / "run")
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()
    first, last = rows[0], rows[-1]
    return float((last["env_steps"] - first["env_steps"]) / (60 * (last["minutes"] - first["minutes"])))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        between, whole, load = time_saves(Path(scratch) / "saves")
        rate = env_steps_per_second(Path(scratch), options.minutes)
    period = CONFIG.save_freq / rate
    print(f"save of {BETWEEN_SAVES} new transitions and the learner: {between:.3f} s (median of {REPEATS})")
    print(f"first save of {CONFIG.replay_buffer_size} transitions:     {whole:.3f} s")
    print(f"load of {CONFIG.replay_buffer_size} transitions:           {load:.3f} s (median of {REPEATS})")
    print(f"run: {rate:.1f} env steps/s, so {period:.0f} s between saves (save_freq {CONFIG.save_freq} env steps)")
    print(f"overhead: {100 * between / period:.3f} % of the run's time; were each save a whole one, "
          f"{100 * whole / period:.3f} %")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
