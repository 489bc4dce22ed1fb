"""Learning curves from run folders, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsrl_offpolicy.analysis.run_folder import read_runs
from dsrl_offpolicy.evaluation.intervals import Interval


def plot_success(
    path: Path,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    levels: Mapping[str, Interval],
    title: str,
) -> None:
    """Plot success over env steps, with the Wilson intervals of the evaluations.

    Args:
        path: the PNG to write.
        curves: by legend, rows with ``env_steps``, ``success_once``, ``success_once_low`` and ``..._high``.
        levels: by legend, rates drawn as horizontal bands (base policy, controls).
        title: above the plot.
    """
    from matplotlib.figure import Figure  # without pyplot, which would pick a window system

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    draw_success(axes, curves, levels)
    axes.set(title=title)
    axes.legend(loc="best", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw_success(
    axes: Any,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    levels: Mapping[str, Interval],
    over: str = "env_steps",
) -> None:
    """Draw what :func:`plot_success` plots into axes of matplotlib; ``over`` names the rows' horizontal axis."""
    for number, (name, level) in enumerate(levels.items()):
        color = f"C{7 - number}"
        axes.axhline(level.value, color=color, linestyle="--", label=f"{name}: {100 * level.value:.0f} %")
        if level.low is not None and level.high is not None:
            axes.axhspan(level.low, level.high, color=color, alpha=0.12, linewidth=0)
    for number, (name, rows) in enumerate(curves.items()):
        x = [row[over] for row in rows]
        axes.plot(x, [row["success_once"] for row in rows], marker="o", color=f"C{number}", label=name)
        low = [row["success_once_low"] for row in rows]
        axes.fill_between(x, low, [row["success_once_high"] for row in rows], color=f"C{number}", alpha=0.15)
    axes.set(xlabel=over.replace("_", " "), ylabel="success", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)


def plot_online_run(folder: Path, levels: Mapping[str, Interval], title: str) -> Path | None:
    """Write ``learning_curve.png`` into a run folder of Stage 2 or PPO; None where it holds no evaluation."""
    (run,) = read_runs(folder)
    if not run.evaluations:
        return None
    path = folder / "learning_curve.png"
    plot_success(path, {"PPO" if run.kind == "ppo" else "stage 2": run.evaluations}, levels, title)
    return path
