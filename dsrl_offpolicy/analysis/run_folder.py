"""A run folder as the checks read it: settings, rows of metrics, summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsrl_offpolicy.agents.stage2_config import shipped_yaml, stage2_config
from dsrl_offpolicy.analysis.verdict import Row
from dsrl_offpolicy.configs.jobs import Stage0Config, Stage1Config, Stage2LoopConfig
from dsrl_offpolicy.configs.loading import override, read_settings
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import json_object, read_metrics

StageConfig = Stage0Config | Stage1Config | Stage2LoopConfig

# By a setting that no other job has.
OFFLINE_STAGES: dict[str, tuple[str, type, str]] = {
    "expectile": ("stage0", Stage0Config, "stage0_pretrain.yaml"),
    "num_candidates": ("stage1", Stage1Config, "stage1_offline.yaml"),
}
QUICKSTART_SETTING = "budget"


@dataclass(frozen=True)
class RunFolder:
    """One stage's run.

    Args:
        path: the folder.
        stage: ``stage0``, ``stage1`` or ``stage2``.
        config: the settings it ran under.
        rows: of ``metrics.jsonl``, in order.
        summary: ``summary.json``; empty while the run is not at its end.
    """

    path: Path
    stage: str
    config: StageConfig
    rows: Sequence[Row]
    summary: dict[str, Any]


def read_run(path: Path) -> list[RunFolder]:
    """The run in a folder; of a quickstart's folder, its stages as far as they have begun.

    Raises:
        InputError: no run folder, or files in it that cannot be read.
    """
    if not path.is_dir():
        raise InputError(
            f"RUN_DIR: expected a run folder, {path} {'is none' if path.exists() else 'does not exist'}"
        )
    settings_file = path / "config.yaml"
    if not settings_file.is_file():
        raise InputError(f"RUN_DIR: expected a run folder, {settings_file} does not exist")
    settings = read_settings(settings_file)
    if QUICKSTART_SETTING in settings:
        stages = [path / name for name in ("stage0", "stage1", "stage2")]
        runs = [run for stage in stages if (stage / "config.yaml").is_file() for run in read_run(stage)]
        if not runs:
            raise InputError(f"RUN_DIR: expected a quickstart in which a stage has begun, {path} has none yet")
        return runs
    if "utd_ratio" in settings:
        algo = str(settings.get("algo", "sac"))
        of_run = override(stage2_config(algo), shipped_yaml(algo), settings, str(settings_file))
        return [RunFolder(path, "stage2", of_run, read_metrics(path), _summary(path))]
    for setting, (stage, job, shipped) in OFFLINE_STAGES.items():
        if setting in settings:
            config: StageConfig = override(job, shipped, settings, str(settings_file))
            return [RunFolder(path, stage, config, read_metrics(path), _summary(path))]
    raise InputError(f"RUN_DIR: expected a run of Stage 0, 1 or 2 or a quickstart, {settings_file} is of none")


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.exists():
        return {}
    try:
        return json_object(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from error
