"""Frame stacks of demonstrations have the same features whether a policy encodes single frames or whole stacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_worlds import HalvingPolicy

from dsrl_offpolicy.contracts import Encoding
from dsrl_offpolicy.demos.trajectory import Demonstrations, Trajectory
from dsrl_offpolicy.demos.windows import WindowSpec, cut_windows
from dsrl_offpolicy.errors import InputError
from dsrl_offpolicy.train import demonstrations
from dsrl_offpolicy.train.demonstrations import encode_windows


class _Images:
    def __init__(self, images: np.ndarray) -> None:
        self._images, self.shape = images, images.shape

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows):
        return self._images[rows]


class _Stacks(HalvingPolicy):
    """Encodes whole stacks only: a state and the mean of its images' channels per frame."""

    def encode(self, obs):
        self.encoded = getattr(self, "encoded", 0) + 1
        if isinstance(obs, torch.Tensor):
            return Encoding(obs.flatten(1))
        return Encoding(torch.cat((obs["rgb"].float().mean((2, 3)), obs["state"]), -1).flatten(1))


class _Frames(_Stacks):
    def encode(self, obs):
        raise AssertionError("frames can be encoded once")

    def encode_frames(self, state, rgb=None):
        return state if rgb is None else torch.cat((rgb.float().mean((1, 2)), state), -1)


def _demos(images: bool) -> Demonstrations:
    rng, trajectories = np.random.default_rng(0), []
    for n in (5, 1, 7):
        flags = np.zeros(n, bool)
        held = _Images(rng.integers(0, 255, (n + 1, 4, 4, 3)).astype(np.uint8)) if images else None
        obs, actions = rng.normal(size=(n + 1, 2)).astype(np.float32), np.zeros((n, 1), np.float32)
        trajectories.append(Trajectory(obs, actions, flags, flags, flags, None, held))
    return Demonstrations(path=Path("x"), trajectories=tuple(trajectories))


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("at_once", [4, 256])
def test_a_policy_of_whole_stacks_gets_the_same_features(images, at_once, monkeypatch):
    monkeypatch.setattr(demonstrations, "ENCODED_AT_ONCE", at_once)
    demos = _demos(images)
    windows = cut_windows(demos.trajectories, "", WindowSpec(2, 4, 2, 0.9, "sparse", 1.0, True))
    frames = encode_windows(demos, windows.rows, _Frames(), torch.device("cpu"))
    policy = _Stacks()
    stacks = encode_windows(demos, windows.rows, policy, torch.device("cpu"))
    assert frames.shape == (13, 2 * (2 + 3 * images)) and torch.equal(frames, stacks)
    assert policy.encoded == (7 if at_once == 4 else 1)  # 2 stacks of 2 frames at once, or all
    mixed = np.random.default_rng(1).permutation(13)
    assert torch.equal(encode_windows(demos, windows.rows[mixed], policy, torch.device("cpu")), frames[mixed])


def test_a_policy_that_reads_more_than_demonstrations_hold_is_told_what():
    class Instructed(_Stacks):
        def encode(self, obs):
            return Encoding(obs["instruction"])

    demos = _demos(True)
    rows = cut_windows(demos.trajectories, "", WindowSpec(2, 4, 2, 0.9, "sparse", 1.0, True)).rows
    with pytest.raises(InputError, match="demo_path: the base policy reads the observation 'instruction'"):
        encode_windows(demos, rows, Instructed(), torch.device("cpu"))
