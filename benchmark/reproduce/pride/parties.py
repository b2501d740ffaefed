"""Who holds which images: the paper's six parties, at its sizes or at a fraction of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.reproduce.pride import printed
from federation.datasets import Dataset, LabelledImages
from federation.datasets.splits import stratified_parts
from federation.errors import DataError
from federation.seeds import numpy_generator

CLOUD = 0
"""Party 0 is the cloud."""


@dataclass(frozen=True, eq=False)
class Points:
    """Images as rows of bytes, uint8 [count, height * width], and their labels, int64 [count]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> NDArray[np.float64]:
        """What models see: [count, height * width] in [0, 1], made anew at each call."""
        return self.images / 255

    def part(self, start: int, count: int) -> Points:
        """`count` consecutive points from `start` on."""
        return Points(self.images[start : start + count], self.labels[start : start + count])


@dataclass(frozen=True, eq=False)
class Party:
    """A party: its training points, and the slice of the test set that it calls its own."""

    number: int
    training: Points
    own_test: Points

    @property
    def name(self) -> str:
        """ "party 0" .. "party 5"."""
        return f"party {self.number}"


@dataclass(frozen=True, eq=False)
class Division:
    """The six parties, the baseline's training points and the whole test set.

    Attributes:
        scale: what the paper's sizes were divided by, rounding down.
    """

    scale: int
    parties: tuple[Party, ...]
    centralised: Points
    test: Points


def divide(dataset: Dataset, seed: int) -> Division:
    """Divide at the largest of the paper's sizes that the dataset allows: a whole fraction of them, 1 where it can.

    All images but the test split are training points here, since nobody attacks with the auxiliary ones. Each party
    gets every class in proportion, drawn by `seed`; each party's test slice is the next stretch of the test split in
    its own order, as the paper's slices are.

    Raises:
        DataError: where a party would lack a class, so that it could not train.
    """
    pool = _pool(dataset)
    test = _points(dataset.test)
    scale = max(-(-printed.CENTRALISED // len(pool)), -(-sum(printed.SLICES) // len(test)))
    sizes = [size // scale for size in printed.SIZES]
    slices = [size // scale for size in printed.SLICES]
    rest = printed.CENTRALISED // scale - sum(sizes)
    parts = _drawn(pool.labels, [*sizes, rest, len(pool) - sum(sizes) - rest], seed)
    parties = tuple(
        Party(number, _points(pool.select(part)), test.part(start, count))
        for number, (part, start, count) in enumerate(
            zip(parts[:6], accumulate(slices, initial=0), slices, strict=False)
        )
    )
    for party in parties:
        if len(np.unique(party.training.labels)) < dataset.class_count or not len(party.own_test):
            raise DataError(f"{dataset.name} is too small for {party.name}: it would lack a class or a test image")
    return Division(scale, parties, _points(pool.select(torch.cat(parts[:7]))), test)


def _pool(dataset: Dataset) -> LabelledImages:
    splits = (dataset.training, dataset.auxiliary, dataset.victims)
    return LabelledImages(torch.cat([part.images for part in splits]), torch.cat([part.labels for part in splits]))


def _points(images: LabelledImages) -> Points:
    return Points(images.images.flatten(1).numpy(), images.labels.numpy())


def _drawn(labels: torch.Tensor, sizes: list[int], seed: int) -> list[torch.Tensor]:
    """Indices for each size, every class in proportion, from an order that `seed` decides."""
    order = torch.from_numpy(numpy_generator("pride division", seed).permutation(len(labels)))
    return [order[part] for part in stratified_parts(labels[order], sizes)]
