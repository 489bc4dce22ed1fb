"""Numbers in files of demonstrations that no cast may turn into something else."""

from __future__ import annotations

import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.formats.maniskill_hdf5 import write_demonstrations
from dsrl_offpolicy.demos.trajectory import Trajectory
from dsrl_offpolicy.errors import InputError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path, flags = tmp_path / "made.h5", np.zeros(3, bool)
    obs, actions = np.zeros((4, 2), np.float32), np.zeros((3, 2), np.float32)
    trajectory = Trajectory(obs, actions, flags, flags, flags, np.zeros(3, np.float32))
    write_demonstrations(path, [trajectory], {"env_id": "x", "env_kwargs": {"control_mode": "c"}}, [1])
    return path


def _put(path: Path, field: str, data: np.ndarray) -> None:
    with h5py.File(path, "r+") as handle:
        del handle[f"traj_0/{field}"]
        handle[f"traj_0/{field}"] = data


@pytest.mark.parametrize(
    ("field", "data"),
    [
        ("rewards", np.array([0, 1e300, 0])),  # finite, and infinite as float32
        ("obs", np.full((4, 2), -1e39)),
        ("obs/agent/qpos", np.full((4, 2), 1e200)),
        ("success", np.array([0, np.nan, 1])),  # NaN would be true
        ("terminated", np.array([0, np.inf, 0])),
        ("truncated", np.array([np.nan, 0, 0], np.float32)),
    ],
)
def test_numbers_that_a_cast_would_change_are_refused_in_one_line(file, field, data):
    if "/" in field:
        with h5py.File(file, "r+") as handle:
            del handle["traj_0/obs"]
            handle[f"traj_0/{field}"] = data
    else:
        _put(file, field, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be a second line
        with pytest.raises(InputError) as error:
            read_demonstrations(file)
    message = str(error.value)
    assert f"'{field.split('/')[0]}'" in message and "traj_0" in message and "\n" not in message


def test_flags_may_be_numbers(file):
    _put(file, "success", np.array([0.0, 0.0, 1.0]))
    assert read_demonstrations(file).trajectories[0].success.tolist() == [False, False, True]
