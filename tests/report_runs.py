"""Run folders for reports, written by hand: curves of success, the table of ``dsrl eval``, a whole quickstart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from run_rows import ENTROPY_RUN, STAGE1_RUN, VERIFIED, Course, stage1_rows, stage2_rows, write_run

from dsrl_offpolicy.configs.jobs import QuickstartConfig, Stage0Config
from dsrl_offpolicy.evaluation.intervals import wilson_interval

EPISODES = 20
"""Of every evaluation; a table has 100."""


def rate(successes: int, episodes: int) -> dict[str, float | None]:
    """The columns of a success rate."""
    return wilson_interval(successes, episodes).named("success_once")


def write_stage2(
    folder: Path, successes: Sequence[int], *, ended: bool = True, changes: Mapping[str, Course] | None = None,
    **settings: Any,
) -> Path:  # fmt: skip
    """A run of Stage 2 of 30 rows, half a minute apart, with an evaluation of 20 episodes every 10 rows."""
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(stage2_rows(30, **(changes or {}))):
        axes = {name: row[name] for name in ("env_steps", "macro_steps", "gradient_steps")}
        axes["minutes"] = (index + 1) / 2
        if index % 10 == 0 and index // 10 < len(successes):
            count = successes[index // 10]
            returned = {"return": -500.0 + count, "return_low": -510.0 + count, "return_high": -490.0 + count}
            rows.append({"group": "eval", **axes, **rate(count, EPISODES), **returned})
        rows.append({"group": "train", **row, **axes})
    config = replace(ENTROPY_RUN, **settings)
    return write_run(folder, config, rows, {"minutes": 15.0} if ended else None)


def write_table(folder: Path, successes: Mapping[str, int]) -> None:
    """The table of ``dsrl eval`` with 100 episodes per policy."""
    rows = [{"policy": name, "episodes": 100, **rate(count, 100)} for name, count in successes.items()]
    (folder / "evaluation.json").write_text(json.dumps(rows))


TABLE = {
    "base (prior noise)": 40, "w = 0": 45, "stage1 deterministic": 60, "stage1 stochastic": 58,
    "stage2 deterministic": 95, "stage2 stochastic": 93,
}  # fmt: skip


def write_quickstart(
    folder: Path, seed: int, successes: Sequence[int], table: Mapping[str, int] | None = None, **settings: Any
) -> Path:
    """A quickstart that came to its end in 40 minutes."""
    write_run(folder, QuickstartConfig(seed=seed), [], {"minutes": 40.0})
    (folder / "run.json").write_text('{"kind": "quickstart"}')
    write_run(folder / "stage0", Stage0Config(seed=seed), [], {"demonstration_success": 1.0})
    write_run(folder / "stage1", replace(STAGE1_RUN, seed=seed), stage1_rows(), {**VERIFIED, "minutes": 1.0})
    write_stage2(folder / "stage2", successes, seed=seed, **settings)
    write_table(folder, TABLE if table is None else table)
    return folder
