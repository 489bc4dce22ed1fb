"""A collector that takes over another's episodes in flight, over real simulators in processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_worlds import HalvingPolicy

from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.envs.spec import EnvSpec
from dsrl_offpolicy.envs.vector import make_vector_env
from dsrl_offpolicy.models.latent_layout import LatentLayout
from dsrl_offpolicy.models.latent_sources import prior_source
from dsrl_offpolicy.rollouts.acting import encode
from dsrl_offpolicy.rollouts.collector import Collector

LIMIT, HORIZON = 20, 4


class WidePolicy(HalvingPolicy):
    """Actions of several dimensions, a tenth of the noise."""

    def __init__(self, state_dim: int, action_dim: int) -> None:
        super().__init__(state_dim=state_dim, obs_horizon=1, rows=HORIZON, act_horizon=HORIZON)
        shape = (HORIZON, action_dim)
        self.info = replace(self.info, latent_shape=shape, action_shape=shape)

    def decode(self, encoding: Encoding, latent: torch.Tensor) -> torch.Tensor:
        return (0.3 * latent).clamp(-1, 1)


def make_collector(env, seed: int) -> tuple[Collector, MacroReplayBuffer]:
    space, actions = env.single_observation_space, env.single_action_space
    policy = WidePolicy(space.shape[-1], actions.shape[-1])
    layout = LatentLayout("full", *policy.info.latent_shape, policy.info.executed_rows, 2.0)
    buffer = MacroReplayBuffer(
        100, policy.info.feature_dim, layout.dim, generator=torch.Generator().manual_seed(0)
    )
    noise, starts = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    return Collector(env, policy, layout, noise=noise, starts=starts), buffer


@pytest.mark.parametrize(
    "env_id", ["pick-place-v3", pytest.param("LiftPegUpright-v1", marks=pytest.mark.maniskill)]
)
def test_episodes_of_different_ages_are_played_again_to_the_bit(env_id: str, request, tmp_path) -> None:
    if env_id.startswith("LiftPeg"):
        request.getfixturevalue("maniskill")
    spec = EnvSpec(env_id, act_horizon=HORIZON, max_episode_steps=LIMIT)
    env = make_vector_env(spec, 2)
    other_env = make_vector_env(spec, 2)
    try:
        collector, buffer = make_collector(env, seed=1)
        # The second slot starts anew after 3 chunks, so that the two episodes differ in age.
        for step in range(8):  # episodes of 5 chunks: both have ended once and are in flight again
            collector.launch(prior_source())
            if step == 3:
                buffer.add(collector.collect(), gamma=0.9)
                seeds = collector._draw_seeds()
                obs, _ = env.reset(seed=seeds, options={"reset_mask": np.array([False, True])})
                collector._episodes[1].seed, collector._episodes[1].chunks = seeds[1], []
                collector._encoding = encode(collector.base_policy, obs, collector.device)
            else:
                buffer.add(collector.collect(), gamma=0.9)
        collector.launch(prior_source())
        torch.save(collector.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert len({len(e["chunks"]) for e in state["episodes"]}) == 2
        other, other_buffer = make_collector(other_env, seed=2)
        assert other.load_state_dict(state)
        before = buffer.total_added
        for _ in range(7):  # the rest of these episodes, and the next ones
            for taker, taken in ((collector, buffer), (other, other_buffer)):
                taken.add(taker.collect(), gamma=0.9)
                taker.launch(prior_source())
        rows, others = buffer.rows(before, before + 14), other_buffer.rows(0, 14)
        for name, column in rows.items():
            assert torch.equal(column, others[name]), name
        assert rows["truncated"].any()
    finally:
        for vector in (env, other_env):
            vector.close()


def test_a_simulator_that_does_not_repeat_itself_begins_anew() -> None:
    env = make_vector_env(EnvSpec("pick-place-v3", act_horizon=HORIZON, max_episode_steps=LIMIT), 1)
    try:
        collector, _ = make_collector(env, seed=1)
        for _ in range(2):
            collector.launch(prior_source())
            collector.collect()
        collector.launch(prior_source())
        state = collector.state_dict()
        collector.collect()
        state["episodes"][0]["seed"] += 1  # another start: what a random simulator would come to
        other, buffer = make_collector(env, seed=2)
        assert not other.load_state_dict(state)
        seed = other._episodes[0].seed
        other.launch(prior_source())
        buffer.add(other.collect(), gamma=0.9)
        assert len(buffer) == 1
        obs, _ = env.reset(seed=[seed])  # the transition begins at a true start, with its own action
        assert torch.equal(buffer.obs_features[0], torch.as_tensor(obs[0]).flatten().float())
        assert buffer.n_steps[0].item() == HORIZON
    finally:
        env.close()
