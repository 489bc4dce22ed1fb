"""A dataset with videos that LeRobot itself writes is read: `make test-lerobot` runs this where LeRobot is."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot", reason="needs LeRobot (make test-lerobot)")

from dsrl_offpolicy.base_policies.lerobot_library import lerobot_classes
from dsrl_offpolicy.demos.format import read_demonstrations

CAMERAS = ("top", "wrist")


def _images(n: int, phase: int) -> np.ndarray:
    """Ramps ``[n, 64, 96, 3]`` whose red is another in every frame."""
    red, green, blue = np.meshgrid(
        np.arange(n) * 7 + phase * 40, np.arange(64) * 3, np.arange(96) * 2, indexing="ij"
    )
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def test_what_lerobot_writes_is_read(tmp_path: Path, monkeypatch) -> None:
    """Numbers are equal; an AV1 frame is within 3 levels of its image in the mean, another frame 7 levels of red
    away (7/3 in the mean of all colours), so every frame must also be nearest to its own image."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lerobot_classes("base")  # makes torchvision importable
    dataset_class = importlib.import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    image = {"dtype": "video", "shape": (64, 96, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "gripper"]},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    } | {f"observation.images.{camera}": image for camera in CAMERAS}
    dataset = dataset_class.create("me/made", fps=10, features=features, root=tmp_path / "set", use_videos=True)
    rng, put = np.random.default_rng(0), []
    for episode, n in enumerate((12, 7, 15)):
        arrays = {
            "observation.state": rng.normal(size=(n, 3)).astype(np.float32),
            "action": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            "next.success": np.arange(n)[:, None] >= n - 2,
        } | {f"observation.images.{camera}": _images(n, episode + i) for i, camera in enumerate(CAMERAS)}
        for t in range(n):
            dataset.add_frame({name: values[t] for name, values in arrays.items()} | {"task": "lift"})
        dataset.save_episode()
        put.append(arrays)
    dataset.finalize()

    demos = read_demonstrations(tmp_path / "set", need_images=True)
    assert demos.has_gripper and [len(t) for t in demos.trajectories] == [12, 7, 15]
    for arrays, trajectory in zip(put, demos.trajectories, strict=True):
        np.testing.assert_array_equal(trajectory.obs[:-1], arrays["observation.state"])
        np.testing.assert_array_equal(trajectory.actions, arrays["action"])
        assert trajectory.success.tolist() == arrays["next.success"][:, 0].tolist()
        assert trajectory.images is not None
        read = torch.from_numpy(trajectory.images.read(slice(None))[:-1]).float()
        sent = np.concatenate([arrays[f"observation.images.{camera}"] for camera in CAMERAS], axis=-1)
        apart = torch.cdist(read.flatten(1), torch.from_numpy(sent).float().flatten(1), p=1) / sent[0].size
        assert apart.diagonal().max() < 3
        assert apart.argmin(1).tolist() == list(range(len(trajectory)))
