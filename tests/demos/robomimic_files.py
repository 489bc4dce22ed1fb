"""Small HDF5 files in robomimic's layout.

What robomimic 0.3's ``dataset_states_to_obs.py`` writes: a group ``data`` with the attributes ``total`` (steps in
all) and ``env_args`` (JSON of ``env_name``, ``type``, ``env_version``, ``env_kwargs``); per demonstration
``data/demo_i`` with the attributes ``num_samples`` and ``model_file``, the data sets ``actions [n, A]`` and
``states`` (float64), ``rewards [n]`` (float64), ``dones [n]`` (int64), and the groups ``obs`` and, unless
``--exclude-next-obs``, ``next_obs`` with a data set ``[n, ...]`` per observation; and ``mask`` with lists of
names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

PARTS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
ENV_ARGS: dict[str, Any] = {
    "env_name": "Lift",
    "type": 1,
    "env_version": "1.4.1",
    "env_kwargs": {
        "reward_shaping": False,
        "controller_configs": {"type": "OSC_POSE", "control_delta": True},
        "control_freq": 20,
    },
}


def write_robomimic(
    path: Path,
    steps: Sequence[int] = (5, 7),
    *,
    parts: dict[str, int] = PARTS,
    cameras: Sequence[str] = (),
    next_obs: bool = True,
    env_args: dict[str, Any] = ENV_ARGS,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Write demonstrations that succeed in their last two steps; return arrays by ``demo_i``, n + 1 frames."""
    rng, written = np.random.default_rng(seed), {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"], data.attrs["env_args"] = sum(steps), json.dumps(env_args, indent=4)
        for i, n in enumerate(steps):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = n, "<mujoco/>"
            frames = {name: rng.normal(size=(n + 1, width)) for name, width in parts.items()}
            for camera in cameras:
                frames[f"{camera}_image"] = rng.integers(0, 256, (n + 1, 6, 8, 3), dtype=np.uint8)
            arrays = {
                "actions": rng.uniform(-1, 1, (n, 7)),
                "states": rng.normal(size=(n, 32)),
                "rewards": (np.arange(n) >= n - 2).astype(np.float64),
                "dones": (np.arange(n) >= n - 2).astype(np.int64),
            }
            for name, array in arrays.items():
                demo.create_dataset(name, data=array)
            for name, array in frames.items():
                demo.create_dataset(f"obs/{name}", data=array[:-1], compression="gzip")
                if next_obs:
                    demo.create_dataset(f"next_obs/{name}", data=array[1:], compression="gzip")
            written[f"demo_{i}"] = {**arrays, **frames}
        file.create_dataset("mask/train", data=np.array([b"demo_0"]))
    return written
