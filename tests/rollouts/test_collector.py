"""What the collector stores: true last observations, the decoded latent, honest counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_worlds import CountingEnv, counting_spec
from tiny_worlds import HalvingPolicy, counting_vector

from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.evaluation.episodes import run_episodes
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_sources import constant_source, prior_source, squashed_prior_source
from dsrl_offpolicy.rollouts.collector import Collector
from dsrl_offpolicy.seeding import FIRST_EVALUATION_SEED

GAMMA = 0.5


def _collector(envs, policy=None, mode="full", seed=0):
    policy = policy or HalvingPolicy()
    layout = LatentLayout(mode, *policy.info.latent_shape, policy.info.executed_rows, 2.0)
    buffer = MacroReplayBuffer(50, policy.info.feature_dim, layout.dim, generator=torch.Generator().manual_seed(0))
    collector = Collector(
        counting_vector(envs, counting_spec(gamma=GAMMA)),
        policy,
        layout,
        noise=torch.Generator().manual_seed(seed),
        starts=np.random.default_rng(seed),
    )
    return collector, buffer, policy


def _run(collector, macro_steps, source=None, buffer=None):
    brought = []
    for _ in range(macro_steps):
        collector.launch(source or prior_source())
        brought.append(collector.collect())
        if buffer is not None:
            buffer.add(brought[-1], gamma=GAMMA)
    return brought


@pytest.mark.parametrize("how", ["terminate_at", "truncate_at"])
def test_next_features_are_of_the_true_last_observation_and_not_of_the_next_episode(how):
    env = CountingEnv(**{how: 3})
    collector, buffer, _ = _collector([env])
    first = env.episode
    _run(collector, 2, buffer=buffer)
    second = env.episode
    assert second != first  # the episode ended and another began
    # Frames [seed, step], two of them, flattened: chunk 1 ends on step 2, chunk 2 is cut short on step 3.
    assert buffer.obs_features[:2].tolist() == [[first, 0, first, 0], [first, 1, first, 2]]
    assert buffer.next_obs_features[:2].tolist() == [[first, 1, first, 2], [first, 2, first, 3]]
    assert buffer.n_steps[:2].tolist() == [2, 1]
    _run(collector, 1, buffer=buffer)
    assert buffer.obs_features[2].tolist() == [second, 0, second, 0]  # a fresh frame stack


def test_truncation_bootstraps_and_termination_does_not():
    collector, buffer, _ = _collector([CountingEnv(terminate_at=3), CountingEnv(truncate_at=3), CountingEnv()])
    _run(collector, 2, buffer=buffer)
    assert buffer.discount[:6].tolist() == [
        GAMMA**2, GAMMA**2, GAMMA**2,  # first chunks: two env steps
        0.0, GAMMA**1, GAMMA**2,  # cut short by one: terminated, truncated; and still running
    ]  # fmt: skip
    assert buffer.terminated[:6].tolist() == [False, False, False, True, False, False]
    assert buffer.truncated[:6].tolist() == [False, False, False, False, True, False]


def test_termination_on_the_step_of_the_time_limit_does_not_bootstrap():
    collector, buffer, _ = _collector([CountingEnv(terminate_at=1, truncate_at=1)])
    _run(collector, 1, buffer=buffer)
    assert buffer.discount[0] == 0


def test_reward_is_the_discounted_sum_of_the_executed_steps():
    collector, buffer, _ = _collector([CountingEnv(terminate_at=3)])
    _run(collector, 2, buffer=buffer)
    assert buffer.reward[:2].tolist() == [1 + GAMMA * 2, 3]


def test_the_stored_latent_is_the_one_that_was_decoded_once_and_executed():
    env = CountingEnv()
    collector, buffer, policy = _collector([env])
    _run(collector, 3, constant_source(torch.tensor([[0.1], [0.2], [0.3], [0.4]])), buffer)
    assert len(policy.decoded) == 3  # one decoding a macro-step
    for step, decoded in enumerate(policy.decoded):
        assert torch.equal(buffer.latent[step], decoded.flatten())
    assert buffer.latent[0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert env.actions[:2] == [[0.1], [0.15]]  # rows 1 and 2 of half the latent: decoded once, not twice


def test_rows_that_are_not_steered_are_decoded_but_not_stored():
    collector, buffer, policy = _collector([CountingEnv()], mode="act_horizon")
    _run(collector, 1, squashed_prior_source(collector.layout), buffer)
    assert buffer.latent.shape[1] == 2  # H * A
    assert policy.decoded[0].shape == (1, 4, 1)
    assert torch.equal(buffer.latent[0], policy.decoded[0][0, 1:3, 0])


def test_training_and_evaluation_execute_the_same_rows():
    rows = torch.tensor([[0.2], [0.4], [0.6], [0.8]])
    training, evaluated = CountingEnv(truncate_at=4), CountingEnv(truncate_at=4)
    collector, _, policy = _collector([training])
    collector.launch(constant_source(rows))
    collector.collect()
    run_episodes(counting_vector([evaluated], counting_spec()), policy, constant_source(rows), [3])
    assert policy.info.executed_rows == slice(1, 3)  # o = 2, H = 2: row o-1 first
    assert training.actions == [[0.2], [0.3]]
    assert evaluated.actions == [[0.2], [0.3]] * 2


def test_env_steps_are_primitive_steps_and_transitions_one_per_environment():
    collector, buffer, _ = _collector([CountingEnv(terminate_at=3), CountingEnv()])
    brought = _run(collector, 3, buffer=buffer)
    assert [b.env_steps for b in brought] == [4, 3, 4]  # the second chunk of env 0 is cut short by one
    assert [len(b) for b in brought] == [2, 2, 2]
    assert len(buffer) == 6
    assert buffer.n_steps[:6].sum() == sum(b.env_steps for b in brought)


def test_finished_episodes_are_told_with_success_return_and_length():
    collector, *_ = _collector([CountingEnv(truncate_at=3, success_at=[2]), CountingEnv(truncate_at=4)])
    first, second = _run(collector, 2)
    assert first.finished == []
    assert second.finished == [(True, 1 + 2 + 3, 3), (False, 1 + 2 + 3 + 4, 4)]


def test_only_ended_environments_are_reset_and_with_training_seeds():
    ended, running = CountingEnv(truncate_at=2), CountingEnv()
    collector, *_ = _collector([ended, running])
    seeds = {ended.episode, running.episode}
    _run(collector, 4)
    assert ended.resets == 5 and running.resets == 1
    assert running.steps == 8
    seeds |= {ended.episode}
    assert all(0 <= seed < FIRST_EVALUATION_SEED for seed in seeds)  # never a start of the evaluation
    assert len(seeds) == 3


def test_same_generators_collect_the_same_transitions():
    columns = []
    for _ in range(2):
        collector, buffer, _ = _collector([CountingEnv(terminate_at=3), CountingEnv(truncate_at=5)], seed=4)
        _run(collector, 6, buffer=buffer)
        columns.append((buffer.latent.clone(), buffer.obs_features.clone(), buffer.reward.clone()))
    for one, other in zip(*columns, strict=True):
        assert torch.equal(one, other)
