"""The one reader of run folders: kind, settings, rows of metrics by group, summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsrl_offpolicy.agents.stage2_config import shipped_yaml, stage2_config
from dsrl_offpolicy.analysis.verdict import Row
from dsrl_offpolicy.configs.jobs import PPOConfig, Stage0Config, Stage1Config, Stage2LoopConfig
from dsrl_offpolicy.configs.loading import override, read_settings
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.metrics import Group, json_object, read_metrics, rows_of
from dsrl_offpolicy.files.run_kind import read_kind

StageConfig = Stage0Config | Stage1Config | Stage2LoopConfig | PPOConfig

FIXED: dict[str, tuple[type, str]] = {
    "stage0": (Stage0Config, "stage0_pretrain.yaml"),
    "stage1": (Stage1Config, "stage1_offline.yaml"),
    "ppo": (PPOConfig, "ppo.yaml"),
}
"""Jobs whose settings do not depend on an algorithm, by the kind of their runs."""
STAGES = ("stage0", "stage1", "stage2")
RATES = ("success_once", "success_once_low", "success_once_high")


@dataclass(frozen=True)
class RunFolder:
    """One stage's run.

    Attributes:
        path: the folder.
        kind: ``stage0``, ``stage1``, ``stage2`` or ``ppo``.
        settings: of its ``config.yaml``, which another version of the package may have written.
        rows: of ``metrics.jsonl``, in order.
        summary: ``summary.json``; empty while the run is not at its end.
    """

    path: Path
    kind: str
    settings: Mapping[Any, Any]
    rows: Sequence[Row] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> StageConfig:
        """The settings held against today's; raises InputError for one that there is no longer."""
        job: type[StageConfig]
        shipped: str | None
        if self.kind == "stage2":
            algo = str(self.settings.get("algo", "sac"))
            job, shipped = stage2_config(algo), shipped_yaml(algo)
        else:
            job, shipped = FIXED[self.kind]
        config: StageConfig = override(job, shipped, self.settings, str(self.path / "config.yaml"))
        return config

    @property
    def finished(self) -> bool:
        """Whether the run is at its end."""
        return bool(self.summary)

    def of(self, group: Group) -> list[Row]:
        """Return the rows of a group."""
        return rows_of(self.rows, group)

    @property
    def evaluations(self) -> list[Row]:
        """The evaluations whose success has an interval."""
        return rows_of(self.rows, "eval", RATES)


def read_runs(path: Path) -> list[RunFolder]:
    """Read the run in a folder; in a quickstart's folder, its stages as far as they have begun.

    Raises:
        InputError: no run folder, or files in it that cannot be read.
    """
    path = path.expanduser()
    try:
        if not path.is_dir():
            raise InputError(
                f"RUN_DIR: expected a run folder, {path} {'is not one' if path.exists() else 'does not exist'}"
            )
        settings_file = path / "config.yaml"
        if not settings_file.is_file():
            raise InputError(f"RUN_DIR: expected a run folder, {settings_file} does not exist")
        settings = read_settings(settings_file)
        kind = read_kind(path) or _kind_of_old(settings)
        if kind == "quickstart":
            stages = [path / name for name in STAGES]
            runs = [run for stage in stages if (stage / "config.yaml").is_file() for run in read_runs(stage)]
            if not runs:
                raise InputError(f"RUN_DIR: expected a quickstart in which a stage has begun, {path} has none yet")
            return runs
        if kind not in (*STAGES, "ppo"):
            what = f"a run of {kind}" if kind else "of none"
            raise InputError(
                f"RUN_DIR: expected a run of Stage 0, 1 or 2, of PPO or a quickstart, {settings_file} is {what}"
            )
        return [RunFolder(path, kind, settings, read_metrics(path), _summary(path))]
    except OSError as error:
        raise InputError(f"RUN_DIR: cannot read the run folder: {error}") from error


def _kind_of_old(settings: Mapping[Any, Any]) -> str | None:
    """The kind of a run that an earlier version wrote without ``run.json``: by a setting that no other job has."""
    telling = {
        "budget": "quickstart", "expectile": "stage0", "num_candidates": "stage1", "utd_ratio": "stage2",
        "screening_episodes": "eval",
    }  # fmt: skip
    return next((kind for setting, kind in telling.items() if setting in settings), None)


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.exists():
        return {}
    try:
        return json_object(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from error
