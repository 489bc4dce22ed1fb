"""LiftPegUpright-v1 on the CPU, whole chain on several seeds: demonstrations, Stages 0, 1, 2, final table, plot.

    python benchmarks/lift_peg.py --seeds 1 2 3 --runs runs --out docs/results            # states
    python benchmarks/lift_peg.py --obs rgb --seeds 1 --runs runs --out docs/results       # images 128 x 128
    python benchmarks/lift_peg.py --obs rgb-wrist --seeds 1 --runs runs --out docs/results # a wrist camera too

Each step is one `dsrl` command, printed before it runs; a step that stands whole in ``--runs`` is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dsrl_offpolicy.analysis.curves import plot_success
from dsrl_offpolicy.analysis.run_folder import read_runs
from dsrl_offpolicy.analysis.verdict import Row
from dsrl_offpolicy.evaluation.intervals import Interval, wilson_interval

TASK = "LiftPegUpright-v1"
WIDTHS = "--actor_hidden_dims 128 128 128 --critic_hidden_dims 128 128 128"
WRIST = f"--env_id {TASK} --robot_uids panda_wristcam"
"""A robot with a camera at its wrist; it starts a quarter turn away, so its episodes take 66 env steps, not 39."""
DEMOS = (
    "--demonstrator scripted --noise_correlation 0.5 --wrong_goal_offset 0 0.015 0 --wrong_goal_mirror "
    "--action_noise 0.12 --wrong_goal_prob 0.4"
)
RECORDED = {
    "state": f"--env_id {TASK} --obs_mode state --demo_steps 80 --episodes 100",
    "rgb": f"--env_id {TASK} --obs_mode rgb --demo_steps 80 --episodes 120",
    "rgb-wrist": f"{WRIST} --obs_mode rgb --demo_steps 110 --episodes 120",
}
EPISODE = {
    "state": f"--env_id {TASK} --max_episode_steps 100 --eval_end_on_success",
    "rgb": f"--env_id {TASK} --max_episode_steps 100 --eval_end_on_success",
    "rgb-wrist": f"{WRIST} --max_episode_steps 130 --eval_end_on_success",
}
STAGE0 = "--total_iters 5000 --advantage_temperature 5 --critic_hidden_dims 128 128"
ENCODER = {"state": "", "rgb": "--encoder_iters 2000", "rgb-wrist": "--encoder_iters 3000"}
STAGE1 = (
    f"{WIDTHS} --total_iters 400 --candidate_pool 0 --batch_size 64 --lr 1e-3 --distill_q "
    "--critic_lr 1e-3 --log_freq 200 --eval_freq 0"
)
STAGE2 = (
    f"{WIDTHS} --warmup_steps 3000 --utd_ratio 10 --batch_size 128 "
    "--actor_update_every 2 --regularizer kl --kl_to prior --target_kl 25 --init_temperature 1.0 "
    "--reward_scale 1 --actor_lr 1e-4 --anneal_from 0.5 --log_freq 2000"
)
FROM_STAGE1 = {
    "state": "--init_critic --offline_fraction 0 --stage1_checkpoint {stage1}",
    "rgb": "",
    "rgb-wrist": "",
}
"""Stage 2 on images starts from the prior: Stage 1 had left nothing of the base's success there."""
LENGTH = {
    "state": "--total_timesteps 40000 --eval_freq 5000 --eval_episodes 100",
    "rgb": "--total_timesteps 40000 --eval_freq 5000 --eval_episodes 50",
    "rgb-wrist": "--total_timesteps 30000 --eval_freq 5000 --eval_episodes 50 --target_kl 5 --num_critics 4",
}
EVALUATION = {
    "state": "--episodes 100 --constants 8 --screening_episodes 10",
    "rgb": "--episodes 100 --constants 0",
    "rgb-wrist": "--episodes 100 --constants 0",
}
ROWS = {
    "base (prior noise)": "base policy (prior noise)",
    "w = 0": "control: w = 0",
    "best of 8 constants": "control: best of 8 constant noise vectors",
    "stage1 deterministic": "Stage 1, deterministic",
    "stage1 stochastic": "Stage 1, stochastic",
    "stage2 deterministic": "**Stage 2, deterministic**",
    "stage2 stochastic": "Stage 2, stochastic",
}


def dsrl(command: str) -> None:
    """Run one command; ends the program where it fails."""
    print(f"$ dsrl {command}", flush=True)
    subprocess.run([sys.executable, "-m", "dsrl_offpolicy.cli", *shlex.split(command)], check=True)


def chain(folder: Path, seed: int, obs: str, num_envs: int) -> None:
    """Everything of one seed, into one folder; ``minutes.json`` keeps the wall-clock of each step."""
    minutes_file = folder / "minutes.json"
    minutes: dict[str, float] = json.loads(minutes_file.read_text()) if minutes_file.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    base = f"--awsc_checkpoint {folder}/stage0/checkpoints/last.pt"
    stage1 = f"{folder}/stage1/checkpoints/last.pt"
    start = FROM_STAGE1[obs].format(stage1=stage1)
    common = f"{EPISODE[obs]} --seed {seed} --num_envs {num_envs}"
    demos = f"--demo_path {folder}/demos.h5"
    steps = {
        "demos.h5": f"demos {RECORDED[obs]} {DEMOS} --seed {seed}",
        "stage0": f"pretrain {STAGE0} {ENCODER[obs]} {common} {demos}",
        "stage1": f"stage1 {STAGE1} {common} {demos} {base}",
        "stage2": f"stage2 {STAGE2} {LENGTH[obs]} {common} {base} {start}",
        "evaluation": f"eval {EVALUATION[obs]} {common} {base} --stage1_checkpoint {stage1} "
        f"--stage2_checkpoint {folder}/stage2/checkpoints/last.pt",
    }
    for name, command in steps.items():
        whole = folder / name / "summary.json" if not name.endswith(".h5") else folder / "demos.json"
        if not whole.exists():
            began = time.monotonic()
            dsrl(f"{command} --out {folder / name}")
            minutes[name] = round((time.monotonic() - began) / 60, 2)
            minutes_file.write_text(json.dumps(minutes))


def percent(value: float, low: float, high: float) -> str:
    """A rate with its interval, in per cent."""
    return f"{100 * value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def curve(folder: Path) -> list[Row]:
    """The evaluations during Stage 2."""
    return read_runs(folder / "stage2")[0].evaluations


def training_curve(folder: Path) -> list[Row]:
    """Success of the last 50 training episodes, where noise is drawn and not its mean taken."""
    rows: list[Row] = []
    for row in read_runs(folder / "stage2")[0].of("train"):
        if "train_success" in row:
            rate = wilson_interval(round(50 * row["train_success"]), 50)
            rows.append({"env_steps": row["env_steps"], **rate.named("success_once")})
    return rows


def report(folders: dict[int, Path]) -> str:
    """The tables."""
    finals = {
        seed: {row["policy"]: row for row in json.loads((f / "evaluation" / "evaluation.json").read_text())}
        for seed, f in folders.items()
    }
    lines = ["| | " + " | ".join(f"seed {s}" for s in folders) + " |", "|---" * (len(folders) + 1) + "|"]
    for name, title in ROWS.items():
        if all(name in rows for rows in finals.values()):
            found = [rows[name] for rows in finals.values()]
            cells = [percent(r["success_once"], r["success_once_low"], r["success_once_high"]) for r in found]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    curves = {seed: curve(folder) for seed, folder in folders.items()}
    for number, row in enumerate(next(iter(curves.values()))):
        cells = [
            percent(r["success_once"], r["success_once_low"], r["success_once_high"])
            for r in (rows[number] for rows in curves.values())
        ]
        lines.append(
            f"| during Stage 2, after {round(row['env_steps'], -3)} env steps | " + " | ".join(cells) + " |"
        )
    minutes = {seed: json.loads((f / "minutes.json").read_text()) for seed, f in folders.items()}
    for name in next(iter(minutes.values())):
        cells = [f"{found[name]:.1f}" for found in minutes.values()]
        lines.append(f"| minutes: {name.removesuffix('.h5')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(folders: dict[int, Path], path: Path, title: str, *, training: bool) -> None:
    """The plot, with base and w = 0 of all seeds as levels; ``training`` adds the success of training episodes."""
    found: dict[str, list[dict[str, Any]]] = {"base (prior noise)": [], "w = 0": []}
    for folder in folders.values():
        for row in json.loads((folder / "evaluation" / "evaluation.json").read_text()):
            if row["policy"] in found:
                found[row["policy"]].append(row)
    keys = ("success_once", "success_once_low", "success_once_high")
    levels = {
        f"{name}, mean over seeds": Interval(*(sum(r[k] for r in rows) / len(rows) for k in keys))
        for name, rows in found.items()
    }
    curves = {f"seed {s}, deterministic": curve(f) for s, f in folders.items()}
    if training:
        curves |= {f"seed {s}, in training (last 50 episodes)": training_curve(f) for s, f in folders.items()}
    plot_success(path, curves, levels, title)


def main() -> int:
    """Run what is missing, write table, curve and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--obs", choices=list(RECORDED), default="state")
    parser.add_argument("--num_envs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    stem = f"{TASK}-{arguments.obs}"
    folders = {seed: arguments.runs / f"{stem}-seed{seed}" for seed in arguments.seeds}
    for seed, folder in folders.items():
        chain(folder, seed, arguments.obs, arguments.num_envs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = report(folders)
    (arguments.out / f"{stem}.md").write_text(table)
    with (arguments.out / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "env_steps", "success_once", "low", "high"])
        for seed, folder in folders.items():
            for r in curve(folder):
                interval = [r["success_once"], r["success_once_low"], r["success_once_high"]]
                writer.writerow([seed, r["env_steps"], *interval])
    draw(
        folders,
        arguments.out / f"{stem}.png",
        f"{TASK}, {arguments.obs}: Stage 2",
        training=arguments.obs != "state",
    )
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
