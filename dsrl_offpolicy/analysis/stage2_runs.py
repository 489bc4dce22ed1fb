"""Runs of Stage 2 to be compared: which of them are the same but for the seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.analysis.comparison import EvaluatedRun
from dsrl_offpolicy.analysis.run_folder import RATES, RunFolder, read_runs
from dsrl_offpolicy.analysis.verdict import Row
from dsrl_offpolicy.configs.jobs import Stage2LoopConfig
from dsrl_offpolicy.configs.loading import to_plain
from dsrl_offpolicy.errors import InputError

CHECKPOINTS = ("base", "awsc_checkpoint", "stage1_checkpoint", "demo_path")
BOOKKEEPING = (
    "seed", "out", "resume", "device", "torch_threads", "loggers", "track", "wandb_project", "log_freq",
    "save_freq", "compile", "render_backend", "env_timeout", "eval_freq", "eval_episodes",
    "video_every",
)  # fmt: skip
"""Settings that do not change what a run learns, or that runs of one group are meant to differ in."""


def read_run(folder: Path) -> RunFolder:
    """Read a run folder of Stage 2, or that inside a quickstart's, with all settings and evaluations to compare.

    Raises:
        InputError: no such run, no evaluation in it, or damaged files.
    """
    run = next((run for run in read_runs(folder) if run.kind == "stage2"), None)
    if run is None:
        raise InputError(f"RUN_DIR: expected a run of Stage 2 or a quickstart's, {folder} is another")
    unnamed = [name for name in run.settings if not isinstance(name, str)]
    if unnamed:
        raise InputError(f"{run.path / 'config.yaml'}: expected settings by name, got {unnamed[0]!r}")
    defaults = Stage2Config() if run.settings.get("algo", "sac") == "sac" else Stage2LoopConfig()
    settings = {**to_plain(defaults), **run.settings}
    if type(settings["seed"]) is not int:
        raise InputError(f"{run.path / 'config.yaml'}: expected a whole number as seed, got {settings['seed']}")
    if not run.evaluations:
        raise InputError(f"RUN_DIR: expected a run with evaluations, {run.path} has none yet")
    _check_evaluations(run.path / "metrics.jsonl", run.evaluations)
    return replace(run, settings=settings)


def _check_evaluations(path: Path, rows: Sequence[Row]) -> None:
    before = -1
    for row in rows:
        steps = row.get("env_steps")
        if type(steps) is not int or steps <= before:
            raise InputError(f"{path}: expected ascending env_steps of evaluations, got {steps} after {before}")
        for name in RATES:
            rate = row.get(name)
            if not isinstance(rate, int | float) or not -1e-9 <= rate <= 1 + 1e-9:
                raise InputError(f"{path}: expected {name} in [0, 1] at {steps} env steps, got {rate}")
        before = steps


def evaluated(run: RunFolder, over: str = "env_steps") -> EvaluatedRun:
    """Return a run's evaluations as arrays, along ``env_steps`` or another column that ascends.

    Evaluations that share a place, as those before the first gradient step do, count once: the last of them.

    Raises:
        InputError: an evaluation without that column.
    """
    found = {row.get(over): row for row in run.evaluations}
    if None in found:
        raise InputError(f"{run.path / 'metrics.jsonl'}: expected {over} of every evaluation, one has none")
    columns = {name: np.array([row[name] for row in found.values()], dtype=float) for name in (over, *RATES)}
    return EvaluatedRun(str(run.path), str(run.settings["env_id"]), run.settings["seed"], *columns.values())


def check_distinct(runs: Sequence[RunFolder]) -> None:
    """Refuse the same folder given twice.

    Raises:
        InputError: naming it.
    """
    seen: set[Path] = set()
    for run in runs:
        path = run.path.resolve()
        if path in seen:
            raise InputError(f"RUN_DIR: expected every run once, got {run.path} twice")
        seen.add(path)


def group_runs(runs: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """Group runs of equal settings, by a name that says the settings in which groups differ.

    BOOKKEEPING is not looked at, nor is ``total_timesteps`` where nothing in the run depends on it. A checkpoint's
    path tells groups apart where several seeds share it; where each seed has its own, it belongs to the seed.

    Raises:
        InputError: a group with the same seed twice.
    """
    identities = [_identity(run.settings) for run in runs]
    for name in CHECKPOINTS:
        buckets = [_key(identity) for identity in identities]
        for identity, run, bucket in zip(identities, runs, buckets, strict=True):
            paths = [_key(r.settings[name]) for r, b in zip(runs, buckets, strict=True) if b == bucket]
            if 1 < len(set(paths)) < len(paths):
                identity[name] = run.settings[name]
    names = _differing(identities)
    order = sorted(range(len(runs)), key=lambda i: [_sortable(identities[i].get(name)) for name in names])
    groups: dict[str, list[RunFolder]] = {}
    for i in order:
        label = ", ".join(f"{name}={_shown(identities[i].get(name))}" for name in names)
        groups.setdefault(label or str(identities[i]["env_id"]), []).append(runs[i])
    for label, members in groups.items():
        _check_seeds(label, members)
    return groups


def _identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    identity = {name: value for name, value in settings.items() if name not in BOOKKEEPING}
    if settings["anneal_from"] == 1:  # learning rates do not depend on where the run ends
        identity["total_timesteps"] = None
    return identity | {name: "given" if settings[name] else None for name in CHECKPOINTS}


def _differing(identities: Sequence[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for identity in identities for name in identity))
    values = {name: {_key(identity.get(name)) for identity in identities} for name in names}
    values["total_timesteps"].discard(_key(None))
    return [name for name in names if len(values[name]) > 1]


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _sortable(value: Any) -> tuple[int, float, str]:
    number = type(value) in (int, float) and math.isfinite(value)
    return (0, float(value), "") if number else (1, 0.0, _shown(value))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_seeds(label: str, members: Sequence[RunFolder]) -> None:
    seen: dict[int, Path] = {}
    for run in members:
        seed: int = run.settings["seed"]
        if seed in seen:
            raise InputError(
                f"RUN_DIR: expected each seed once among runs of the same settings ({label}), got seed {seed} in "
                f"{seen[seed]} and {run.path}; tell such runs apart by --group NAME RUN_DIR..."
            )
        seen[seed] = run.path


def differing_settings(members: Sequence[RunFolder]) -> dict[str, list[str]]:
    """Return the settings, task aside, that matter and that the runs of a group do not share, with values."""
    identities = [_identity(run.settings) for run in members]
    names = [name for name in _differing(identities) if name != "env_id"]
    return {name: sorted({_shown(identity.get(name)) for identity in identities}) for name in names}
