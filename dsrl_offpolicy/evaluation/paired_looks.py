"""Compare policies with a reference on the same starts, and stop where the answer is clear.

An exact sign test on discordant pairs (McNemar, 1947): of the starts on which the two differ, a candidate that is
no better than the reference wins each with probability 1/2 at most. There is a fixed number of looks, and the
error rate is divided by looks and candidates (Bonferroni). So the probability that any candidate is called above
the reference although it is not is at most ``error_rate``; the same holds for below. Giving a candidate up early
can only lower it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dsrl_offpolicy.contracts import LatentSource
from dsrl_offpolicy.evaluation.choosing_start import Evaluate
from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome
from dsrl_offpolicy.evaluation.intervals import Interval, sign_test, wilson_interval

LOOKS = 4
"""Looks at a comparison, after equal shares of the starts."""
ERROR_RATE = 0.05
"""Probability at most that any candidate is called above where none is."""

Standing = Literal["above", "below", "open"]
"""What has been shown; ``open``: neither."""

STANDINGS: dict[Standing, str] = {"above": "above", "below": "below", "open": "not shown"}
"""How tables call it."""


@dataclass
class Compared:
    """A policy's episodes on the starts of a comparison.

    Attributes:
        outcomes: in the order of the starts.
        wins: starts on which it succeeded and the reference did not.
        losses: the reverse.
        standing: against the reference; ``open`` for the reference itself.
    """

    outcomes: list[EpisodeOutcome] = field(default_factory=list)
    wins: int = 0
    losses: int = 0
    standing: Standing = "open"

    @property
    def episodes(self) -> int:
        """n."""
        return len(self.outcomes)

    @property
    def successes(self) -> int:
        """Episodes that succeeded at least once."""
        return sum(o.success_once for o in self.outcomes)

    @property
    def success(self) -> Interval:
        """Their share, with Wilson's 95 % interval."""
        return wilson_interval(self.successes, self.episodes)

    @property
    def env_steps(self) -> int:
        """What the episodes took."""
        return sum(o.length for o in self.outcomes)


def look_counts(episodes: int) -> list[int]:
    """Return the episodes after which to look, in equal shares; the last is all of them."""
    return sorted({math.ceil(episodes * look / LOOKS) for look in range(1, LOOKS + 1)})


def compare_paired(
    reference: Sequence[EpisodeOutcome],
    candidates: Mapping[str, LatentSource],
    evaluate: Evaluate,
    *,
    error_rate: float = ERROR_RATE,
    told: Callable[[str, Compared], None] = lambda name, compared: None,
) -> dict[str, Compared]:
    """Run candidates on the starts of ``reference``, look by look.

    A candidate goes on after a look unless it is below; or can no longer become above, whatever it does on the
    starts that are left; or has no more wins than losses after half of them. Once one is above, the others stop
    and it runs on all starts.

    Args:
        reference: outcomes on all starts.
        candidates: by name.
        evaluate: runs a candidate on starts, given by their seeds.
        error_rate: see the module.
        told: hears of every candidate after every look.
    """
    compared = {name: Compared() for name in candidates}
    counts = look_counts(len(reference))
    level = error_rate / (len(counts) * max(1, len(candidates)))
    alive = list(candidates)

    def run(name: str, until: int) -> None:
        _run(compared[name], candidates[name], reference[compared[name].episodes : until], evaluate)

    for count in counts:
        for name in alive:
            run(name, count)
            one = compared[name]
            one.standing = _standing(one, level)
            told(name, one)
        if above := [name for name in alive if compared[name].standing == "above"]:
            for name in [name for name in above if count < len(reference)]:
                run(name, len(reference))
                told(name, compared[name])
            break
        alive = [name for name in alive if _may_become_above(compared[name], reference, level)]
    return compared


def run_until_below(
    reference: Sequence[EpisodeOutcome],
    source: LatentSource,
    evaluate: Evaluate,
    *,
    rows: int,
    whole: bool = False,
    error_rate: float = ERROR_RATE,
) -> Compared:
    """Run one of several policies on the starts of ``reference``, look by look, until it is shown to be below.

    One that is above, or of which nothing is shown, runs on all starts; what a look has shown stays.

    Args:
        reference: outcomes on all starts.
        source: the policy.
        evaluate: runs it on starts, given by their seeds.
        rows: how many are compared with the reference.
        whole: run it on all starts even where it is below.
        error_rate: see the module, for all rows together.
    """
    one = Compared()
    counts = look_counts(len(reference))
    for count in counts:
        _run(one, source, reference[one.episodes : count], evaluate)
        if one.standing == "open":
            one.standing = _standing(one, error_rate / (len(counts) * rows))
        if one.standing == "below" and not whole:
            break
    return one


def _run(one: Compared, source: LatentSource, pairs: Sequence[EpisodeOutcome], evaluate: Evaluate) -> None:
    new = evaluate(source, [pair.seed for pair in pairs])
    one.outcomes += new
    for mine, other in zip(new, pairs, strict=True):
        one.wins += mine.success_once and not other.success_once
        one.losses += other.success_once and not mine.success_once


def _standing(one: Compared, level: float) -> Standing:
    if sign_test(one.wins, one.losses) <= level:
        return "above"
    return "below" if sign_test(one.losses, one.wins) <= level else "open"


def _may_become_above(one: Compared, reference: Sequence[EpisodeOutcome], level: float) -> bool:
    if one.standing == "below" or (2 * one.episodes >= len(reference) and one.wins <= one.losses):
        return False
    to_win = sum(not pair.success_once for pair in reference[one.episodes :])
    return sign_test(one.wins + to_win, one.losses) <= level
