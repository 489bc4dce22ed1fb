"""Reads damaged HDF5 files one after another, in a process that test_fuzzing.py can watch die.

    python tests/fuzzed_demos.py FILE FIRST LAST

Prints each seed before its file is read, and the outcome after it: a seed without one ended the process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
from mutations import damaged

from dsrl_offpolicy.demos.format import read_demonstrations
from dsrl_offpolicy.demos.trajectory import Demonstrations
from dsrl_offpolicy.errors import InputError

ENV_INFO = {
    "env_id": "x", "max_episode_steps": 9,
    "env_kwargs": {"control_mode": "c", "obs_mode": "rgb", "reward_mode": "dense", "sim_backend": "physx_cpu"},
}  # fmt: skip
META = {"env_info": ENV_INFO, "episodes": [{"episode_id": i, "control_mode": "c"} for i in range(2)]}


def make(path: Path, compression: str | None) -> Path:
    """Two demonstrations with everything that is ever read, and their JSON."""
    rng, n = np.random.default_rng(0), 5
    fields = {
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        **{name: np.zeros(n, bool) for name in ("success", "terminated", "truncated")},
        "rewards": rng.normal(size=n).astype(np.float32),
        "obs/agent/qpos": rng.normal(size=(n + 1, 3)).astype(np.float32),
        "obs/sensor_data/cam/rgb": rng.integers(0, 255, (n + 1, 4, 4, 3)).astype(np.uint8),
        "env_states/actors/peg": rng.normal(size=(n + 1, 13)).astype(np.float32),
    }
    with h5py.File(path, "w") as file:
        for i in range(2):
            for name, data in fields.items():
                file.create_dataset(f"traj_{i}/{name}", data=data, compression=compression)
    path.with_suffix(".json").write_text(json.dumps(META))
    return path


def read_all(path: Path) -> Demonstrations:
    """Everything that a file holds, images too."""
    demos = read_demonstrations(path, need_rewards=True, need_images=True, want_poses=True)
    for trajectory in demos.trajectories:
        assert trajectory.images is not None and len(trajectory.images.read(slice(None))) == len(trajectory) + 1
        assert np.isfinite(trajectory.obs).all() and np.abs(trajectory.actions).max() < 1.01
    return demos


def main(file: str, first: str, last: str) -> None:
    """Damage, read, tell."""
    data = Path(file).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demos.h5"
        path.with_suffix(".json").write_text(json.dumps(META))
        for seed in range(int(first), int(last)):
            print(seed, end=" ", flush=True)
            path.write_bytes(damaged(data, seed))
            try:
                read_all(path)
            except InputError as error:
                print("refused" if "\n" not in str(error) else f"more than a line: {error!r}", flush=True)
            except Exception as error:
                print(f"raised {type(error).__name__}", " ".join(str(error).split()), flush=True)
            else:
                print("loaded", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
