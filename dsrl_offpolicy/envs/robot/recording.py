"""A session on a robot as demonstrations, in ManiSkill's layout, and beside each action who chose it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.files.atomic import write_atomically

FIELDS = ("actions", "proposed", "intervened", "success", "terminated", "truncated", "rewards")
"""Of each env step. ``actions`` were sent, ``proposed`` are the policy's."""


class Recording:
    """Episodes of one session. Each is on disk, whole, before the next one begins.

    Args:
        path: an HDF5 file that does not exist; its JSON comes beside it.
        env_id: the robot.
        obs_mode: ``state`` or ``rgb``.

    Raises:
        InputError: the file exists.
    """

    def __init__(self, path: Path, env_id: str, obs_mode: str) -> None:
        if path.exists() or path.with_suffix(".json").exists():
            raise InputError(f"robot: expected a new file for the recording, {path} exists")
        self._path, self._env_id, self._obs_mode = path, env_id, obs_mode
        self._episodes: list[dict[str, Any]] = []
        self._obs: list[Any] = []
        self._steps: list[tuple[Any, ...]] = []

    def begin(self, obs: Any) -> None:
        """Note the first observation of an episode; one that was not ended is forgotten."""
        self._obs, self._steps = [copy.deepcopy(obs)], []  # environments may write into the same memory

    def see(self, obs: Any, *step: Any) -> None:
        """Note an env step: the observation after it, then the values of ``FIELDS``."""
        self._obs.append(copy.deepcopy(obs))
        self._steps.append(step)

    def end(self, counts: Mapping[str, int]) -> None:
        """Write the episode; ``counts`` go into its entry of the JSON.

        Raises:
            InputError: it cannot be written.
        """
        if not self._steps:
            return
        columns = dict(zip(FIELDS, map(np.asarray, zip(*self._steps, strict=True)), strict=True))
        with write_atomically(self._path) as temporary:
            if self._path.exists():
                shutil.copyfile(self._path, temporary)
            with h5py.File(temporary, "a") as file:
                group = file.create_group(f"traj_{len(self._episodes)}")
                _write_observations(group, self._obs)
                for name, column in columns.items():
                    group.create_dataset(name, data=column, compression="gzip")
        self._episodes.append(
            {
                "episode_id": len(self._episodes),
                "elapsed_steps": len(self._steps),
                "success": bool(columns["success"].any()),
                **counts,
            }
        )
        env_info = {"env_id": self._env_id, "env_kwargs": {"obs_mode": self._obs_mode}}
        with write_atomically(self._path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps({"env_info": env_info, "episodes": self._episodes}, indent=2))
        self._obs, self._steps = [], []


def _write_observations(group: h5py.Group, observations: list[Any]) -> None:
    """A vector as ``obs``; a mapping as ``obs/agent/state`` and an entry of ``obs/sensor_data`` per camera."""
    if not isinstance(observations[0], Mapping):
        group.create_dataset("obs", data=np.stack(observations), compression="gzip")
        return
    states = np.stack([obs["state"] for obs in observations])
    group.create_dataset("obs/agent/state", data=states, compression="gzip")
    images = np.stack([obs["rgb"] for obs in observations])
    for camera in range(images.shape[-1] // 3):
        view = images[..., 3 * camera : 3 * camera + 3]
        group.create_dataset(f"obs/sensor_data/camera_{camera}/rgb", data=view, compression="gzip")
