"""Evaluations that choose a stage's best policy, on starts that no table reports."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from dsrl_offpolicy.contracts import BasePolicy, LatentSource
from dsrl_offpolicy.envs.family import MacroVectorEnv
from dsrl_offpolicy.evaluation.episodes import EvaluationSummary, choosing_seeds, run_episodes, summarise
from dsrl_offpolicy.evaluation.intervals import wilson_interval
from dsrl_offpolicy.train.run import TrainingRun


def success_of(outcomes: Collection[bool]) -> dict[str, float | None]:
    """Return the success rate of episodes and its 95 % interval by Wilson, by name; nothing of no episodes."""
    return wilson_interval(sum(outcomes), len(outcomes)).named("success") if outcomes else {}


@dataclass
class Best:
    """The best evaluation of a run so far: by success, then by return; of equals the earlier.

    Attributes:
        success: its rate, -1 before the first evaluation.
        episode_return: its mean.
    """

    success: float = -1.0
    episode_return: float = -math.inf

    def improved_by(self, summary: EvaluationSummary) -> bool:
        """Take ``summary`` where it is better; returns whether it was."""
        found = (summary.success_once.value, summary.episode_return.value)
        better = found > (self.success, self.episode_return)
        if better:
            self.success, self.episode_return = found
        return better

    def state_dict(self) -> dict[str, float]:
        """Return what a save keeps."""
        return {"best": self.success, "best_return": self.episode_return}

    def load_state_dict(self, state: Any) -> None:
        """Restore it; earlier saves hold no return."""
        self.success, self.episode_return = state["best"], state.get("best_return", -math.inf)


def evaluate(
    run: TrainingRun,
    env: MacroVectorEnv,
    base: BasePolicy,
    policy: LatentSource,
    episodes: int,
    device: torch.device,
) -> EvaluationSummary:
    """Evaluate a latent policy; a signal ends the run, which makes up for the evaluation when it resumes."""
    return summarise(run_episodes(env, base, run.listening(policy), choosing_seeds(episodes), device))
