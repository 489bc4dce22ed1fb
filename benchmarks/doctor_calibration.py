"""Does `dsrl doctor` name the fault of runs that were broken on purpose, and is it silent on healthy ones?

    python benchmarks/doctor_calibration.py --out runs/calibration [--seeds 3]

Demonstrations and Stage 0 are made once; then every case below runs once per seed: a real run on pick-place-v3
with networks of two layers of 64. Runs that are there already are not made again. The table counts the seeds in
which a check fails at the end, and those in which the live warnings told of it on the way (the monitor is given
the rows of the run one by one).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

TASK = ["--env_id", "pick-place-v3"]
NARROW = ["--actor_hidden_dims", "64", "64", "--critic_hidden_dims", "64", "64"]
STAGE1 = [
    *TASK, *NARROW, "--total_iters", "200", "--batch_size", "64", "--lr", "1e-3", "--log_freq", "10",
    "--eval_freq", "0", "--distill_q", "--critic_lr", "1e-3",
]  # fmt: skip
# A tenth of the gradient steps of a real run, so the temperature learns ten times as fast.
STAGE2 = [
    *TASK, *NARROW, "--total_timesteps", "6000", "--warmup_steps", "1200", "--train_episode_steps", "200",
    "--utd_ratio", "5", "--batch_size", "128", "--log_freq", "100", "--eval_freq", "0", "--compile", "off",
    "--temp_lr", "1e-3",
]  # fmt: skip
KL = [*STAGE2, "--regularizer", "kl", "--init_temperature", "1", "--reward_scale", "1", "--init_critic"]
ENTROPY = [*STAGE2, "--regularizer", "entropy", "--backup_entropy", "--reward_scale", "1"]
EVALUATED = ["--eval_freq", "6000", "--eval_episodes", "40", "--eval_end_on_success"]
CASES = {
    "Stage 1": ("stage1", STAGE1),
    "Stage 1, lr 1e-12": ("stage1", [*STAGE1, "--lr", "1e-12"]),
    "Stage 1, beta_latent / 1000": ("stage1", [*STAGE1, "--beta_latent", "1e-3"]),
    "kl": ("stage2", KL),
    "entropy": ("stage2", ENTROPY),
    "entropy, dense rewards": ("stage2", [*ENTROPY, "--reward_mode", "dense"]),
    "kl, critic_lr x 100": ("stage2", [*KL, "--critic_lr", "0.03"]),
    "entropy, critic_lr x 100": ("stage2", [*ENTROPY, "--critic_lr", "0.03"]),
    "entropy, target_entropy 500": ("stage2", [*ENTROPY, "--target_entropy", "500"]),
    "entropy, target_entropy -500": ("stage2", [*ENTROPY, "--target_entropy", "-500"]),
    "kl, target_kl 1000": ("stage2", [*KL, "--target_kl", "1000"]),
    "kl, target_kl 0": ("stage2", [*KL, "--target_kl", "0"]),
    "kl, replay_buffer_size 64": ("stage2", [*KL, "--replay_buffer_size", "64"]),
    "kl, warmup_steps 64": ("stage2", [*KL, "--warmup_steps", "64"]),
    "kl, actor_lr 1e-12": ("stage2", [*KL, "--actor_lr", "1e-12"]),
    "entropy, actor_lr 1e-12": ("stage2", [*ENTROPY, "--actor_lr", "1e-12"]),
    "entropy, no LayerNorm": ("stage2", [*ENTROPY, "--no-critic_layer_norm"]),
    "entropy, no LayerNorm, critic_lr x 100": (
        "stage2",
        [*ENTROPY, "--no-critic_layer_norm", "--critic_lr", "0.03"],
    ),
    "kl, with evaluations": ("stage2", [*KL, *EVALUATED]),
    "kl, with evaluations, critic_lr x 100": ("stage2", [*KL, *EVALUATED, "--critic_lr", "0.03"]),
}


def dsrl(*arguments: object) -> str:
    """Run a command of ours in a process of its own. Returns what it said."""
    command = [sys.executable, "-m", "dsrl_offpolicy.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stderr


def train(folder: Path, *arguments: object) -> Path:
    """One run, unless it is there already; what it said is kept beside it."""
    if not (folder / "summary.json").exists():
        said = dsrl(*arguments, "--out", folder)
        folder.with_suffix(".log").write_text(said)
        print(f"made {folder}", file=sys.stderr, flush=True)
    return folder


def failures(folder: Path) -> tuple[set[str], set[str]]:
    """Checks that fail at a run's end, and checks that the live monitor told of."""
    from dsrl_offpolicy.analysis.live import HealthMonitor
    from dsrl_offpolicy.analysis.run_folder import read_runs
    from dsrl_offpolicy.analysis.run_health import check_run

    (run,) = read_runs(folder)
    end = {verdict.name for verdict in check_run(run.config, run.rows, run.summary) if verdict.ok is False}
    monitor = HealthMonitor(run.config)
    with contextlib.redirect_stderr(io.StringIO()):
        live = {verdict.name for row in run.rows for verdict in monitor.observe(row)}
    return end, live


def print_table(out: Path, seeds: range) -> None:
    """A line per case: how many seeds, and in how many of them each check fails."""
    print("| case | seeds | fails at the end (seeds) | told live (seeds) |\n|---|---|---|---|")
    for number, case in enumerate(CASES):
        found = [failures(case_folder(out, number, seed)) for seed in seeds]
        cells = []
        for which in (0, 1):
            counts = Counter(name for checks in found for name in checks[which])
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            cells.append(", ".join(f"{name} ({count})" for name, count in ranked) or "none")
        print(f"| {case} | {len(seeds)} | {' | '.join(cells)} |")


def case_folder(out: Path, number: int, seed: int) -> Path:
    """Where a case's run is."""
    return out / f"case{number:02d}-seed{seed}"


def main() -> int:
    """Make the runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    demos = out / "demos.h5"
    if not demos.exists():
        dsrl("demos", *TASK, "--out", demos)
    stage0 = train(out / "stage0", "pretrain", *TASK, "--demo_path", demos, "--critic_hidden_dims", 128, 128)
    base = ["--awsc_checkpoint", stage0 / "checkpoints" / "last.pt"]
    seeds = range(1, arguments.seeds + 1)
    for seed in seeds:
        for number, (stage, flags) in enumerate(CASES.values()):
            files = [*base, "--demo_path", demos] if stage == "stage1" else [*base]
            if "--init_critic" in flags:
                files += ["--stage1_checkpoint", case_folder(out, 0, seed) / "checkpoints" / "last.pt"]
                files += ["--offline_fraction", "0", "--warmup_policy", "prior"]
            train(case_folder(out, number, seed), stage, *flags, *files, "--seed", seed)
    print_table(out, seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
