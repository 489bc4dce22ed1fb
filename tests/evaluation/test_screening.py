"""The best constant is found on few episodes, and is the one that all episodes would have found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from small_worlds import CountingEnv, counting_spec
from tiny_worlds import HalvingPolicy, counting_vector

from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome, run_queue
from dsrl_offpolicy.evaluation.screening import Screened, screen
from dsrl_offpolicy.models.latent_sources import constant_source, prior_source


def screened(succeeds: Sequence[Sequence[bool]], slots: int = 1, order: int = 0) -> Screened:
    """A row per candidate, a column per start; with several slots the episodes end in a random order. Each takes
    10 env steps."""
    rng = np.random.default_rng(order)

    def run(queue) -> int:
        running, steps = [], 0
        while True:
            while len(running) < slots and (episode := queue.take()) is not None:
                running.append(episode)
            if not running:
                return steps
            episode = running.pop(rng.integers(len(running)))
            steps += 10
            success = bool(succeeds[episode.index][episode.seed])
            if not queue.ended(episode, EpisodeOutcome(episode.seed, success, success, -1.0, 10)):
                return steps + 10 * len(running)

    return screen([prior_source() for _ in succeeds], range(len(succeeds[0])), run)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_the_choice_is_that_of_all_episodes(slots):
    rng, fewer = np.random.default_rng(0), 0
    for case in range(200):
        table = rng.random((rng.integers(1, 9), rng.integers(1, 11))) < rng.random()
        found = screened(table, slots, order=case)
        successes = table.sum(1)
        assert found.index == successes.argmax()  # the first of equals
        assert found.episodes[found.index] == table.shape[1]
        fewer += sum(found.episodes) < table.size
    assert fewer > 100


def test_who_fails_waits_and_who_cannot_be_best_ends():
    # The first fails on start 0, so the second goes on; it succeeds on all four, and nobody can do better.
    found = screened([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    assert (found.index, found.episodes, found.env_steps) == (1, (1, 4, 0), 50)
    # Each fails once (starts 0, 1 and 0), then the first goes on, without another failure: the others could
    # only draw level with it.
    found = screened([[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1]])
    assert (found.index, found.episodes, found.env_steps) == (0, (4, 2, 1), 70)
    # The last one has failed less often than the others when it has seen all: an earlier one may draw level, so
    # the first runs until it has failed twice, the second, which fails on start 3, until the end.
    found = screened([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]])
    assert (found.index, found.episodes) == (2, (2, 4, 4))


def test_episodes_that_nobody_waits_for_are_paid_for():
    # Three slots: the first candidate's second and the other's first episode run when its first ends.
    found = screened([[1], [1], [1]], slots=3, order=1)
    assert found.env_steps == 30 and sum(found.episodes) <= 3


def test_in_environments_with_candidates_side_by_side():
    class Climb(CountingEnv):
        """Ends after 6 env steps, or with success where the sum of actions passes 1."""

        def step(self, action):
            obs, reward, _, truncated, _ = super().step(action)
            success = sum(a[0] for a in self.actions) > 1
            self.ended = truncated or success
            return obs, reward, success, truncated, {"success": success}

    latents = [0.1, 0.9, 0.2, 1.5]  # halved: only the second and the last pass 1 within 6 steps
    sources = [constant_source(torch.full((4, 1), value)) for value in latents]
    for slots, others in ((1, 1), (3, 2)):  # with three slots a second episode begins beside the first
        env = counting_vector([Climb(truncate_at=6) for _ in range(slots)], counting_spec())
        found = screen(sources, [5, 6, 7], lambda queue, env=env: run_queue(env, HalvingPolicy(), queue))
        assert found.index == 1 and found.episodes[1] == 3
        assert max(found.episodes[0], found.episodes[2]) <= others
