"""Randomness: one seed for a run, independent streams for its parts."""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch

FIRST_EVALUATION_SEED = 1_000_000
"""Episode seeds below it are for training and demonstrations, from it on for evaluation: no policy is evaluated on
a start it was trained on."""


def derive_seed(seed: int, stream: str) -> int:
    """A seed for one named part of a run, independent of the other parts."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stream.encode())]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (network initialisation uses torch's)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries draw from numpy's global generator
    torch.manual_seed(seed)


def torch_generator(seed: int, stream: str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one named part of a run."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, stream))


def numpy_generator(seed: int, stream: str) -> np.random.Generator:
    """A numpy generator for one named part of a run."""
    return np.random.default_rng(derive_seed(seed, stream))
