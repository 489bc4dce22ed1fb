"""``dsrl eval``: base policy, controls and latent policies on the same starts, in one table."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dsrl_offpolicy.configs.jobs import EvalConfig
from dsrl_offpolicy.contracts import BasePolicy, LatentSource
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.evaluation.episodes import (
    EpisodeOutcome,
    EvaluationSummary,
    choosing_seeds,
    evaluation_seeds,
    run_episodes,
    run_queue,
    summarise,
)
from dsrl_offpolicy.evaluation.intervals import Interval
from dsrl_offpolicy.evaluation.paired_looks import STANDINGS, Standing, run_until_below
from dsrl_offpolicy.evaluation.screening import screen
from dsrl_offpolicy.models.latent_sources import (
    best_of_source,
    constant_source,
    drawn_constants,
    policy_source,
    prior_source,
)
from dsrl_offpolicy.rollouts.base_env import base_env_spec, check_fit
from dsrl_offpolicy.tracking.progress import ProgressReport
from dsrl_offpolicy.tracking.run import Run, create_run_folder
from dsrl_offpolicy.train.command import command
from dsrl_offpolicy.train.start import decodes_from_features, load_base, note_other_task, rewards_of, start_torch
from dsrl_offpolicy.train.steering_files import load_steering
from dsrl_offpolicy.train.videos import BASE as BASE_CAPTION
from dsrl_offpolicy.train.videos import STEERED, Start, Videos

BASE, ZERO = "base (prior noise)", "w = 0"
"""Rows that are always there, and always of all episodes."""


@dataclass(frozen=True)
class Row:
    """A policy's row of the table.

    Attributes:
        summary: rates and means with intervals.
        env_steps: that its episodes took.
        choosing_env_steps: that it took to choose the policy, on starts of which no row tells.
        standing: against the last latent policy, where rows are compared with it.
    """

    summary: EvaluationSummary
    env_steps: int
    choosing_env_steps: int = 0
    standing: Standing | None = None

    def numbers(self) -> dict[str, Any]:
        """Return what a line of the table's files holds besides the name."""
        found = {name.replace("return", "episode_return"): value for name, value in self.summary.numbers().items()}
        costs = {"env_steps": self.env_steps, "choosing_env_steps": self.choosing_env_steps}
        return {"episodes": self.summary.episodes, **found, **costs, "standing": self.standing}


def row_of(outcomes: Sequence[EpisodeOutcome], standing: Standing | None = None) -> Row:
    """Return the row of a policy's episodes."""
    return Row(summarise(outcomes), sum(o.length for o in outcomes), standing=standing)


def run(config: EvalConfig) -> Path:
    """Evaluate and write ``evaluation.csv`` and ``evaluation.json``; prints the table. Returns the run folder.

    Raises:
        InputError: a setting that does not fit the policy, the environment or another setting.
    """
    device = start_torch(config)
    base = load_base(config, device)
    rewards = rewards_of(base)
    if config.reward_mode is not None:
        rewards = replace(rewards, reward_mode=config.reward_mode)
    env_spec = base_env_spec(base.info, rewards, config, end_on_success=config.eval_end_on_success)
    check_fit(base.info, env_spec)
    sources = _sources(config, base, device)
    reference = _reference(config)
    videos = Videos(base, env_spec, device) if config.video else None
    folder = create_run_folder(config.out, f"dsrl_offpolicy_eval-{config.env_id}-seed{config.seed}")
    note_other_task(base.info, config.env_id)
    with Run(folder, config) as tracker:
        env = make_vector_env(env_spec, config.num_envs)
        try:
            rows = _evaluate_all(config, base, sources, reference, env, tracker, device)
        finally:
            env.close()
        write_table(folder, rows)
        tracker.write_summary({name: _summary(row) for name, row in rows.items()})
        episodes = f"{'up to ' if reference else ''}{config.episodes} episodes"
        print_table(rows, f"{config.env_id}, {episodes}, 95 % intervals", reference)
        if videos is not None:
            _film(config, videos, sources, tracker)
    return folder


def _film(config: EvalConfig, videos: Videos, sources: Mapping[str, LatentSource | None], tracker: Run) -> None:
    """The base policy and the last latent policy, if there is one, on the table's first starts."""
    filmed = {BASE_CAPTION: sources[BASE]}
    if (steered := _last_latent_policy(config)) is not None:
        filmed[STEERED] = sources[steered]
    acting = {name: source for name, source in filmed.items() if source is not None}
    starts = [
        Start(f"start-{index:03d}", seed, {"start": index})
        for index, seed in enumerate(evaluation_seeds(config.video))
    ]
    with ProgressReport("video", len(starts), "videos") as progress:
        videos.write(tracker, acting, starts, progress.report)
    print(f"{len(starts)} video{'s' if len(starts) > 1 else ''} in {tracker.path / 'videos'}")


def _reference(config: EvalConfig) -> str | None:
    """The row that the others are compared with, and end where they are below it; None for no such thing."""
    if not config.end_decided_rows:
        return None
    name = _last_latent_policy(config)
    if name is None:
        raise InputError(
            "end_decided_rows: expected a latent policy to compare rows with (--stage2_checkpoint or "
            "--stage1_checkpoint), got none"
        )
    return name


def _last_latent_policy(config: EvalConfig) -> str | None:
    """The row of the latent policy that was trained last, of those given."""
    for stage, path in (("stage2", config.stage2_checkpoint), ("stage1", config.stage1_checkpoint)):
        if path is not None:
            return f"{stage} deterministic"
    return None


def _summary(row: Row) -> dict[str, Any]:
    costs = {"env_steps": row.env_steps, "choosing_env_steps": row.choosing_env_steps}
    return {**asdict(row.summary), **costs, "standing": row.standing}


def _sources(config: EvalConfig, base: BasePolicy, device: torch.device) -> dict[str, LatentSource | None]:
    """The policies of the table's rows; None for the best constant, which is to be found."""
    zeros = torch.zeros(base.info.latent_shape, device=device)
    sources: dict[str, LatentSource | None] = {BASE: prior_source(), ZERO: constant_source(zeros)}
    if config.constants:
        sources[f"best of {config.constants} constants"] = None
    if config.best_of and base.critic is not None and decodes_from_features(base, device):
        sources[f"best of {config.best_of} by Q^A"] = best_of_source(base, config.best_of)
    for stage, path in (("stage1", config.stage1_checkpoint), ("stage2", config.stage2_checkpoint)):
        if path is not None:
            policy, _ = load_steering(path, stage, f"{stage}_checkpoint", base, device)
            for name, deterministic in (("deterministic", True), ("stochastic", False)):
                sources[f"{stage} {name}"] = policy_source(policy, deterministic=deterministic)
    return sources


def _evaluate_all(
    config: EvalConfig,
    base: BasePolicy,
    sources: Mapping[str, LatentSource | None],
    reference: str | None,
    env: MacroVectorEnv,
    tracker: Run,
    device: torch.device,
) -> dict[str, Row]:
    """The rows in the order of ``sources``. The reference runs first."""
    starts = evaluation_seeds(config.episodes)
    rows: dict[str, Row] = {}
    against: list[EpisodeOutcome] = []

    def evaluate(source: LatentSource, seeds: Sequence[int]) -> list[EpisodeOutcome]:
        return run_episodes(env, base, source, seeds, device)

    def row(name: str, source: LatentSource) -> Row:
        if reference is None or name == reference:
            outcomes = evaluate(source, starts)
            if name == reference:
                against.extend(outcomes)
            return row_of(outcomes)
        whole = name in (BASE, ZERO)
        found = run_until_below(against, source, evaluate, rows=len(sources) - 1, whole=whole)
        return row_of(found.outcomes, found.standing)

    with ProgressReport("eval", len(sources), "policies") as progress:
        for name in sorted(sources, key=lambda name: name != reference):  # stable
            source, cost = sources[name], 0
            if source is None:
                source, cost = _best_constant(config, base, env, device)
            rows[name] = replace(row(name, source), choosing_env_steps=cost)
            success = rows[name].summary.success_once
            tracker.log("eval", {f"{name}/success_once": success.value}, {"row": len(rows)})
            progress.report(len(rows), {name: success.value}, {"policy": name, **success.named("success")})
    return {name: rows[name] for name in sources}


def _best_constant(
    config: EvalConfig, base: BasePolicy, env: MacroVectorEnv, device: torch.device
) -> tuple[LatentSource, int]:
    """The constant latent that did best on starts of its own (so that the table's row is unbiased), and the env
    steps that it took to find it."""
    drawn = drawn_constants(base.info.latent_shape, config.constants, config.seed, device)
    starts = choosing_seeds(config.screening_episodes)
    found = screen(drawn, starts, lambda queue: run_queue(env, base, queue, device))
    return drawn[found.index], found.env_steps


def write_table(folder: Path, rows: Mapping[str, Row]) -> None:
    """Write ``evaluation.csv`` (a row per policy) and ``evaluation.json``."""
    lines = [{"policy": name, **row.numbers()} for name, row in rows.items()]
    with (folder / "evaluation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    (folder / "evaluation.json").write_text(json.dumps(lines, indent=2) + "\n")


def print_table(rows: Mapping[str, Row], title: str, reference: str | None = None) -> None:
    """Print the table for a person; with ``reference``, how rows stand against that one."""
    table = Table(title=title)
    table.add_column("policy")
    for heading in ("n", "success once", "success at end", "return", "length", "env steps"):
        table.add_column(heading, justify="right")
    if reference is not None:
        table.add_column("standing")
    for name, row in rows.items():
        result = row.summary
        rates, means = (result.success_once, result.success_at_end), (result.episode_return, result.length)
        cells = [*(_cell(rate, 100.0, " %") for rate in rates), *(_cell(mean) for mean in means)]
        standing = [] if reference is None else [STANDINGS[row.standing] if row.standing else ""]
        table.add_row(name, str(result.episodes), *cells, f"{row.env_steps:,}", *standing)
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    console.print(table)
    for name, row in rows.items():
        if row.choosing_env_steps:
            console.print(f"{name}: chosen on other starts, which took {row.choosing_env_steps:,} env steps more.")
    if reference is not None:
        console.print(
            f"standing: against {reference}. A row ends once it is shown to be below; the first two and that one "
            "never do (docs/statistics.md)."
        )


def _cell(interval: Interval, factor: float = 1.0, unit: str = "") -> str:
    text = f"{factor * interval.value:.0f}{unit}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{factor * interval.low:.0f}, {factor * interval.high:.0f}]"


main = command(EvalConfig, "eval.yaml", "dsrl eval")(run)

if __name__ == "__main__":
    sys.exit(main())
