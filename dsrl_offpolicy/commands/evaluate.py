"""``dsrl eval``: base policy, controls and latent policies on the same starts, in one table."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from rich.console import Console
from rich.table import Table

from dsrl_offpolicy.configs.jobs import EvalConfig
from dsrl_offpolicy.contracts import BasePolicy, LatentSource
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.evaluation.episodes import (
    EvaluationSummary,
    choosing_seeds,
    evaluation_seeds,
    run_episodes,
    summarise,
)
from dsrl_offpolicy.evaluation.intervals import Interval
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


def run(config: EvalConfig) -> Path:
    """Evaluate and write ``evaluation.csv`` and ``evaluation.json``; prints the table. Returns the run folder."""
    device = start_torch(config)
    base = load_base(config, device)
    rewards = rewards_of(base)
    if config.reward_mode is not None:
        rewards = replace(rewards, reward_mode=config.reward_mode)
    env_spec = base_env_spec(base.info, rewards, config, end_on_success=config.eval_end_on_success)
    check_fit(base.info, env_spec)
    sources = _sources(config, base, device)
    folder = create_run_folder(config.out, f"dsrl_offpolicy_eval-{config.env_id}-seed{config.seed}")
    note_other_task(base.info, config.env_id)
    with Run(folder, config) as tracker:
        env = make_vector_env(env_spec, config.num_envs)
        try:
            results = _evaluate_all(config, base, sources, env, tracker, device)
        finally:
            env.close()
        write_table(folder, results)
        tracker.write_summary({name: asdict(result) for name, result in results.items()})
    print_table(results, f"{config.env_id}, {config.episodes} episodes, 95 % intervals")
    return folder


def _sources(config: EvalConfig, base: BasePolicy, device: torch.device) -> dict[str, LatentSource]:
    zeros = torch.zeros(base.info.latent_shape, device=device)
    sources = {"base (prior noise)": prior_source(), "w = 0": constant_source(zeros)}
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
    sources: Mapping[str, LatentSource],
    env: gym.vector.VectorEnv,
    tracker: Run,
    device: torch.device,
) -> dict[str, EvaluationSummary]:
    results: dict[str, EvaluationSummary] = {}
    rows = len(sources) + (1 if config.constants else 0)
    with ProgressReport("eval", rows, "policies") as progress:

        def evaluate(name: str, source: LatentSource) -> None:
            outcomes = run_episodes(env, base, source, evaluation_seeds(config.episodes), device)
            results[name] = summarise(outcomes)
            tracker.log("eval", {f"{name}/success_once": results[name].success_once.value}, {"row": len(results)})
            progress.report(len(results), {name: results[name].success_once.value})

        for name, source in sources.items():
            evaluate(name, source)
            if name == "w = 0" and config.constants:
                evaluate(f"best of {config.constants} constants", _best_constant(config, base, env, device))
    return results


def _best_constant(
    config: EvalConfig, base: BasePolicy, env: gym.vector.VectorEnv, device: torch.device
) -> LatentSource:
    """The constant latent that did best on starts of its own (so that the table's row is unbiased)."""
    seeds = choosing_seeds(config.screening_episodes)
    best_rate, best = -1.0, None
    for source in drawn_constants(base.info.latent_shape, config.constants, config.seed, device):
        rate = summarise(run_episodes(env, base, source, seeds, device)).success_once.value
        if rate > best_rate:
            best_rate, best = rate, source
    assert best is not None
    return best


def write_table(folder: Path, results: Mapping[str, EvaluationSummary]) -> None:
    """Write ``evaluation.csv`` (a row per policy) and ``evaluation.json``."""
    rows: list[dict[str, Any]] = []
    for name, result in results.items():
        numbers = {column.replace("return", "episode_return"): value for column, value in result.numbers().items()}
        rows.append({"policy": name, "episodes": result.episodes, **numbers})
    with (folder / "evaluation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "evaluation.json").write_text(json.dumps(rows, indent=2) + "\n")


def print_table(results: Mapping[str, EvaluationSummary], title: str) -> None:
    """Print the table for a person."""
    table = Table(title=title)
    table.add_column("policy")
    for heading in ("success once", "success at end", "return", "length"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        rates, means = (result.success_once, result.success_at_end), (result.episode_return, result.length)
        cells = [*(_cell(rate, 100.0, " %") for rate in rates), *(_cell(mean) for mean in means)]
        table.add_row(name, *cells)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _cell(interval: Interval, factor: float = 1.0, unit: str = "") -> str:
    text = f"{factor * interval.value:.0f}{unit}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{factor * interval.low:.0f}, {factor * interval.high:.0f}]"


main = command(EvalConfig, "eval.yaml", "dsrl eval")(run)

if __name__ == "__main__":
    sys.exit(main())
