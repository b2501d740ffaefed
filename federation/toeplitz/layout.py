"""Where the values of one linear layer stand in its matrix: a placement that is computed once and filled many times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse

Indices = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ToeplitzLayout:
    """The placement of a layer's values in the homogeneous matrix [W b; 0 1], in CSR order.

    The matrix acts on [x; 1], x a feature map flattened channel by channel and row by row (C*H*W numbers). Entry k, in
    row r with indptr[r] <= k < indptr[r + 1], stands in column indices[k] and holds value sources[k] of the layer: a
    weight of the kernel as `weight.ravel()` counts it, then a bias, and as value number `value_count` the constant 1 of
    the last row. Columns increase within a row. Zeros of the padding are no entries; weights that are zero are.

    Attributes:
        indptr: int32 [rows + 1].
        indices: int32 [entries].
        sources: int32 [entries], in [0, value_count].
        shape: (rows, columns), both with the homogeneous coordinate.
        value_count: the number of values of the layer.
        rows_per_channel: the rows of one output channel, consecutive; no value stands in rows of two channels (but for
            pooling, whose values are constants).
    """

    indptr: Indices
    indices: Indices
    sources: Indices
    shape: tuple[int, int]
    value_count: int
    rows_per_channel: int

    @property
    def entries(self) -> int:
        """The number of stored entries, the constant 1 of the last row among them."""
        return len(self.indices)

    @cached_property
    def placements(self) -> Indices:
        """[value_count], in how many entries each value stands."""
        return np.bincount(self.sources, minlength=self.value_count + 1)[:-1].astype(np.int32)

    @cached_property
    def separate(self) -> npt.NDArray[np.int64]:
        """The values that stand in no entry (taps that only ever meet padding): whoever needs them carries them apart."""
        return np.flatnonzero(self.placements == 0)

    def matrix(self, values: npt.ArrayLike) -> scipy.sparse.csr_array:
        """The matrix in float64 for these values, [value_count]."""
        data = np.append(np.asarray(values, np.float64), 1.0)[self.sources]
        return scipy.sparse.csr_array((data, self.indices, self.indptr), shape=self.shape)

    def mean_values(self, matrix: scipy.sparse.csr_array) -> Floats:
        """The inverse of `matrix`: each value as the mean over its entries, [value_count]; NaN for the separate ones.

        Args:
            matrix: of this shape; entries that are no entries of this layout are ignored.
        """
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        data = np.asarray(matrix[rows, self.indices], np.float64).ravel()
        totals = np.bincount(self.sources, weights=data, minlength=self.value_count + 1)[:-1]
        with np.errstate(invalid="ignore"):
            return np.asarray(totals / self.placements)


def assemble(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    sources: npt.NDArray[np.int64],
    shape: tuple[int, int],
    value_count: int,
    rows_per_channel: int,
) -> ToeplitzLayout:
    """A layout from triplets in any order, none twice; the constant 1 of the last row is added.

    Args:
        rows, columns, sources: [entries], of the block [W b].
        shape: (rows, columns), both with the homogeneous coordinate.
        value_count, rows_per_channel: see `ToeplitzLayout`.
    """
    rows = np.append(rows, shape[0] - 1)
    columns = np.append(columns, shape[1] - 1)
    numbers = np.append(sources, value_count).astype(np.int32)
    found = scipy.sparse.coo_array((numbers, (rows.astype(np.int32), columns.astype(np.int32))), shape=shape).tocsr()
    found.sort_indices()
    assert found.nnz == len(rows), "no entry may be given twice"
    return ToeplitzLayout(found.indptr, found.indices, found.data, shape, value_count, rows_per_channel)
