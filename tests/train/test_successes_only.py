"""Behaviour cloning of successes: Stage 0 from the demonstrations that succeed alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_worlds import TINY_BASE

from dsrl_offpolicy.demos.trajectory import Demonstrations, Trajectory
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.train import pretrain_stage0
from dsrl_offpolicy.train.demonstrations import successes_of


def _demos(*succeeds: bool) -> Demonstrations:
    trajectories = []
    for number, success in enumerate(succeeds):
        never = np.zeros(3, bool)
        once = np.array([False, success, False])  # and no longer at the end
        obs = np.full((4, 2), number, np.float32)
        trajectories.append(Trajectory(obs, np.zeros((3, 1), np.float32), once, never, never, None))
    return Demonstrations(path=Path("x.h5"), env_id="arm", trajectories=tuple(trajectories))


def test_those_that_succeed_once_are_kept_in_their_order() -> None:
    found = successes_of(_demos(False, True, False, True))
    assert [t.obs[0, 0] for t in found.trajectories] == [1, 3]
    assert found.env_id == "arm"


def test_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"successes_only: .* got none of 2 in x.h5"):
        successes_of(_demos(False, False))


@pytest.mark.parametrize(("flags", "count"), [([], 6), (["--successes_only"], 2)])
def test_stage_0_learns_from_them_alone(run_command, tiny_demos, tmp_path, monkeypatch, flags, count) -> None:
    original = pretrain_stage0.load_demonstrations

    def two_succeed(*args, **options):
        demos = original(*args, **options)
        for number, trajectory in enumerate(demos.trajectories):
            trajectory.success[...] = number in (1, 4)
        return demos

    monkeypatch.setattr(pretrain_stage0, "load_demonstrations", two_succeed)
    done = run_command(["pretrain", "--demo_path", tiny_demos, "--out", tmp_path / "run", *TINY_BASE, *flags])
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["demonstrations"] == count
