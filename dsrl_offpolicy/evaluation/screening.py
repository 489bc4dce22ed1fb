"""Find the policy that succeeds most often on given starts, without running those that cannot be it.

Every candidate has the same starts. One that has failed f times is out as soon as another has seen all starts and
failed less often, or as often where that one comes first. Whoever has failed least often goes next, so most end
after hardly more failures than the best one has; and failures are what takes an episode's whole time limit. The
choice is the one that running every candidate on every start would make.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsrl_offpolicy.contracts import LatentSource
from dsrl_offpolicy.evaluation.episodes import Episode, EpisodeOutcome, EpisodeQueue


@dataclass(frozen=True)
class Screened:
    """What was chosen, and what it cost.

    Attributes:
        index: of the candidate with the most successes, the first of several.
        episodes: that ended, of each candidate.
        env_steps: that all of them took, episodes that nobody waited for included.
    """

    index: int
    episodes: tuple[int, ...]
    env_steps: int


def screen(
    candidates: Sequence[LatentSource], seeds: Sequence[int], run: Callable[[EpisodeQueue], int]
) -> Screened:
    """Return the candidate with the most successes on all ``seeds``.

    Args:
        candidates: one at least, in order of preference where they are equal.
        seeds: starts on which nothing is reported.
        run: runs a queue and returns its env steps (:func:`~dsrl_offpolicy.evaluation.episodes.run_queue`).
    """
    race = _Race(candidates, seeds)
    env_steps = run(race)
    return Screened(race.leader, tuple(race.seen), env_steps)


class _Race:
    """The queue of a screening: whoever has failed least often goes next."""

    def __init__(self, candidates: Sequence[LatentSource], seeds: Sequence[int]) -> None:
        self._candidates, self._seeds = candidates, seeds
        self._begun = [0] * len(candidates)
        self._failures = [0] * len(candidates)
        self.seen = [0] * len(candidates)

    @property
    def leader(self) -> int:
        """Who has the fewest failures, the first of several."""
        return min(range(len(self.seen)), key=lambda i: (self._failures[i], i))

    def take(self) -> Episode | None:
        """Return an episode of whoever has the fewest failures, those that run counted as failures: episodes that
        run side by side belong to several candidates, since each may be the one that ends its candidate."""
        total = len(self._seeds)
        bound = min(((self._failures[i], i) for i, seen in enumerate(self.seen) if seen == total), default=None)
        open_ = [
            i
            for i, begun in enumerate(self._begun)
            if begun < total and (bound is None or (self._failures[i], i) < bound)
        ]
        if not open_:
            return None
        index = min(open_, key=lambda i: (self._failures[i] + self._begun[i] - self.seen[i], i))
        self._begun[index] += 1
        return Episode(index, self._candidates[index], self._seeds[self._begun[index] - 1])

    def ended(self, episode: Episode, outcome: EpisodeOutcome) -> bool:
        """Count an outcome; returns whether the choice is still open."""
        self.seen[episode.index] += 1
        self._failures[episode.index] += not outcome.success_once
        return self.seen[self.leader] < len(self._seeds)
