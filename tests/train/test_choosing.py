"""What chooses a stage's best policy: starts of its own, and one order of evaluations."""

from __future__ import annotations

import inspect

import pytest
import torch

from dsrl_offpolicy.configs.jobs import Stage1Config
from dsrl_offpolicy.evaluation.episodes import EpisodeOutcome, evaluation_seeds, summarise
from dsrl_offpolicy.evaluation.intervals import mean_interval
from dsrl_offpolicy.train import choosing
from dsrl_offpolicy.train.choosing import Best
from dsrl_offpolicy.train.train_stage1_offline import verify


def summary(success: int, episode_return: float):
    return summarise([EpisodeOutcome(i, i < success, False, episode_return, 10) for i in range(4)])


def test_the_best_is_by_success_then_by_return_then_the_earlier() -> None:
    best, kept = Best(), []
    course = [(0, -9.0), (0, -5.0), (0, -7.0), (1, -8.0), (1, -8.0), (0, -1.0)]
    for number, (success, episode_return) in enumerate(course):
        if best.improved_by(summary(success, episode_return)):
            kept.append(number)
    assert kept == [0, 1, 3]
    restored = Best()
    restored.load_state_dict(best.state_dict())
    assert restored == best
    restored.load_state_dict({"best": 0.25})  # of a save that knew no returns: the next of equal success is taken
    assert restored.improved_by(summary(1, -8.0))


def test_what_is_chosen_on_is_not_reported_on(monkeypatch) -> None:
    asked = []

    def run_episodes(env, base, source, seeds, device):
        asked.extend(seeds)
        return [EpisodeOutcome(seed, True, True, 0.0, 1) for seed in seeds]

    monkeypatch.setattr(choosing, "run_episodes", run_episodes)

    class Run:
        def listening(self, source):
            return source

    inspect.unwrap(choosing.evaluate)(Run(), None, None, None, 20, None)  # without the check of types
    assert len(set(asked)) == 20 and not set(asked) & set(evaluation_seeds(100_000))


class Paired:
    """An agent whose Q under the policy is above the prior's by the first feature."""

    def paired_q(self, states, samples):
        return torch.zeros(len(states)), states[:, 0]


def test_held_out_states_of_one_episode_are_one_value() -> None:
    by_episode = [1.0, 2.0, 6.0]
    episodes = torch.tensor([7] * 50 + [8] * 20 + [9] * 10)
    states = torch.tensor([by_episode[int(e) - 7] for e in episodes])[:, None]
    states[:25] -= 0.5
    states[25:50] += 0.5
    found = inspect.unwrap(verify)(Paired(), states, episodes, Stage1Config(verify_states=80))
    expected = mean_interval(torch.tensor(by_episode).numpy())
    assert found["difference"] == pytest.approx(expected.value)
    assert found["difference_low"] == pytest.approx(expected.low)
    assert found["difference_high"] == pytest.approx(expected.high)
    assert (found["states"], found["episodes"]) == (80, 3)


def test_one_held_out_episode_has_no_interval() -> None:
    states, episodes = torch.arange(9.0)[:, None], torch.zeros(9, dtype=torch.int64)
    found = inspect.unwrap(verify)(Paired(), states, episodes, Stage1Config())
    assert found["difference"] == 4.0 and found["episodes"] == 1
    assert "difference_low" not in found and "difference_high" not in found
