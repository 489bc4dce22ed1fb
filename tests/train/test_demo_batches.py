"""From windows and a table of encoded frames to the batches of Stage 0."""

from __future__ import annotations

import numpy as np
import torch

from dsrl_offpolicy.demos.windows import Windows
from dsrl_offpolicy.train.demonstrations import to_batch


def test_features_are_the_stacked_rows_of_the_table():
    # Table row f is [10 f, 10 f + 1]; a stack of rows [0, 2] is [0, 1, 20, 21], oldest frame first.
    table = torch.tensor([[0.0, 1.0], [10.0, 11.0], [20.0, 21.0], [30.0, 31.0]])
    windows = Windows(
        rows=np.array([[0, 0], [0, 2]]),
        chunks=np.full((2, 3, 1), 0.5, np.float32),
        next_rows=np.array([[0, 2], [2, 3]]),
        reward=np.array([-1.0, 0.0], np.float32),
        discount=np.array([0.9, 0.0], np.float32),
        episode=np.array([0, 0]),
    )
    batch = to_batch(windows, table)
    assert batch.features.tolist() == [[0, 1, 0, 1], [0, 1, 20, 21]]
    assert batch.next_features.tolist() == [[0, 1, 20, 21], [20, 21, 30, 31]]
    assert batch.reward.tolist() == [-1, 0] and batch.chunk.shape == (2, 3, 1)
    assert torch.equal(batch.discount, torch.tensor([0.9, 0.0]))
