"""Replay: discounts, the ring, sampling, and the files that restore it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_agents import seeded

from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.buffers.replay_files import ReplayFiles
from dsrl_offpolicy.contracts import MacroTransitions
from dsrl_offpolicy.errors import InputError


def replay(capacity: int = 4, seed: int = 0) -> MacroReplayBuffer:
    return MacroReplayBuffer(capacity, 2, 3, generator=seeded(seed))


def store(
    buffer: MacroReplayBuffer,
    names: list[float],
    *,
    terminated: list[bool] | None = None,
    truncated: list[bool] | None = None,
    n_steps: list[int] | None = None,
    gamma: float = 0.5,
) -> None:
    """Store one transition per name; every field of it can be told from its name."""
    count, name = len(names), torch.tensor(names)
    buffer.add(
        MacroTransitions(
            obs_features=name[:, None].expand(count, 2),
            latent=name[:, None].expand(count, 3) + 100,
            reward=name + 200,
            next_obs_features=name[:, None].expand(count, 2) + 300,
            terminated=torch.tensor(terminated or [False] * count),
            truncated=torch.tensor(truncated or [False] * count),
            n_steps=torch.tensor(n_steps or [1] * count),
        ),
        gamma=gamma,
    )


def test_discount_is_gamma_to_the_executed_steps_unless_terminated() -> None:
    buffer = replay()
    # gamma = 1/2, H = 4: a whole chunk, one cut short by a time limit (bootstraps), one cut short and terminated,
    # one that terminated in its last step
    store(
        buffer,
        [0.0, 1.0, 2.0, 3.0],
        n_steps=[4, 3, 2, 4],
        terminated=[False, False, True, True],
        truncated=[False, True, False, False],
    )
    assert buffer.discount.tolist() == [0.0625, 0.125, 0.0, 0.0]
    assert buffer.terminated.tolist() == [False, False, True, True]
    assert buffer.truncated.tolist() == [False, True, False, False]
    assert buffer.n_steps.tolist() == [4, 3, 2, 4]


def test_termination_in_the_last_step_of_a_time_limit_does_not_bootstrap() -> None:
    buffer = replay()
    store(buffer, [0.0], n_steps=[2], terminated=[True], truncated=[True])
    assert buffer.discount[0].item() == 0.0


def test_samples_hold_whole_transitions() -> None:
    buffer = replay()
    store(buffer, [1.0, 2.0, 3.0], n_steps=[1, 2, 3])
    batch = buffer.sample(50)
    name = batch.obs_features[:, 0]
    assert set(name.tolist()) == {1.0, 2.0, 3.0}
    assert torch.equal(batch.obs_features, name[:, None].expand(50, 2))
    assert torch.equal(batch.latent, name[:, None].expand(50, 3) + 100)
    assert torch.equal(batch.reward, name + 200)
    assert torch.equal(batch.next_obs_features, name[:, None].expand(50, 2) + 300)
    assert torch.equal(batch.discount, 0.5**name)


def test_only_filled_rows_are_sampled() -> None:
    buffer = replay(capacity=1000)
    store(buffer, [5.0, 6.0])
    assert len(buffer) == 2
    assert set(buffer.sample(200).obs_features[:, 0].tolist()) == {5.0, 6.0}


def test_the_oldest_transitions_make_room() -> None:
    buffer = replay(capacity=4)
    for first in (0.0, 3.0, 6.0):
        store(buffer, [first, first + 1, first + 2])
    # 0..8 stored in a ring of 4: 5, 6, 7, 8 remain; 8 sits where 4 was, at row 8 mod 4 = 0
    assert len(buffer) == 4
    assert buffer.total_added == 9
    assert buffer.obs_features[:, 0].tolist() == [8.0, 5.0, 6.0, 7.0]
    assert buffer.reward.tolist() == [208.0, 205.0, 206.0, 207.0]
    assert set(buffer.sample(200).obs_features[:, 0].tolist()) == {5.0, 6.0, 7.0, 8.0}


def test_sampling_is_uniform_over_the_stored_rows() -> None:
    buffer = replay(capacity=4)
    store(buffer, [0.0, 1.0, 2.0, 3.0])
    counts = torch.bincount(buffer.sample(4000).obs_features[:, 0].long(), minlength=4)
    assert (counts - 1000).abs().max() < 150  # standard deviation 27


def test_sampling_is_reproduced_by_the_generator_alone() -> None:
    draws = []
    for global_seed, seed in ((0, 7), (1, 7), (0, 8)):
        torch.manual_seed(global_seed)
        buffer = replay(capacity=64, seed=seed)
        store(buffer, [float(i) for i in range(64)])
        draws.append(buffer.sample(32).reward.tolist())
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


FIELDS = MacroReplayBuffer._FIELDS


def assert_same_buffers(first: MacroReplayBuffer, second: MacroReplayBuffer) -> None:
    assert (len(first), first.total_added) == (len(second), second.total_added)
    for name in FIELDS:
        assert torch.equal(getattr(first, name)[: len(first)], getattr(second, name)[: len(first)]), name
    one, other = first.sample(40), second.sample(40)
    assert torch.equal(one.reward, other.reward)


@pytest.mark.parametrize("saves", [[3], [11], [3, 2, 0, 9], [5, 8, 8, 8]])
def test_saved_files_restore_the_buffer_however_often_it_was_saved(tmp_path: Path, saves: list[int]) -> None:
    original, files = replay(capacity=8, seed=1), ReplayFiles(tmp_path)
    written: set[str] = set()
    for count in saves:
        for i in range(count):
            store(original, [float(original.total_added + i)], terminated=[i % 2 == 0])
        original.sample(5)
        state = files.save(original)
        files.discard_older()
        new = {path.name for path in tmp_path.glob("*.pt")} - written
        assert len(new) == int(count > 0)  # a save writes what is new and nothing else
        written |= new
    torch.save(state, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    restored, again = replay(capacity=8, seed=99), ReplayFiles(tmp_path)
    again.load(restored, state)
    assert_same_buffers(original, restored)
    for buffer, folder in ((original, files), (restored, again)):
        store(buffer, [50.0, 51.0], n_steps=[2, 3], terminated=[True, False])
        state = folder.save(buffer)
    third = replay(capacity=8, seed=0)
    ReplayFiles(tmp_path).load(third, state)
    assert_same_buffers(original, third)
    # of a ring of 8 no more files are kept than the last two saves need
    assert len(list(tmp_path.glob("*.pt"))) <= len(saves) + 1


def test_files_that_no_checkpoint_lists_are_dropped_after_the_next_save(tmp_path: Path) -> None:
    buffer, files = replay(capacity=8), ReplayFiles(tmp_path)
    store(buffer, [1.0, 2.0])
    state = files.save(buffer)
    store(buffer, [3.0])
    files.save(buffer)  # and then the process was killed before its checkpoint was written
    restored = replay(capacity=8)
    again = ReplayFiles(tmp_path)
    again.load(restored, state)
    assert len(restored) == 2
    store(restored, [4.0, 5.0])
    state = again.save(restored)
    again.discard_older()
    names = [entry["name"] for entry in state["files"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == names and len(names) == 2


def test_replay_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    buffer, files = replay(capacity=4), ReplayFiles(tmp_path)
    store(buffer, [1.0, 2.0, 3.0])
    state = files.save(buffer)
    with pytest.raises(InputError, match="replay_buffer_size: expected 4 as when it was saved, got 2"):
        files.load(replay(capacity=2), state)
    path = tmp_path / state["files"][0]["name"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + b"x" + whole[-19:])
    with pytest.raises(InputError, match=r"the replay file .* was altered"):
        files.load(replay(capacity=4), state)
    path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        files.load(replay(capacity=4), state)


def test_rows_that_the_ring_does_not_hold_are_refused() -> None:
    buffer = replay(capacity=4)
    for half in ([0.0, 1.0, 2.0], [3.0, 4.0, 5.0]):
        store(buffer, half)
    assert buffer.rows(2, 6)["reward"].tolist() == buffer.reward[torch.tensor([2, 3, 0, 1])].tolist()
    with pytest.raises(InputError, match="expected transitions between 2 and 6, got 1 to 6"):
        buffer.rows(1, 6)
    with pytest.raises(InputError, match=r"latent: expected shape \(1, \d+\) of torch.float32, got \(1, 9\)"):
        buffer.put_rows(0, 1, {**buffer.rows(5, 6), "latent": torch.zeros(1, 9)})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["obs_features", "latent", "reward", "next_obs_features"])
def test_non_finite_numbers_are_refused_and_leave_the_buffer_alone(field: str, bad: float) -> None:
    buffer = replay()
    store(buffer, [1.0])
    values = {
        "obs_features": torch.zeros(2, 2),
        "latent": torch.zeros(2, 3),
        "reward": torch.zeros(2),
        "next_obs_features": torch.zeros(2, 2),
    }
    values[field].view(-1)[-1] = bad
    flags = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(InputError, match="expected finite"):
        buffer.add(
            MacroTransitions(
                **values,
                terminated=flags,
                truncated=flags,
                n_steps=torch.ones(2, dtype=torch.int64),
            ),
            gamma=0.9,
        )
    assert len(buffer) == 1
    assert buffer.total_added == 1


def test_an_empty_buffer_cannot_be_sampled_or_be_of_no_size() -> None:
    with pytest.raises(InputError, match="empty buffer"):
        replay().sample(1)
    with pytest.raises(InputError, match="replay_buffer_size"):
        replay(capacity=0)
