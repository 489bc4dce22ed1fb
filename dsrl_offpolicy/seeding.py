"""Randomness: one seed for a run, independent streams for its parts."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import torch

FIRST_EVALUATION_SEED = 1_000_000
FIRST_CHOOSING_SEED = 1_500_000
FIRST_STARTING_SEED = 1_750_000
FIRST_PROBING_SEED = 1_875_000
"""The blocks of episode seeds, nowhere else written. Below the first: training and demonstrations. From it on: the
starts on which results are reported. From the second on: the starts on which the best checkpoint or a constant
latent is chosen. From the third on: those on which Stage 1 chooses what Stage 2 starts from. From the fourth on:
those of a probe. What was chosen on a start looks better on it than it is."""


def derive_seed(seed: int, stream: str) -> int:
    """Return a seed for one named part of a run, independent of the other parts."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stream.encode())]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (network initialisation uses torch's)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries draw from numpy's global generator
    torch.manual_seed(seed)


def torch_generator(seed: int, stream: str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator for one named part of a run."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, stream))


def numpy_generator(seed: int, stream: str) -> np.random.Generator:
    """Return a numpy generator for one named part of a run."""
    return np.random.default_rng(derive_seed(seed, stream))


def random_states() -> dict[str, Any]:
    """Return the states of python's, numpy's and torch's global generators, as tensors and plain values."""
    version, words, gauss = random.getstate()
    numpys: Any = np.random.get_state()  # noqa: NPY002  libraries draw from it
    name, keys, *rest = numpys
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore what :func:`random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
