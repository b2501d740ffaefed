"""Compiled loops of the pixel keys: a keyed matrix's entries from a layer's values, and back, over rows in parallel.

Threads are Python's, which the compiled code leaves free to run, and as many as PyTorch may use. Numba's own thread pool
is not used: it shares PyTorch's OpenMP, and changes how many threads (and so in which order of summation) PyTorch works.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numba
import numpy as np
import numpy.typing as npt
import torch

Indices: TypeAlias = npt.NDArray[np.int32]
Singles: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]

_FEWEST_ENTRIES = 1 << 17
"""Entries from which on a second thread saves more time than it takes to start."""


@dataclass(frozen=True, eq=False)
class Relabelling:
    """Where a layer's values stand in its keyed matrix, and by what they are scaled.

    Attributes:
        indptr, indices: int32, the keyed matrix's structure in CSR.
        sources: int32 [entries], the number of the value in each entry; `value_count` is the constant 1.
        row_gains: float64 [rows], of the output key, homogeneous coordinate included; entries are multiplied by them.
        column_gains: float64 [columns], of the input key; entries are divided by them.
        keyed_rows: int64 [rows - 1], where each row of the plain matrix [W b] stands in the keyed one.
        rows_per_channel: consecutive rows of the plain matrix that belong to one output channel.
        value_count: the layer's values.
    """

    indptr: Indices
    indices: Indices
    sources: Indices
    row_gains: Doubles
    column_gains: Doubles
    keyed_rows: npt.NDArray[np.int64]
    rows_per_channel: int
    value_count: int

    def entries(self, values: Singles) -> Singles:
        """entry[k] = values[sources[k]] * row_gains[row of k] / column_gains[indices[k]], rounded to float32 once.

        Args:
            values: [value_count].

        Returns:
            float32 [entries].
        """
        data, with_one = np.empty(len(self.indices), np.float32), np.append(values, np.float32(1))
        factors = self.row_gains, 1 / self.column_gains

        def fill(first: int, last: int) -> None:
            _fill_rows(first, last, self.indptr, self.indices, self.sources, with_one, *factors, data)

        self._in_parallel(fill, len(self.row_gains))
        return data

    def totals(self, data: Singles) -> Doubles:
        """Value by value, the sum of its entries, each with the gains undone: float64 [value_count].

        A value stands in rows of one output channel alone, so that channels can be taken in parallel and the sums come
        out the same for any number of threads.

        Args:
            data: [entries].
        """
        totals, factors = np.zeros(self.value_count), (1 / self.row_gains, self.column_gains)
        channels = self.keyed_rows, self.rows_per_channel

        def add(first: int, last: int) -> None:
            _add_channels(first, last, self.indptr, self.indices, self.sources, data, *factors, *channels, totals)

        self._in_parallel(add, len(self.keyed_rows) // self.rows_per_channel)
        return totals

    def _in_parallel(self, work: Callable[[int, int], None], count: int) -> None:
        """Do ranges of `count` rows or channels, one a thread."""
        threads = min(os.cpu_count() or 1, torch.get_num_threads(), 1 + len(self.indices) // _FEWEST_ENTRIES, count)
        if threads <= 1:
            work(0, count)
            return
        bounds = [count * part // threads for part in range(threads + 1)]
        with ThreadPoolExecutor(threads, thread_name_prefix="keynet") as pool:
            list(pool.map(work, bounds[:-1], bounds[1:]))


@numba.njit(nogil=True, cache=True)
def _fill_rows(
    first: int,
    last: int,
    indptr: Indices,
    indices: Indices,
    sources: Indices,
    values: Singles,
    row_factors: Doubles,
    column_factors: Doubles,
    data: Singles,
) -> None:
    for row in range(first, last):
        for entry in range(indptr[row], indptr[row + 1]):
            data[entry] = values[sources[entry]] * row_factors[row] * column_factors[indices[entry]]


@numba.njit(nogil=True, cache=True)
def _add_channels(
    first: int,
    last: int,
    indptr: Indices,
    indices: Indices,
    sources: Indices,
    data: Singles,
    row_factors: Doubles,
    column_factors: Doubles,
    keyed_rows: npt.NDArray[np.int64],
    rows_per_channel: int,
    totals: Doubles,
) -> None:
    for plain_row in range(first * rows_per_channel, last * rows_per_channel):
        row = keyed_rows[plain_row]
        for entry in range(indptr[row], indptr[row + 1]):
            totals[sources[entry]] += data[entry] * column_factors[indices[entry]] * row_factors[row]
