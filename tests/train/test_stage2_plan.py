"""Settings of Stage 2 that would train nothing, or keep nothing, are refused before anything starts."""

from __future__ import annotations

import pytest
import torch
from tiny_worlds import TASK, TINY_WIDTHS

from dsrl_offpolicy.buffers.macro_replay_buffer import MacroReplayBuffer
from dsrl_offpolicy.contracts import MacroTransitions
from dsrl_offpolicy.errors import InputError


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--actor_update_every", 100000], ["actor_update_every: expected at most", "would never be trained"]),
        (["--replay_buffer_size", 3], ["replay_buffer_size: expected at least num_envs 4, got 3"]),
        (["--action_magnitude", "1e308"], ["action_magnitude"]),
        (["--init_temperature", "1e39"], ["init_temperature"]),
    ],
    ids=lambda value: str(value[0]),
)
def test_it_is_refused_in_one_line(flags, words, tiny_base, run_command, tmp_path) -> None:
    argv = ["--env_id", TASK, "--awsc_checkpoint", tiny_base, "--out", tmp_path / "run", *TINY_WIDTHS]
    steps = ["--num_envs", 4, "--total_timesteps", 1000, "--warmup_steps", 200, "--utd_ratio", 2]
    done = run_command(["stage2", *argv, *steps, *flags])
    assert done.status == 2 and done.err.count("\n") == 1
    assert all(word in done.err for word in words), done.err
    assert not (tmp_path / "run").exists()


def test_a_ring_does_not_take_more_rows_at_once_than_it_has() -> None:
    buffer = MacroReplayBuffer(2, 1, 1, generator=torch.Generator())
    no, ones = torch.zeros(3, dtype=torch.bool), torch.ones(3, 1)
    with pytest.raises(InputError, match="at least the 3 rows"):
        buffer.add(MacroTransitions(ones, ones, ones[:, 0], ones, no, no, torch.ones(3).int()), gamma=0.9)
    assert len(buffer) == 0
