"""Compiled loops of the pixel keys: a keyed matrix's entries from a layer's values, and back, in the order of memory."""

from __future__ import annotations

import functools
import itertools
from typing import TypeAlias

import numba
import numpy as np
import numpy.typing as npt

from defenses.keynet.pieces import Piece

Indices: TypeAlias = npt.NDArray[np.int32]
Places: TypeAlias = npt.NDArray[np.uint32]
"""Unsigned: no place counts from the end, which the compiler would otherwise have to ask of every one."""
Singles: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]

_PART = 1 << 16
"""Entries that are worth handing to another thread: some 60 microseconds."""

_FEW = 16
"""Entries for every value that a part has at least, so that totals of its own cost little."""


class Relabelling:
    """Where a layer's values stand in its keyed matrix, and by what they are scaled.

    Rows are taken in the order of memory, in parts that any thread can do. Their number depends on the layer alone, so
    that sums come out the same on any number of threads.

    Args:
        indptr, indices: int32, the keyed matrix's structure in CSR; the last row is (0 ... 0 1).
        sources: int32 [entries], the number of the value in each entry but the last.
        row_gains: float64 [rows], of the output key, homogeneous coordinate included; entries are multiplied by them.
        column_gains: float64 [columns], of the input key; entries are divided by them.
        value_count: the layer's values.
    """

    def __init__(
        self,
        indptr: Indices,
        indices: Indices,
        sources: Indices,
        row_gains: Doubles,
        column_gains: Doubles,
        value_count: int,
    ) -> None:
        self._indptr, self._columns, self._sources = (part.view(np.uint32) for part in (indptr, indices, sources))
        self._there = row_gains, 1 / column_gains
        self._back = 1 / row_gains, column_gains
        self._placements = np.bincount(sources[:-1], minlength=value_count).astype(np.uint32)
        entries = len(sources) - 1
        parts = max(1, entries // max(_PART, _FEW * value_count))
        self._bounds = np.searchsorted(indptr, np.linspace(0, entries, parts + 1)).tolist()

    def filling(self, values: Singles, data: Singles) -> list[Piece]:
        """data[k] = values[sources[k]] * row_gains[row of k] / column_gains[indices[k]], rounded to float32 once.

        Args:
            values: [value_count].
            data: [entries]; is filled.
        """
        data[-1] = 1
        places = self._indptr, self._columns, self._sources
        return [
            functools.partial(_fill_rows, first, last, *places, values, *self._there, data)
            for first, last in itertools.pairwise(self._bounds)
        ]

    def adding(self, data: Singles, totals: Doubles) -> list[Piece]:
        """Part by part, the sum of each value's entries with the gains undone.

        Args:
            data: [entries].
            totals: from `new_totals`; is added to.
        """
        places = self._indptr, self._columns, self._sources
        return [
            functools.partial(_add_rows, first, last, *places, data, *self._back, own)
            for (first, last), own in zip(itertools.pairwise(self._bounds), totals, strict=True)
        ]

    def new_totals(self) -> Doubles:
        """0 for every part and value, [parts, value_count]."""
        return np.zeros((len(self._bounds) - 1, len(self._placements)))

    def means(self, totals: Doubles) -> Singles:
        """Each value as the mean of its entries, rounded to float32; 0 where it has none."""
        found = np.empty(len(self._placements), np.float32)
        _divide(totals, self._placements, found)
        return found


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fill_rows(
    first: int,
    last: int,
    indptr: Places,
    columns: Places,
    sources: Places,
    values: Singles,
    row_factors: Doubles,
    column_factors: Doubles,
    data: Singles,
) -> None:
    for row in range(first, last):
        for entry in range(indptr[row], indptr[row + 1]):
            data[entry] = values[sources[entry]] * row_factors[row] * column_factors[columns[entry]]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_rows(
    first: int,
    last: int,
    indptr: Places,
    columns: Places,
    sources: Places,
    data: Singles,
    row_factors: Doubles,
    column_factors: Doubles,
    totals: Doubles,
) -> None:
    for row in range(first, last):
        for entry in range(indptr[row], indptr[row + 1]):
            totals[sources[entry]] += data[entry] * column_factors[columns[entry]] * row_factors[row]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _divide(totals: Doubles, placements: Places, means: Singles) -> None:
    for value in range(len(means)):
        total = 0.0
        for part in range(len(totals)):
            total += totals[part, value]
        means[value] = total / max(placements[value], 1)
