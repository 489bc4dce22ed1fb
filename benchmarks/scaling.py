"""How gradient steps per second fall as work grows: one plot per dimension, and the numbers.

    python benchmarks/scaling.py --out docs/performance [--threads 1]

Around width 256, batch 256, latent 112, two critics: the compiled learner with sampling, and beside it what the
operations of its matrix products alone would cost at the speed `torch.mm` reaches on large matrices. The plot of
environments is of env steps per second of MetaWorld's processes, without a learner.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from env_throughput import HORIZON, speed
from learner import ACTION_DIM, FEATURES, LAYERS, ROWS, filled_buffer, our_agent, products

SWEEPS: dict[str, list[int]] = {
    "width": [128, 256, 512, 1024, 2048],
    "batch": [64, 128, 256, 512, 1024, 2048, 4096],
    "latent": [7, 28, 56, 112, 224, 448],
    "critics": [2, 3, 5, 10],
    "buffer": [1_000, 10_000, 100_000, 1_000_000],
}
BASE = {"width": 256, "batch": 256, "latent": ROWS * ACTION_DIM, "critics": 2, "buffer": 10_000}
ENVS = [1, 2, 4, 8]


def median_rate(run: Callable[[], Any], seconds: float) -> float:
    """Calls per second: the median over calls for about so long."""
    run()
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


def peak_flops(seconds: float) -> float:
    """Multiply-adds per second of `torch.mm` on 1024 x 1024 matrices."""
    import torch

    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return median_rate(lambda: torch.mm(left, right), seconds) * 1024**3


def learner_rate(point: dict[str, int], seconds: float) -> float:
    """Gradient steps per second of the compiled learner."""
    import torch

    from dsrl_offpolicy.agents.compiled_update import CompiledUpdate

    torch._dynamo.reset()
    agent = our_agent(point["width"], heads=point["critics"], rows=point["latent"] // ACTION_DIM)
    buffer = filled_buffer(point["latent"], point["buffer"])
    update = CompiledUpdate(agent, point["batch"])
    return median_rate(lambda: update(buffer.sample(point["batch"])), seconds)


def env_rate(count: int, seconds: float) -> float:
    """Env steps per second of so many processes, chunks of 8."""
    from dsrl_offpolicy.envs.spec import EnvSpec
    from dsrl_offpolicy.envs.vector import make_vector_env

    env = make_vector_env(EnvSpec("pick-place-v3", act_horizon=HORIZON), count)
    try:
        return speed(env, True, seconds, env.single_action_space.shape[-1])
    finally:
        env.close()


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """One plot per dimension, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name in dict.fromkeys(row["dimension"] for row in rows):
        mine = [row for row in rows if row["dimension"] == name]
        figure, axis = pyplot.subplots(figsize=(5, 3.4))
        sizes = [row["value"] for row in mine]
        axis.plot(sizes, [row["per_second"] for row in mine], "o-", label="measured")
        if name != "num_envs":
            axis.plot(sizes, [row["limit"] for row in mine], "--", color="0.5", label="matrix products alone")
            axis.legend()
        axis.set_xscale("log", base=2 if name != "buffer" else 10)
        axis.set_yscale("log")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.set_ylabel("env steps / s" if name == "num_envs" else "gradient steps / s")
        axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=80)
        pyplot.close(figure)


def main() -> int:
    """Measure, write the numbers and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the plots")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure each point")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    peak = peak_flops(arguments.seconds)
    print(f"torch.mm: {2 * peak / 1e9:.0f} GFLOP/s, features {FEATURES}, {LAYERS} layers", flush=True)
    rows: list[dict[str, Any]] = []
    for name, values in SWEEPS.items():
        for value in values:
            point = BASE | {name: value}
            shapes = products(point["width"], point["batch"], point["critics"], point["latent"])
            limit = peak / sum(m * k * n for m, k, n in shapes)
            rate = learner_rate(point, arguments.seconds)
            rows.append(
                {"dimension": name, "value": value, "per_second": round(rate, 2), "limit": round(limit, 2)}
            )
            print(rows[-1], flush=True)
    for count in ENVS:
        rate = env_rate(count, arguments.seconds)
        rows.append({"dimension": "num_envs", "value": count, "per_second": round(rate, 1), "limit": ""})
        print(rows[-1], flush=True)
    with (arguments.out / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
