"""Choose what Stage 2 starts from: by evaluation, with few episodes for the candidates that fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dsrl_offpolicy.contracts import LatentSource
from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome, starting_seeds, summarise
from dsrl_offpolicy.evaluation.intervals import sign_test

CLEARLY = 0.01
"""Level of the test by which a kept candidate gives way. The one that it is held against is the best of many."""

Evaluate = Callable[[LatentSource, Sequence[int]], list[EpisodeOutcome]]


@dataclass
class Trial:
    """A candidate and the episodes that were spent on it."""

    source: LatentSource
    outcomes: list[EpisodeOutcome] = field(default_factory=list)

    @property
    def score(self) -> tuple[float, float]:
        """Success rate, then mean return."""
        n = len(self.outcomes)
        return sum(o.success_once for o in self.outcomes) / n, sum(o.episode_return for o in self.outcomes) / n


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        name: of the candidate.
        trials: of all candidates.
        env_steps: that all of them took.
    """

    name: str
    trials: Mapping[str, Trial]
    env_steps: int

    def rows(self) -> dict[str, dict[str, float]]:
        """Return success with its interval and the episodes of each candidate, by name."""
        rows = {}
        for name, trial in self.trials.items():
            numbers = summarise(trial.outcomes).row()
            shown = {key: value for key, value in numbers.items() if key.startswith(("success_once", "return"))}
            rows[name] = {"episodes": float(len(trial.outcomes)), **shown}
        return rows


def choose_start(
    candidates: Mapping[str, LatentSource],
    reference: str,
    evaluate: Evaluate,
    *,
    first: int,
    last: int,
    kept: str | None = None,
) -> Choice:
    """Choose the best candidate by successive halving (Jamieson and Talwalkar, 2016), paired.

    All see the same starts, on which nothing else is chosen or reported. After ``first`` episodes the worse half
    is dropped, the others go on to twice as many, and so on, until one of them and the reference have seen
    ``last``. That one is chosen if it did at least as well as the reference there, by success, then by return.

    One candidate may be ``kept``: it is never dropped, and gives way to what would be chosen without it only where
    that is clearly better on the same starts, by a one-sided exact sign test at ``CLEARLY``.

    Args:
        candidates: by name, in order of preference where they are equal.
        reference: name of the one that is never dropped: the base policy's prior.
        evaluate: runs a candidate on starts.
        first: episodes before anything is dropped.
        last: most episodes per candidate.
        kept: name of the candidate to keep; None for none.
    """
    trials = {name: Trial(source) for name, source in candidates.items()}
    seeds = starting_seeds(last)
    always = [reference] if kept is None else [reference, kept]
    alive = [name for name in trials if name not in always]
    count = min(first, last)
    while True:
        for name in (*always, *alive):
            trial = trials[name]
            if new := seeds[len(trial.outcomes) : count]:
                trial.outcomes += evaluate(trial.source, new)
        alive.sort(key=lambda name: trials[name].score, reverse=True)  # stable: earlier ones win ties
        if count == last and len(alive) <= 1:
            break
        alive = alive[: max(1, len(alive) // 2)]
        count = min(2 * count, last)
    better = bool(alive) and trials[alive[0]].score >= trials[reference].score
    chosen = alive[0] if better else reference
    if kept is not None and not _clearly_better(trials[chosen], trials[kept]):
        chosen = kept
    env_steps = sum(o.length for trial in trials.values() for o in trial.outcomes)
    return Choice(chosen, trials, env_steps)


def _clearly_better(one: Trial, other: Trial) -> bool:
    """By success, where both have seen the same starts."""
    pairs = [(a.success_once, b.success_once) for a, b in zip(one.outcomes, other.outcomes, strict=True)]
    return sign_test(pairs.count((True, False)), pairs.count((False, True))) <= CLEARLY
