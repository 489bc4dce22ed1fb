"""One outcome per seed, whatever runs beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_worlds import CountingEnv, counting_spec
from tiny_worlds import HalvingPolicy, counting_vector

from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.errors import NonFiniteError
from dsrl_offpolicy.evaluation.episodes import (
    Episode,
    EpisodeOutcome,
    choosing_seeds,
    evaluation_seeds,
    run_episodes,
    run_queue,
)
from dsrl_offpolicy.models.latent_sources import constant_source, prior_source
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED


class _NoiseReturn(CountingEnv):
    """Rewards the action itself, so that the return tells which noise an episode met."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(action[0]), *rest


class _NanReward(CountingEnv):
    """Rewards NaN in env step 2."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, float("nan") if self.steps == 2 else reward, *rest


def _evaluate(slots: int, seeds: list[int], kind=CountingEnv, **settings):
    envs = [kind(**settings) for _ in range(slots)]
    return run_episodes(counting_vector(envs, counting_spec()), HalvingPolicy(), prior_source(), seeds), envs


def test_numbers_that_are_not_finite_are_no_outcome():
    with pytest.raises(NonFiniteError, match="expected a finite return, got nan"):
        _evaluate(1, [3], _NanReward, truncate_at=3)
    env = counting_vector([CountingEnv(truncate_at=4)], counting_spec())
    with pytest.raises(NonFiniteError, match="expected finite actions"):
        run_episodes(env, HalvingPolicy(), lambda features, noise: noise * float("nan"), [3])
    assert env.envs[0].unwrapped.actions == []  # none was sent


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_one_outcome_per_seed_in_the_order_of_the_seeds(slots):
    seeds = [9, 4, 7, 5, 6]
    outcomes, _ = _evaluate(slots, seeds, terminate_at=2, varied=5)  # 2 + seed % 5 env steps
    assert [o.seed for o in outcomes] == seeds
    assert [o.length for o in outcomes] == [6, 6, 4, 2, 3]
    assert [o.episode_return for o in outcomes] == [21, 21, 10, 3, 6]  # 1 + 2 + ... + length


def test_noise_of_an_episode_depends_on_its_seed_and_not_on_its_slot():
    seeds = [21, 22, 23, 24, 25]
    results = [_evaluate(slots, seeds, _NoiseReturn, terminate_at=3, varied=4)[0] for slots in (1, 2, 4, 7)]
    for other in results[1:]:
        assert other == results[0]
    assert len({o.episode_return for o in results[0]}) == len(seeds)  # the seeds' noises differ
    backwards = _evaluate(2, seeds[::-1], _NoiseReturn, terminate_at=3, varied=4)[0]
    assert backwards[::-1] == results[0]


def test_every_policy_meets_the_same_noise():
    def noises(scale):
        seen = []

        def listen(features, noise):
            seen.append(noise.clone())
            return noise * scale

        run_episodes(counting_vector([CountingEnv(truncate_at=4)], counting_spec()), HalvingPolicy(), listen, [3])
        return torch.stack(seen)

    assert torch.equal(noises(1.0), noises(0.0))


def test_a_slot_without_a_waiting_seed_is_not_restarted():
    _, envs = _evaluate(2, [1, 2, 3], terminate_at=3)
    assert sorted(env.resets for env in envs) == [1, 2]


def test_fewer_seeds_than_slots():
    outcomes, _ = _evaluate(3, [5], truncate_at=3)
    assert [(o.seed, o.length) for o in outcomes] == [(5, 3)]


def test_success_once_and_at_the_end_are_told_apart():
    outcomes, _ = _evaluate(1, [1], truncate_at=4, success_at=[2])
    assert (outcomes[0].success_once, outcomes[0].success_at_end) == (True, False)
    outcomes, _ = _evaluate(1, [1], truncate_at=4, success_at=[4])
    assert (outcomes[0].success_once, outcomes[0].success_at_end) == (True, True)
    outcomes, _ = _evaluate(1, [1], truncate_at=4)
    assert (outcomes[0].success_once, outcomes[0].success_at_end) == (False, False)


def test_an_environment_can_be_used_for_several_evaluations():
    env = counting_vector([CountingEnv(terminate_at=3, varied=3) for _ in range(2)], counting_spec())
    first, second = (run_episodes(env, HalvingPolicy(), prior_source(), [3, 4, 5]) for _ in range(2))
    assert first == second


def test_evaluation_starts_are_apart_from_those_of_training():
    assert evaluation_seeds(3) == [FIRST_EVALUATION_SEED + i for i in range(3)]
    assert not set(evaluation_seeds(100)) & set(choosing_seeds(10))


def test_real_metaworld_gives_the_same_outcomes_in_one_and_two_processes():
    spec = EnvSpec("lever-pull-v3", max_episode_steps=20, obs_horizon=1, act_horizon=8)
    seeds = evaluation_seeds(3)
    policy = _WidePolicy()
    results = []
    for num_envs in (2, 1):
        env = make_vector_env(spec, num_envs)
        try:
            results.append(run_episodes(env, policy, constant_source(torch.full((8, 4), 0.5)), seeds))
        finally:
            env.close()
    assert results[0] == results[1]
    assert [o.length for o in results[0]] == [20, 20, 20]  # two whole chunks and a half
    assert [o.episode_return for o in results[0]] == [-20, -20, -20]
    assert not any(o.success_once for o in results[0])


class _WidePolicy(HalvingPolicy):
    def __init__(self) -> None:
        super().__init__(state_dim=39, obs_horizon=1, rows=8, act_horizon=8)
        self.info = replace(self.info, latent_shape=(8, 4), action_shape=(8, 4), executed_rows=slice(0, 8))


def test_frames_reach_the_policy_oldest_first():
    seen = []

    class _Listening(HalvingPolicy):
        def encode(self, obs):
            seen.append(np.asarray(obs)[0].tolist())
            return super().encode(obs)

    env = counting_vector([CountingEnv(truncate_at=4)], counting_spec())
    run_episodes(env, _Listening(), prior_source(), [6])
    assert seen == [[[6, 0], [6, 0]], [[6, 1], [6, 2]]]


class _Queue:
    """Given episodes, until so many have ended."""

    def __init__(self, episodes: list[Episode], enough: int) -> None:
        self.left, self.enough = episodes[::-1], enough
        self.outcomes: dict[int, EpisodeOutcome] = {}

    def take(self) -> Episode | None:
        return self.left.pop() if self.left else None

    def ended(self, episode: Episode, outcome: EpisodeOutcome) -> bool:
        self.outcomes[episode.index] = outcome
        return len(self.outcomes) < self.enough


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_policies_side_by_side_are_what_they_are_alone(slots):
    def times(factor):
        return lambda features, noise: factor * noise

    sources, seeds = [times(1.0), times(-2.0)], [21, 22, 23]
    settings = {"terminate_at": 3, "varied": 4}
    alone = [
        run_episodes(counting_vector([_NoiseReturn(**settings)], counting_spec()), HalvingPolicy(), source, seeds)
        for source in sources
    ]
    episodes = [Episode(10 * i + s, sources[i], seed) for s, seed in enumerate(seeds) for i in (0, 1)]
    queue = _Queue(episodes, len(episodes))
    env = counting_vector([_NoiseReturn(**settings) for _ in range(slots)], counting_spec())
    steps = run_queue(env, HalvingPolicy(), queue)
    for i, outcomes in enumerate(alone):
        assert [queue.outcomes[10 * i + s] for s in range(3)] == outcomes
    assert alone[0] != alone[1]
    assert steps == 2 * (4 + 5 + 6)  # 3 + seed % 4 env steps: 21, 22, 23 leave 1, 2, 3


def test_episodes_that_are_no_longer_wanted_are_left_and_their_steps_counted():
    env = counting_vector([CountingEnv(terminate_at=2, varied=9) for _ in range(2)], counting_spec())
    # 2 + seed % 9 env steps: 3 and 7. When the first ends, after two chunks of 2, the other has made 4.
    queue = _Queue([Episode(i, prior_source(), seed) for i, seed in enumerate([1, 5, 8])], enough=1)
    assert run_queue(env, HalvingPolicy(), queue) == 3 + 4
    assert list(queue.outcomes) == [0] and len(queue.left) == 1
    again = run_episodes(env, HalvingPolicy(), prior_source(), [5, 1])
    assert [(o.seed, o.length) for o in again] == [(5, 7), (1, 3)]


def test_nothing_to_run_takes_no_steps():
    env = counting_vector([CountingEnv(truncate_at=2)], counting_spec())
    assert run_queue(env, HalvingPolicy(), _Queue([], 1)) == 0 and env.envs[0].unwrapped.resets == 0
