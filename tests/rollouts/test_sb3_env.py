"""Several latent environments as Stable-Baselines3 sees them."""

from __future__ import annotations

import numpy as np
import pytest
from small_worlds import CountingEnv, counting_spec
from tiny_worlds import HalvingPolicy, counting_vector

sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra sb3")

from dsrl_offpolicy.models.latent_layout import LatentLayout  # noqa: E402
from dsrl_offpolicy.rollouts.latent_env import LatentVectorEnv  # noqa: E402
from dsrl_offpolicy.rollouts.sb3_env import SB3VecEnv  # noqa: E402


def _vector(*worlds: CountingEnv) -> SB3VecEnv:
    layout = LatentLayout("full", 4, 1, slice(1, 3), 2.0)
    inner = counting_vector(worlds, counting_spec(gamma=0.5))
    return SB3VecEnv(LatentVectorEnv(inner, HalvingPolicy(), layout, gamma=0.5))


def test_ends_come_with_the_true_last_observation_and_their_cause():
    vector = _vector(CountingEnv(truncate_at=3), CountingEnv(terminate_at=3), CountingEnv())
    vector.seed(7)
    assert vector.reset().tolist() == [[7, 0, 7, 0], [8, 0, 8, 0], [9, 0, 9, 0]]
    _, _, ended, infos = vector.step(np.zeros((3, 4), np.float32))
    assert not ended.any() and "terminal_observation" not in infos[0]
    features, reward, ended, infos = vector.step(np.zeros((3, 4), np.float32))
    assert ended.tolist() == [True, True, False] and reward.tolist() == [3, 3, 3 + 0.5 * 4]
    assert infos[0]["terminal_observation"].tolist() == [7, 2, 7, 3]
    assert [info.get("TimeLimit.truncated") for info in infos] == [True, False, None]
    assert [info["n_steps"] for info in infos] == [1, 1, 2]
    assert features[0, 1] == features[1, 1] == 0 and features[2].tolist() == [9, 3, 9, 4]


def test_sac_of_the_library_learns_on_several_at_once():
    vector = _vector(CountingEnv(truncate_at=4), CountingEnv(truncate_at=4))
    learner = sb3.SAC("MlpPolicy", vector, gamma=0.25, learning_starts=8, batch_size=4, device="cpu")
    learner.learn(20)
    assert learner.num_timesteps == 20 and learner._n_updates > 0
    assert learner.replay_buffer.timeouts[1].all()  # a time limit is not stored as a termination
