"""Jobs as functions, for scripts and notebooks: settings are keywords, named and checked as the flags are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsrl_offpolicy.agents.stage2_config import chosen_algorithm, shipped_yaml, stage2_config
from dsrl_offpolicy.commands import evaluate as eval_command
from dsrl_offpolicy.configs.jobs import EvalConfig, Stage0Config, Stage1Config
from dsrl_offpolicy.configs.loading import override, plain_settings
from dsrl_offpolicy.train import pretrain_stage0, train_stage1_offline, train_stage2_online


def pretrain(**settings: Any) -> Path:
    """Train a base policy and its action critic, as ``dsrl pretrain`` does. Returns the run folder.

    Raises:
        InputError: whatever the command would refuse.
    """
    return pretrain_stage0.run(
        override(Stage0Config, "stage0_pretrain.yaml", plain_settings(settings), "pretrain")
    )


def stage1(**settings: Any) -> Path:
    """Warm-start a latent policy offline, as ``dsrl stage1`` does. Returns the run folder.

    Raises:
        InputError: whatever the command would refuse.
    """
    return train_stage1_offline.run(
        override(Stage1Config, "stage1_offline.yaml", plain_settings(settings), "stage1")
    )


def stage2(**settings: Any) -> Path:
    """Improve a latent policy online, as ``dsrl stage2`` does. Returns the run folder.

    Raises:
        InputError: whatever the command would refuse.
    """
    given = plain_settings(settings)
    algo = chosen_algorithm([f"--{name}={given[name]}" for name in ("algo", "resume") if name in given])
    return train_stage2_online.run(override(stage2_config(algo), shipped_yaml(algo), given, "stage2"))


def evaluate(**settings: Any) -> list[dict[str, Any]]:
    """Evaluate policies and controls on the same starts, as ``dsrl eval`` does.

    Returns:
        The rows of ``evaluation.json``: the ``policy``, its ``episodes``, and ``success_once``, ``episode_return``
        and others, each with the ends of its 95 % interval under ``_low`` and ``_high``.

    Raises:
        InputError: whatever the command would refuse.
    """
    folder = eval_command.run(override(EvalConfig, "eval.yaml", plain_settings(settings), "evaluate"))
    rows: list[dict[str, Any]] = json.loads((folder / "evaluation.json").read_text())
    return rows
