"""Run folders written by hand: the rows of a healthy run, and changes that make it ill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dsrl_offpolicy.agents.stage2_config import Stage2Config
from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.configs.loading import to_plain

KL_RUN = Stage2Config(
    regularizer="kl", target_kl=10.0, init_temperature=1.0, utd_ratio=10.0, batch_size=128, reward_scale=1.0
)
ENTROPY_RUN = Stage2Config(
    regularizer="entropy", backup_entropy=True, utd_ratio=10.0, batch_size=128, reward_scale=1.0
)
STAGE1_RUN = Stage1Config()

Course = float | Callable[[float], float]
"""A metric: one number, or a function of the progress from 0 to 1."""


def stage2_rows(count: int = 40, **changes: Course) -> list[dict[str, float | int]]:
    """Rows of a healthy Stage 2, 1000 gradient steps apart at 10 a macro-transition, after a warm-up of 400
    transitions; 8 env steps per macro-step, 32 latent dimensions, and a policy whose KL rises to 10 nats."""
    rows = []
    for index in range(count):
        progress = index / max(count - 1, 1)
        steps = 1000 * (index + 1)
        stored = 400 + steps // 10
        row: dict[str, Any] = {
            "env_steps": 8 * stored,
            "macro_steps": stored,
            "gradient_steps": steps,
            "critic_loss": 10.0,
            "td_error": lambda p: 2 - p,
            "q_mean": lambda p: -55 + 15 * p,
            "actor_loss": lambda p: 55 - 15 * p,
            "alpha": lambda p: 1 - 0.8 * p,
            "entropy": lambda p: 37 - 8 * p,
            "kl": lambda p: 1 + 9 * p,
            "train_success": 0.8,
            "utd_effective": 10.0,
            "buffer_size": stored,
            "latent_dim": 32,
            **changes,
        }
        rows.append({name: value(progress) if callable(value) else value for name, value in row.items()})
    return rows


def stage1_rows(count: int = 20, **changes: Course) -> list[dict[str, float | int]]:
    """Rows of a healthy Stage 1."""
    rows = []
    for index in range(count):
        progress = index / max(count - 1, 1)
        row: dict[str, Any] = {
            "gradient_steps": 50 * (index + 1),
            "nll_loss": lambda p: 38.2 - 0.2 * p,
            "kl_loss": lambda p: 0.3 * p,
            "eff_num": 22.0,
            "corr_A_logprob": lambda p: 0.1 * p,
            **changes,
        }
        rows.append({name: value(progress) if callable(value) else value for name, value in row.items()})
    return rows


VERIFIED = {
    "verification": {
        "q_prior": -24.0, "q_policy": -22.0, "difference": 2.0, "difference_low": 1.5, "difference_high": 2.5,
    }
}  # fmt: skip


def write_run(
    folder: Path, config: Any, rows: Sequence[Mapping[str, float]], summary: Mapping[str, Any] | None = None
) -> Path:
    """A run folder with these rows; at its end where there is a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
