"""Division of a set into its splits: fixed once and for all, disjoint, stratified by class.

The division has a constant seed of its own, so that every run, whatever its seed, has the same victims. NumPy promises
the raw output of its bit generators, but not the streams drawn from it, to stay the same between versions (NEP 19):
permutations here sort raw output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.datasets.base import SPLITS, LabelledImages
from federation.errors import DataError

SPLIT_SEED = 20160217

# Shares of a set that has no official division.
SHARES: Mapping[str, float] = {"training": 0.56, "auxiliary": 0.12, "victims": 0.20, "test": 0.12}


def stable_permutation(count: int, stream: int) -> NDArray[np.int64]:
    """A permutation of `count` indices that depends on nothing but `count` and `stream`."""
    raw = np.random.PCG64([SPLIT_SEED, stream]).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64)


def share_out(count: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `count`, proportional to `shares`, each at least 1 (largest remainders).

    Raises:
        DataError: where `count` is smaller than the number of shares.
    """
    if count < len(shares):
        raise DataError(f"{count} images cannot fill {len(shares)} splits; give at least {len(shares)}")
    exact = np.asarray(shares) / sum(shares) * count
    sizes = np.floor(exact).astype(np.int64)
    for index in np.argsort(sizes - exact, kind="stable")[: count - sizes.sum()]:
        sizes[index] += 1
    while (sizes == 0).any():
        sizes[np.argmax(sizes)] -= 1
        sizes[np.argmin(sizes)] += 1
    return sizes.tolist()


def stratified_parts(labels: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Divide the indices of `labels` (int64 [N]) into parts of the given `sizes`, each class in proportion.

    A class of m images, of C classes, has in every part its proportional number of images to within 1 + m*C/N (2 where
    the classes are of one size). Returns shuffled int64 index tensors.

    Raises:
        DataError: where the sizes do not sum to N.
    """
    if sum(sizes) != len(labels):
        raise DataError(f"splits of {sum(sizes)} images in all cannot be made of {len(labels)} images")
    order = stable_permutation(len(labels), stream=0)
    shuffled = labels.numpy()[order]
    position = np.empty(len(labels))
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Sorted by the relative position within their class, any stretch of the indices holds every class in proportion.
    spread = order[np.argsort(position, kind="stable")]
    parts = np.split(spread, np.cumsum(sizes)[:-1])
    # The spread goes round the classes in turn; shuffling removes that order from the labels.
    return [
        torch.from_numpy(part[stable_permutation(len(part), stream=1 + number)]) for number, part in enumerate(parts)
    ]


def divide(whole: LabelledImages) -> dict[str, LabelledImages]:
    """Divide a set that has no official division into the four splits by `SHARES`."""
    sizes = share_out(len(whole), [SHARES[split] for split in SPLITS])
    parts = stratified_parts(whole.labels, sizes)
    return {split: whole.select(part) for split, part in zip(SPLITS, parts, strict=True)}


def divide_official(
    training: LabelledImages, test: LabelledImages, *, auxiliary: int, victims: int
) -> dict[str, LabelledImages]:
    """Keep the official `test` set and take `auxiliary` and `victims` images out of the official `training` set."""
    parts = stratified_parts(training.labels, [len(training) - auxiliary - victims, auxiliary, victims])
    return dict(zip(SPLITS, [*(training.select(part) for part in parts), test], strict=True))
