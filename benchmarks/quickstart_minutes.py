"""Where a quickstart's minutes go: wall-clock and CPU time by stage, and the env steps of the final table.

    python benchmarks/quickstart_minutes.py --out runs/minutes [--cpus 2] [flags of dsrl quickstart]
    python benchmarks/quickstart_minutes.py --read runs/quickstart-pick-place-v3-seed1

The first runs one, on so many CPUs; the second reads one that has finished, without CPU time. CPU time is that of
all its processes, sampled twice a second. Together with the wall-clock it tells whether other jobs took part of
the CPUs: the load beside it is the machine's, less what the quickstart itself used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STAGES = ("demonstrations", "Stage 0", "Stage 1", "Stage 2", "final table")
INTERVAL = 0.5


def minutes_by_stage(folder: Path) -> dict[str, float]:
    """Wall-clock of each stage of a quickstart that has finished, from its own rows, in minutes."""
    from dsrl_offpolicy.files.metrics import read_metrics

    ends = [float(row["minutes"]) for row in read_metrics(folder) if row["group"] == "stages"]
    ends.append(float(json.loads((folder / "summary.json").read_text())["minutes"]))
    return {stage: end - start for stage, start, end in zip(STAGES, [0.0, *ends], ends, strict=False)}


class Clock:
    """CPU time of a process and all that came of it, by stage."""

    def __init__(self, process: int, folder: Path) -> None:
        import psutil

        self._root, self._folder = psutil.Process(process), folder
        self._seconds: dict[int, float] = {}
        self.by_stage = dict.fromkeys(STAGES, 0.0)

    def tick(self) -> None:
        """Look at all processes, and give what was used since to the stage that runs."""
        import psutil

        used = 0.0
        with contextlib.suppress(psutil.Error):
            for one in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    now = times.user + times.system
                    used += now - self._seconds.get(one.pid, 0.0)
                    self._seconds[one.pid] = now
        rows = self._folder / "metrics.jsonl"
        done = rows.read_text().count("\n") if rows.exists() else 0
        self.by_stage[STAGES[min(done, len(STAGES) - 1)]] += used / 60


def measure(folder: Path, cpus: int, flags: list[str]) -> tuple[dict[str, float], float]:
    """Run a quickstart; returns its CPU minutes by stage, and the machine's mean load less its own."""
    available = sorted(os.sched_getaffinity(0))[:cpus]
    command = [sys.executable, "-m", "dsrl_offpolicy.cli", "quickstart", "--out", str(folder), *flags]
    began, loads = time.monotonic(), []
    process = subprocess.Popen(
        command, preexec_fn=lambda: os.sched_setaffinity(0, available), env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    clock = Clock(process.pid, folder)
    while process.poll() is None:
        clock.tick()
        loads.append(os.getloadavg()[0])
        time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(process.returncode)
    own = 60 * sum(clock.by_stage.values()) / (time.monotonic() - began)
    return clock.by_stage, sum(loads) / len(loads) - own


def report(folder: Path, cpu: dict[str, float] | None) -> str:
    """The table in Markdown."""
    wall = minutes_by_stage(folder)
    rows: list[dict[str, Any]] = json.loads((folder / "evaluation.json").read_text())
    lines = ["| | minutes | CPU minutes |", "|---|---|---|"]
    for stage, minutes in wall.items():
        lines.append(f"| {stage} | {minutes:.2f} | {'' if cpu is None else f'{cpu[stage]:.2f}'} |")
    total = "" if cpu is None else f"{sum(cpu.values()):.2f}"
    lines += [
        f"| **all** | {sum(wall.values()):.2f} | {total} |",
        "",
        "| row of the final table | n | env steps |",
    ]
    lines.append("|---|---|---|")
    for row in rows:
        steps = f"{row['env_steps']:,}" if "env_steps" in row else f"{row['length'] * row['episodes']:,.0f}"
        if row.get("choosing_env_steps"):
            steps += f", and {row['choosing_env_steps']:,} to choose"
        lines.append(f"| {row['policy']} | {row['episodes']} | {steps} |")
    return "\n".join(lines)


def main() -> int:
    """Measure or read, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-minutes"))
    parser.add_argument("--read", type=Path)
    parser.add_argument("--cpus", type=int, default=2)
    arguments, flags = parser.parse_known_args()
    if arguments.read is not None:
        print(report(arguments.read, None))
        return 0
    cpu, load = measure(arguments.out, arguments.cpus, flags)
    print("\n" + report(arguments.out, cpu))
    print(f"\n{arguments.cpus} CPUs; mean load of other jobs {max(load, 0.0):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
