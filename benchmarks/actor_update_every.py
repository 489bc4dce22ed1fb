"""How often the actor should be updated: learning per env step and per second of gradient steps, over seeds.

    python benchmarks/actor_update_every.py --seeds 1 2 3 --every 1 2 4 --runs runs

Every seed's quickstart is run once; its Stage 2 is run again with every other ``--every``, from the same base
policy and Stage 1. Runs that stand in ``--runs`` are read. Then ``dsrl compare`` of them all, and what a gradient
step of Stage 2 costs with each, interleaved in this process (one thread, medians).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from dsrl_offpolicy.analysis.run_folder import read_runs

STEPS, TURNS = 200, 15
"""Gradient steps per turn, and turns of each."""


def dsrl(*arguments: object) -> None:
    """One command; ends the program where it fails."""
    words = [str(a) for a in arguments]
    print("$ dsrl", *words, flush=True)
    subprocess.run([sys.executable, "-m", "dsrl_offpolicy.cli", *words], check=True)


def make_runs(root: Path, seeds: list[int], every: list[int]) -> list[Path]:
    """The run folders of Stage 2, made where they are missing."""
    folders = []
    for seed in seeds:
        quickstart = root / f"q{seed}"
        if not quickstart.exists():
            dsrl("quickstart", "--seed", seed, "--out", quickstart)
        (run,) = read_runs(quickstart / "stage2")
        for count in every:
            folder = root / f"q{seed}-k{count}" if count != run.settings["actor_update_every"] else quickstart
            if not folder.exists():
                flags = ["--config", quickstart / "stage2" / "config.yaml", "--actor_update_every", count]
                dsrl("stage2", *flags, "--out", folder)
            folders.append(folder)
    return folders


def step_times(run: Path, every: list[int]) -> dict[int, float]:
    """Milliseconds per gradient step, sampling included, of a run's learner with each ``every``."""
    from dsrl_offpolicy.buffers.replay_files import ReplayFiles
    from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
    from dsrl_offpolicy.files.checkpoint import load_checkpoint
    from dsrl_offpolicy.train.train_stage2_online import Stage2

    config = read_runs(run)[0].config
    assert isinstance(config, Stage2LoopConfig)
    stage2 = Stage2(replace(config, torch_threads=1))
    state = load_checkpoint(run / "checkpoints" / "last.pt", "stage2", "run")
    ReplayFiles(run / "replay").load(stage2.buffer, state["replay"])
    update = stage2.agent.compiled(config.batch_size) or stage2.agent.update

    def turn(count: int) -> float:
        start = time.perf_counter()
        for step in range(STEPS):
            update(stage2.buffer.sample(config.batch_size), update_actor=step % count == 0)
        return 1000 * (time.perf_counter() - start) / STEPS

    for count in every:
        turn(count)
    times: dict[int, list[float]] = {count: [] for count in every}
    for _ in range(TURNS):
        for count, found in times.items():
            found.append(turn(count))
    return {count: statistics.median(found) for count, found in times.items()}


def main() -> int:
    """Run what is missing, compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    folders = make_runs(arguments.runs, arguments.seeds, arguments.every)
    dsrl("compare", *folders)
    times = step_times(arguments.runs / f"q{arguments.seeds[0]}" / "stage2", arguments.every)
    for count, milliseconds in times.items():
        print(f"actor_update_every {count}: {milliseconds:.2f} ms per gradient step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
