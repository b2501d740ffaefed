"""Independent streams of reproducible randomness, named by what they are for. Keys never come from here."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, in order, and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def torch_generator(*parts: int | str) -> torch.Generator:
    """A torch generator seeded by `seed_for(*parts)`."""
    return torch.Generator().manual_seed(seed_for(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator seeded by `seed_for(*parts)`."""
    return np.random.default_rng(seed_for(*parts))
