"""A run folder as the checks read it: settings, rows of metrics, summary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsrl_offpolicy.configs.jobs import Stage0Config, Stage1Config, Stage2Config
from dsrl_offpolicy.configs.loading import override, read_settings
from dsrl_offpolicy.diagnostics.verdict import Row, is_finite_number
from dsrl_offpolicy.errors import InputError

StageConfig = Stage0Config | Stage1Config | Stage2Config

# By a setting that no other job has.
STAGES: dict[str, tuple[str, type, str]] = {
    "expectile": ("stage0", Stage0Config, "stage0_pretrain.yaml"),
    "num_candidates": ("stage1", Stage1Config, "stage1_offline.yaml"),
    "utd_ratio": ("stage2", Stage2Config, "stage2_online.yaml"),
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
    rows: list[Row]
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
        return [run for stage in stages if (stage / "config.yaml").is_file() for run in read_run(stage)]
    for setting, (stage, job, shipped) in STAGES.items():
        if setting in settings:
            config: StageConfig = override(job, shipped, settings, str(settings_file))
            return [RunFolder(path, stage, config, read_rows(path), _summary(path))]
    raise InputError(f"RUN_DIR: expected a run of Stage 0, 1 or 2 or a quickstart, {settings_file} is of none")


def read_rows(folder: Path) -> list[Row]:
    """The rows of ``metrics.jsonl``. The last line of a run that was killed may be torn, and is left out.

    Raises:
        InputError: there is no such file, or another line is no JSON object of finite numbers.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected rows of metrics, got: {error}") from error
    rows: list[Row] = []
    # What follows the last end of a line is nothing, or the torn one.
    for number, line in enumerate(lines[:-1], start=1):
        row = _json_object(line, f"{path}, line {number}")
        for name, value in row.items():
            if not is_finite_number(value):
                raise InputError(f"{path}, line {number}: {name}: expected a finite number, got {str(value)[:40]}")
        rows.append(row)
    return rows


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.exists():
        return {}
    try:
        return _json_object(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from error


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, got: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content
