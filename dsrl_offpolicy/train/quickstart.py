"""``dsrl quickstart``: from nothing to a table: demonstrations, Stages 0, 1 and 2, evaluation."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dsrl_offpolicy.configs.jobs import (
    DemosConfig,
    EvalConfig,
    QuickstartConfig,
    Stage0Config,
    Stage1Config,
    Stage2Config,
)
from dsrl_offpolicy.configs.loading import override
from dsrl_offpolicy.evaluation.intervals import Interval
from dsrl_offpolicy.reports.curves import plot_stage2_run
from dsrl_offpolicy.tracking import Run, create_run_folder
from dsrl_offpolicy.train import (
    evaluate,
    generate_demos,
    pretrain_stage0,
    train_stage1_offline,
    train_stage2_online,
)
from dsrl_offpolicy.train.wiring import command

Job = TypeVar("Job")

SCALED = {
    "demos": ("episodes",),
    "stage0": ("total_iters",),
    "stage1": ("total_iters", "eval_freq", "eval_episodes"),
    "stage2": ("total_timesteps", "warmup_steps", "critic_burnin_steps", "eval_freq", "eval_episodes"),
    "eval": ("episodes", "constants", "screening_episodes"),
}
"""What ``--budget`` multiplies."""

MINIMUM = {"episodes": 4, "eval_episodes": 4, "total_timesteps": 400, "screening_episodes": 2, "eval_freq": 200}


def run(config: QuickstartConfig) -> Path:
    """Run every stage into one folder and print the final table. Returns the run folder."""
    generate_demos.check_task("task", config.task)
    folder = create_run_folder(config.out, f"quickstart-{config.task}-seed{config.seed}")
    with Run(folder, config) as tracker:
        demo_path = generate_demos.run(
            _job(DemosConfig, "demos.yaml", "demos", config, env_id=config.task, out=folder / "demos.h5")
        )
        tracker.log({"stage": 0}, {"stages_done": 1})
        stage0 = pretrain_stage0.run(
            _training(Stage0Config, "stage0_pretrain.yaml", "stage0", config, folder, demo_path=demo_path)
        )
        tracker.log({"stage": 1}, {"stages_done": 2})
        base = stage0 / "checkpoints" / "last.pt"
        stage1 = train_stage1_offline.run(
            _training(
                Stage1Config, "stage1_offline.yaml", "stage1", config, folder,
                demo_path=demo_path, awsc_checkpoint=base,
            )
        )  # fmt: skip
        stage1_checkpoint = stage1 / "checkpoints" / "last.pt"
        stage2_config = _training(
            Stage2Config, "stage2_online.yaml", "stage2", config, folder,
            awsc_checkpoint=base, stage1_checkpoint=stage1_checkpoint,
        )  # fmt: skip
        stage2 = train_stage2_online.run(stage2_config)
        evaluation = evaluate.run(
            _training(
                EvalConfig, "eval.yaml", "eval", config, folder,
                awsc_checkpoint=base,
                stage1_checkpoint=stage1_checkpoint,
                stage2_checkpoint=stage2 / "checkpoints" / "last.pt",
            )
        )  # fmt: skip
        rows = {row["policy"]: row for row in json.loads((evaluation / "evaluation.json").read_text())}
        summary = _summary(rows, json.loads((stage2 / "summary.json").read_text()), config, tracker)
        tracker.write_summary(summary)
    for name in ("evaluation.csv", "evaluation.json"):
        shutil.copy(evaluation / name, folder / name)
    levels = {name: Interval(**_interval(rows[name])) for name in ("base (prior noise)", "w = 0")}
    curve = plot_stage2_run(stage2, levels, f"{config.task}, seed {config.seed}")
    if curve is not None:
        shutil.copy(curve, folder / "learning_curve.png")
    _print_summary(summary, folder)
    return folder


def _job(job: type[Job], shipped: str, section: str, config: QuickstartConfig, **values: Any) -> Job:
    """A job's config: shipped defaults < the quickstart's section (scaled by the budget) < ``values``."""
    text = resources.files("dsrl_offpolicy.configs").joinpath("quickstart_stages.yaml").read_text()
    settings = dict(yaml.safe_load(text)[section])
    for name in SCALED[section]:
        if settings.get(name):
            settings[name] = max(int(settings[name] * config.budget), MINIMUM.get(name, 1))
    settings |= {"seed": config.seed, **values}
    return override(job, shipped, settings, f"quickstart_stages.yaml: {section}")


def _training(
    job: type[Job], shipped: str, section: str, config: QuickstartConfig, folder: Path, **values: Any
) -> Job:
    shared: dict[str, Any] = {
        "env_id": config.task,
        "out": folder / section,
        "device": config.device,
        "torch_threads": config.torch_threads,
        "num_envs": config.num_envs,
    }
    if section != "eval":
        shared["track"] = config.track
    return _job(job, shipped, section, config, **shared, **values)


def _interval(row: dict[str, Any]) -> dict[str, float]:
    return {"value": row["success_once"], "low": row["success_once_low"], "high": row["success_once_high"]}


def _summary(
    rows: dict[str, dict[str, Any]], stage2: dict[str, Any], config: QuickstartConfig, tracker: Run
) -> dict[str, Any]:
    def entry(name: str) -> dict[str, Any]:
        interval = _interval(rows[name])
        return {
            "success": interval["value"],
            "low": interval["low"],
            "high": interval["high"],
            "episodes": rows[name]["episodes"],
        }

    controls = {name: entry(name) for name in rows if not name.startswith(("base", "stage"))}
    return {
        "task": config.task,
        "seed": config.seed,
        "base": entry("base (prior noise)"),
        "stage1": entry("stage1 deterministic"),
        "stage2": entry("stage2 deterministic"),
        "stage1_stochastic": entry("stage1 stochastic"),
        "stage2_stochastic": entry("stage2 stochastic"),
        "controls": controls,
        "env_steps": stage2["env_steps"],
        "gradient_steps": stage2["gradient_steps"],
        "minutes": round(tracker.minutes, 2),
    }


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    print(f"\n{summary['task']}, seed {summary['seed']}: success over the same episodes, 95 % Wilson intervals")
    for name in ("base", "stage1", "stage2"):
        row = summary[name]
        print(
            f"  {name:<7} {100 * row['success']:5.1f} %  [{100 * row['low']:.1f}, {100 * row['high']:.1f}]  "
            f"{row['episodes']} episodes"
        )
    print(
        f"{summary['env_steps']} env steps and {summary['gradient_steps']} gradient steps in Stage 2, "
        f"{summary['minutes']:.1f} minutes in all; evidence in {folder}"
    )


main = command(QuickstartConfig, "quickstart.yaml", "dsrl quickstart")(run)

if __name__ == "__main__":
    sys.exit(main())
