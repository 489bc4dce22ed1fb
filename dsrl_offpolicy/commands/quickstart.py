"""``dsrl quickstart``: from nothing to a table: demonstrations, Stages 0, 1 and 2, evaluation."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.analysis.curves import plot_online_run
from dsrl_offpolicy.analysis.run_folder import read_runs
from dsrl_offpolicy.commands import demos as generate_demos
from dsrl_offpolicy.commands import evaluate
from dsrl_offpolicy.commands.report import write_report
from dsrl_offpolicy.configs.jobs import (
    DemosConfig,
    EvalConfig,
    QuickstartConfig,
    Stage0Config,
    Stage1Config,
)
from dsrl_offpolicy.configs.loading import override
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.intervals import Interval
from dsrl_offpolicy.files.metrics import read_metrics
from dsrl_offpolicy.tracking.run import Run, create_run_folder
from dsrl_offpolicy.train import pretrain_stage0, train_stage1_offline, train_stage2_online
from dsrl_offpolicy.train.command import command, config_of_run
from dsrl_offpolicy.train.run import STAGE0, STAGE1, STAGE2, Interrupted, Interruption, Stage

Job = TypeVar("Job")

SCALED = {
    "demos": ("episodes",),
    "stage0": ("total_iters",),
    "stage1": ("total_iters", "eval_freq", "eval_episodes", "constants", "choosing_episodes"),
    "stage2": ("total_timesteps", "warmup_steps", "critic_burnin_steps", "eval_freq", "eval_episodes"),
    "stage2_elsewhere": ("critic_burnin_steps",),
    "eval": ("episodes", "constants", "screening_episodes"),
}
"""What ``--budget`` multiplies."""

MINIMUM = {"episodes": 4, "eval_episodes": 4, "total_timesteps": 400, "screening_episodes": 2, "eval_freq": 200}


def run(config: QuickstartConfig) -> Path:
    """Run every stage into one folder, or go on with what an interruption left of it, and print the final table.

    Returns the run folder.
    """
    resume = config.resume.expanduser() if config.resume is not None else None
    if resume is not None:
        config = config_of_run(config, "quickstart.yaml")
        if (resume / "summary.json").exists():
            raise InputError(f"resume: expected a run that was interrupted, {resume} has finished")
    generate_demos.check_task("task", config.task)
    folder = resume or create_run_folder(config.out, f"quickstart-{config.task}-seed{config.seed}")
    logs = _logs_so_far(folder) if resume is not None else None
    with Run(folder, config, resume=logs) as tracker, Interruption(at_once=True) as stop:
        try:
            summary = _run_stages(config, folder, tracker)
        except (Interrupted, KeyboardInterrupt) as error:
            number = stop.requested or (error.number if isinstance(error, Interrupted) else signal.SIGINT)
            raise Interrupted(number, f"resume with: dsrl quickstart --resume {folder}") from None
    _print_summary(summary, folder)
    _report(folder)
    return folder


def _run_stages(config: QuickstartConfig, folder: Path, tracker: Run) -> dict[str, Any]:
    """Everything that is not done yet. Returns the summary, which is written last."""
    demo_path = _demonstrations(config, folder / "demos.h5")
    _note_done(tracker, 1)
    stage0 = _stage(
        STAGE0, pretrain_stage0.run,
        _training(Stage0Config, "stage0_pretrain.yaml", "stage0", config, folder, demo_path=demo_path),
    )  # fmt: skip
    _note_done(tracker, 2)
    base = stage0 / "checkpoints" / "last.pt"
    stage1 = _stage(
        STAGE1, train_stage1_offline.run,
        _training(
            Stage1Config, "stage1_offline.yaml", "stage1", config, folder,
            demo_path=demo_path, awsc_checkpoint=base,
        ),
    )  # fmt: skip
    _note_done(tracker, 3)
    stage1_checkpoint = stage1 / "checkpoints" / "last.pt"
    succeeded = json.loads((stage0 / "summary.json").read_text())["demonstration_success"] > 0
    if not (succeeded or (folder / "stage2").exists()):
        print("note: no demonstration succeeds; Stage 2 learns from its own episodes alone", file=sys.stderr)
    stage2 = _stage(
        STAGE2, train_stage2_online.run,
        _stage2_from(
            _start(stage1)["start"], config, folder,
            demo_path=demo_path if succeeded else None, awsc_checkpoint=base, stage1_checkpoint=stage1_checkpoint,
        ),
    )  # fmt: skip
    _note_done(tracker, 4)
    shutil.rmtree(folder / "eval", ignore_errors=True)  # of an interrupted one: minutes, and always the same
    evaluation = evaluate.run(
        _training(
            EvalConfig, "eval.yaml", "eval", config, folder,
            awsc_checkpoint=base,
            stage1_checkpoint=stage1_checkpoint,
            stage2_checkpoint=stage2 / "checkpoints" / "last.pt",
        )
    )  # fmt: skip
    return _conclude(config, folder, stage2, evaluation, tracker)


def _demonstrations(config: QuickstartConfig, path: Path) -> Path:
    """The demonstrations, which are there whole or are recorded (anew)."""
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        for file in (path, path.with_suffix(".json")):
            file.unlink(missing_ok=True)
        generate_demos.run(_job(DemosConfig, "demos.yaml", "demos", config, env_id=config.task, out=path))
    return path


def _stage(stage: Stage, run_stage: Callable[[Job], Path], config: Job) -> Path:
    """One stage: run, resumed, or nothing where it has ended. Returns its folder.

    Args:
        stage: which one.
        run_stage: its job.
        config: its settings, for a new run.
    """
    folder: Path = config.out  # type: ignore[attr-defined]
    if not folder.exists():
        return run_stage(config)
    if stage.has_ended(folder):
        return folder
    if stage.saves(folder).exist():
        return run_stage(type(config)(resume=folder))  # type: ignore[call-arg]
    print(f"note: {folder} was interrupted before its first save; it starts over", file=sys.stderr)
    shutil.rmtree(folder)
    return run_stage(config)


def _note_done(tracker: Run, stages: int) -> None:
    """A row for each stage that is done: demonstrations, then Stages 0 to 2."""
    if stages > tracker.rows:
        tracker.log("stages", {"stage": stages - 1}, {"stages_done": stages})


def _logs_so_far(folder: Path) -> dict[str, Any]:
    """Where the quickstart's own logs stand: a row for each stage that is done, and the minutes that went into
    these and into the one that was interrupted."""
    rows = read_metrics(folder)
    interrupted = folder / ("demos", "stage0", "stage1", "stage2", "eval")[len(rows)]
    inner = read_metrics(interrupted) if (interrupted / "metrics.jsonl").is_file() else []
    last = [found[-1]["minutes"] for found in (rows, inner) if found]
    return {"minutes": sum(last), "rows": len(rows), "sinks": {"tensorboard": {"step": len(rows)}}}


def _conclude(
    config: QuickstartConfig, folder: Path, stage2: Path, evaluation: Path, tracker: Run
) -> dict[str, Any]:
    """Copy the evidence to the top and write the summary, which marks the end."""
    rows = {row["policy"]: row for row in json.loads((evaluation / "evaluation.json").read_text())}
    for name in ("evaluation.csv", "evaluation.json"):
        shutil.copy(evaluation / name, folder / name)
    levels = {name: Interval(**_interval(rows[name])) for name in ("base (prior noise)", "w = 0")}
    curve = plot_online_run(stage2, levels, f"{config.task}, seed {config.seed}")
    if curve is not None:
        shutil.copy(curve, folder / "learning_curve.png")
    summary = _summary(rows, read_runs(stage2)[0].summary, config, tracker)
    summary |= _start(folder / "stage1")
    tracker.write_summary(summary)
    return summary


def _job(job: type[Job], shipped: str, section: str, config: QuickstartConfig, **values: Any) -> Job:
    """A job's config: shipped defaults < the quickstart's section (scaled by the budget) < ``values``."""
    settings = {**_settings(section, config), "seed": config.seed, **values}
    return override(job, shipped, settings, f"quickstart_stages.yaml: {section}")


def _settings(section: str, config: QuickstartConfig) -> dict[str, Any]:
    text = resources.files("dsrl_offpolicy.configs").joinpath("quickstart_stages.yaml").read_text()
    settings = dict(yaml.safe_load(text)[section])
    for name in SCALED[section]:
        if settings.get(name):
            settings[name] = max(int(settings[name] * config.budget), MINIMUM.get(name, 1))
    return settings


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
        shared |= {"track": config.track, "precision": config.precision}
    return _job(job, shipped, section, config, **shared, **values)


def _stage2_from(start: str, config: QuickstartConfig, folder: Path, **values: Any) -> Stage2Config:
    """The settings of Stage 2, which depend on what Stage 1 handed over."""
    if start != "aw_mle":
        values |= _settings("stage2_elsewhere", config)
    return _training(Stage2Config, "stage2_online.yaml", "stage2", config, folder, **values)


def _interval(row: dict[str, Any]) -> dict[str, float]:
    return {"value": row["success_once"], "low": row["success_once_low"], "high": row["success_once_high"]}


def _summary(
    rows: dict[str, dict[str, Any]], stage2: Mapping[str, Any], config: QuickstartConfig, tracker: Run
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


def _start(stage1: Path) -> dict[str, Any]:
    """What Stage 1 handed over, and the env steps that went into choosing it."""
    choice = json.loads((stage1 / "summary.json").read_text())["choice"]
    return {"start": choice["chosen"], "choosing_env_steps": choice["env_steps"]}


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    print(f"\n{summary['task']}, seed {summary['seed']}: success on the same starts, 95 % Wilson intervals")
    for name in ("base", "stage1", "stage2"):
        row = summary[name]
        print(
            f"  {name:<7} {100 * row['success']:5.1f} %  [{100 * row['low']:.1f}, {100 * row['high']:.1f}]  "
            f"{row['episodes']} episodes"
        )
    print(
        f"{summary['env_steps']} env steps and {summary['gradient_steps']} gradient steps in Stage 2, "
        f"{summary['choosing_env_steps']} env steps to choose its start ({summary['start']}), "
        f"{summary['minutes']:.1f} minutes in all; evidence in {folder}"
    )


def _report(folder: Path) -> None:
    """Write ``report.html`` beside the evidence; where that fails, the run is whole all the same."""
    out = folder / "report.html"
    try:
        write_report([folder], out)
        print(f"open {out} in a browser: verdict, curves, health, settings")
    except InputError as error:
        print(f"note: no report.html: {error}; then: dsrl report {folder}", file=sys.stderr)


main = command(QuickstartConfig, "quickstart.yaml", "dsrl quickstart")(run)

if __name__ == "__main__":
    sys.exit(main())
