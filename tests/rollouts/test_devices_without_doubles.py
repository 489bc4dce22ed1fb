"""What environments return reaches a device that has no float64 (MPS): the meta device plays one here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsrl_offpolicy.contracts import observation_tensors
from dsrl_offpolicy.demos.windows import Windows
from dsrl_offpolicy.rollouts.collector import Collector
from dsrl_offpolicy.train.demonstrations import to_batch


class NoDoubles(TorchDispatchMode):
    """Refuses what MPS refuses."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "meta" and out.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out


def test_the_stand_in_refuses_doubles():
    with pytest.raises(TypeError, match="float64"), NoDoubles():
        torch.as_tensor(np.zeros(2), device="meta")


def test_observations_are_cast_on_the_host():
    with NoDoubles():
        obs = observation_tensors({"state": np.zeros((2, 1, 3)), "rgb": np.zeros((2, 1, 4), np.uint8)}, "meta")
    assert (obs["state"].dtype, obs["rgb"].dtype) == (torch.float32, torch.uint8)
    assert observation_tensors(np.full(2, 0.1), "cpu").tolist() == [pytest.approx(0.1)] * 2


def test_rewards_are_cast_on_the_host():
    collector = Collector.__new__(Collector)
    collector.device = torch.device("meta")
    with NoDoubles():
        assert collector._tensor(np.zeros(3), torch.float32).dtype == torch.float32


def test_windows_are_cast_on_the_host():
    rows, zeros = np.zeros((2, 1), np.int64), np.zeros(2)
    windows = Windows(rows, np.zeros((2, 4, 1)), rows, zeros, zeros, np.zeros(2, np.int64))
    with NoDoubles():
        assert to_batch(windows, torch.zeros(3, 2, device="meta")).reward.dtype == torch.float32
