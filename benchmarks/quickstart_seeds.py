"""The quickstart on several seeds: one table, one plot, and whether what we claim of it holds.

    python benchmarks/quickstart_seeds.py --seeds 1 2 3 --runs runs --out docs/results

Runs that already stand in the ``--runs`` folder are read, the others are made, one after another.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from dsrl_offpolicy.analysis.curves import plot_success
from dsrl_offpolicy.analysis.run_folder import read_runs
from dsrl_offpolicy.analysis.verdict import Row
from dsrl_offpolicy.commands import quickstart
from dsrl_offpolicy.evaluation.intervals import Interval

ROWS = {
    "base": "base policy (prior noise)",
    "w = 0": "control: w = 0",
    "best of 16 constants": "control: best of 16 constant noise vectors",
    "best of 32 by Q^A": "control: best of 32 draws by Q^A, state by state",
    "stage1": "Stage 1, deterministic",
    "stage1_stochastic": "Stage 1, stochastic",
    "stage2": "**Stage 2, deterministic**",
    "stage2_stochastic": "Stage 2, stochastic",
}


def entry(summary: dict[str, Any], row: str) -> dict[str, Any]:
    """A row of a quickstart's summary, controls included."""
    found: dict[str, Any] = summary[row] if row in summary else summary["controls"][row]
    return found


def percent(row: dict[str, Any], episodes: int) -> str:
    """A rate with its interval, in per cent; with its n where that is not ``episodes``."""
    text = f"{100 * row['success']:.0f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    return text if row["episodes"] == episodes else f"{text}, n {row['episodes']}"


def evaluations(folder: Path) -> list[Row]:
    """The evaluations during a run's Stage 2."""
    return read_runs(folder / "stage2")[0].evaluations


def claims(folder: Path, summary: dict[str, Any]) -> dict[str, str]:
    """What is claimed of one run, each with the number that decides it."""
    base, stage2, zero = summary["base"], summary["stage2"], entry(summary, "w = 0")
    curve = evaluations(folder)
    last_third = [r["success_once"] for r in curve if r["env_steps"] >= 2 / 3 * curve[-1]["env_steps"]]
    stage1_run, stage2_run = (read_runs(folder / stage)[0].summary for stage in ("stage1", "stage2"))
    verification = stage1_run["verification"]
    return {
        "Stage 2 less base (points)": f"{100 * (stage2['success'] - base['success']):+.0f}",
        "intervals apart": "yes" if stage2["low"] > base["high"] else "no",
        "Stage 2 less w = 0 (points)": f"{100 * (stage2['success'] - zero['success']):+.0f}",
        "lowest evaluation in the last third": f"{100 * min(last_third):.0f} %",
        "Stage 1: E[Q] policy less prior, held out": (
            f"{verification['difference']:+.2f} "
            f"[{verification['difference_low']:+.2f}, {verification['difference_high']:+.2f}]"
        ),
        "effective UTD": f"{stage2_run['utd_effective']:.3f}",
        "Stage 2 env steps": str(summary["env_steps"]),
        "Stage 2 gradient steps": str(summary["gradient_steps"]),
        "minutes, everything": f"{summary['minutes']:.1f}",
    }


def markdown(columns: list[str], rows: dict[str, list[str]]) -> str:
    """A table."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()])


def main() -> int:
    """Make what is missing, read what is there, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="pick-place-v3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    folders = {s: arguments.runs / f"quickstart-{arguments.task}-seed{s}" for s in arguments.seeds}
    for seed, folder in folders.items():
        if not folder.exists():
            flags = ["--task", arguments.task, "--seed", str(seed), "--out", str(folder)]
            if quickstart.main(flags):
                return 1
    summaries = {s: json.loads((f / "summary.json").read_text()) for s, f in folders.items()}
    columns = [f"seed {s}" for s in summaries]
    table = {
        title: [percent(entry(s, row), s["base"]["episodes"]) for s in summaries.values()]
        for row, title in ROWS.items()
    }
    facts = {s: claims(folders[s], summaries[s]) for s in summaries}
    checks = {name: [facts[s][name] for s in facts] for name in facts[arguments.seeds[0]]}
    report = markdown(columns, table) + "\n\n" + markdown(columns, checks) + "\n"
    stem = f"quickstart-{arguments.task}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{stem}.md").write_text(report)
    curves = {f"seed {s}": evaluations(f) for s, f in folders.items()}
    with (arguments.out / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "env_steps", "success_once", "low", "high"])
        for name, rows in curves.items():
            for r in rows:
                interval = [r["success_once"], r["success_once_low"], r["success_once_high"]]
                writer.writerow([name, r["env_steps"], *interval])
    levels = {}
    for row in ("base", "w = 0"):
        found = [entry(s, row) for s in summaries.values()]
        levels[f"{row}, mean over seeds"] = Interval(
            *(sum(f[k] for f in found) / len(found) for k in ("success", "low", "high"))
        )
    title = f"{arguments.task}: Stage 2, deterministic policy"
    plot_success(arguments.out / f"{stem}.png", curves, levels, title)
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
