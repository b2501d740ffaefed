"""Which location and which pixel each row and column of a keyed convolution stands for, from where its entries stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse

from attacks.adaptive.grid.refinement import Colours, fingerprints, match_graphs
from attacks.adaptive.grid.template import ConvolutionTemplate, Integers, KeyNotFoundError


@dataclass(frozen=True, eq=False)
class GridPlaces:
    """Rows by location and columns by pixel, in the attacker's frame, which is the template in one of its poses.

    Which output channel a row belongs to, and which input channel a column, the places of entries do not say; nor which
    of several pixels that the same windows have.

    Attributes:
        rows: [locations, outputs], the rows of each location, in no particular order.
        columns: [pixels, inputs], the columns of each pixel, in no particular order among pixels of one class; -1 for a
            pixel that no window has.
        classes: [pixels], a number for each set of pixels that the same windows have.
    """

    rows: Integers
    columns: Integers
    classes: Integers

    @property
    def has_twins(self) -> bool:
        """Whether some pixels are in the same windows."""
        return bool(np.bincount(self.classes + 1)[1:].max() > 1)


def find_places(support: scipy.sparse.csr_array, template: ConvolutionTemplate) -> GridPlaces:
    """Match the entries of a keyed matrix with the template.

    Rows of one location have the same entries in all output channels, and columns of one pixel in all input channels:
    these twins are put together first, and what is left is matched by colour refinement.

    Args:
        support: [rows, columns] of the block [W] alone, without homogeneous coordinate; only where its entries stand
            is looked at.
        template: the layer as everybody knows it.

    Raises:
        KeyNotFoundError: where the entries are not those of the template, or symmetries other than its poses are left.
    """
    ours, theirs = _Quotient.of(template.support), _Quotient.of(_ones(support))
    if ours.row_sizes.max() > 1 or len(ours.rows) < template.locations:
        raise KeyNotFoundError("several locations of this convolution have the same pixels, or one has none")
    if (
        np.any(theirs.row_sizes != template.outputs)
        or ours.graph.shape != theirs.graph.shape
        or ours.graph.nnz != theirs.graph.nnz
    ):
        raise KeyNotFoundError("the entries do not stand where a keyed convolution of this shape has them")
    sizes = ours.column_sizes * template.inputs, theirs.column_sizes
    matching = match_graphs(ours.graph, theirs.graph, *(counts.astype(np.uint64) for counts in sizes))
    if matching is None:
        raise KeyNotFoundError("the entries do not form the grid of a keyed convolution of this shape")
    if matching.choices > len(template.symmetries):
        raise KeyNotFoundError(
            f"the grid of this convolution can be moved onto itself in {matching.choices} ways, of which "
            f"{len(template.symmetries)} are reflections and turns"
        )
    rows = np.empty((template.locations, template.outputs), np.int64)
    rows[ours.rows[np.argsort(ours.row_classes)][matching.rows]] = theirs.members_of_rows(template.outputs)
    columns = np.full((template.pixels, template.inputs), -1, np.int64)
    in_order = np.argsort(matching.columns[theirs.column_classes], kind="stable")
    columns[ours.columns[np.argsort(ours.column_classes, kind="stable")]] = theirs.columns[in_order].reshape(
        -1, template.inputs
    )
    classes = np.full(template.pixels, -1, np.int64)
    classes[ours.columns] = ours.column_classes
    return GridPlaces(rows, columns, classes)


def place_rows(support: scipy.sparse.csr_array, template: ConvolutionTemplate, columns: Integers) -> GridPlaces:
    """The rows' locations where the columns are known already, from the layer before.

    Args:
        support, template: see `find_places`.
        columns: [pixels, inputs].

    Raises:
        KeyNotFoundError: where no location has a row's pixels: another layer, or another pose than the columns'.
    """
    names = fingerprints(template.pixels)
    of_column = np.zeros(support.shape[1], np.uint64)
    of_column[columns] = names[:, None]
    with np.errstate(over="ignore"):
        windows = (template.support @ names) * np.uint64(template.inputs)
    found = _ones(support) @ of_column
    order = np.argsort(windows)
    locations = order[np.minimum(np.searchsorted(windows[order], found), len(windows) - 1)]
    sizes = np.bincount(locations, minlength=template.locations)
    if not np.array_equal(windows[locations], found) or np.any(sizes != template.outputs):
        raise KeyNotFoundError("the rows' entries are not those of this convolution's windows")
    rows = np.argsort(locations, kind="stable").reshape(template.locations, template.outputs)
    return GridPlaces(rows, columns, np.arange(template.pixels))


@dataclass(frozen=True, eq=False)
class _Quotient:
    """A matrix's support with twins put together; rows and columns without entries are left out.

    Attributes:
        rows, columns: those that have entries.
        row_classes, column_classes: for each of them, its class.
        graph: uint64 [row classes, column classes].
    """

    rows: Integers
    columns: Integers
    row_classes: Integers
    column_classes: Integers
    graph: scipy.sparse.csr_array

    @classmethod
    def of(cls, support: scipy.sparse.csr_array) -> _Quotient:
        row_names, column_names = (fingerprints(size) for size in support.shape)
        rows, row_classes, first_rows = _classes(support @ column_names)
        columns, column_classes, first_columns = _classes(support.T @ row_names)
        graph = support[first_rows][:, first_columns].tocsr()
        return cls(rows, columns, row_classes, column_classes, graph)

    @property
    def row_sizes(self) -> Integers:
        """[row classes], members."""
        return np.bincount(self.row_classes)

    @property
    def column_sizes(self) -> Integers:
        """[column classes], members."""
        return np.bincount(self.column_classes)

    def members_of_rows(self, size: int) -> Integers:
        """[row classes, size], where all have this size."""
        return self.rows[np.argsort(self.row_classes, kind="stable")].reshape(-1, size)


def _classes(hashes: Colours) -> tuple[Integers, Integers, Integers]:
    """The places whose hash is not 0, that of nothing; their classes of equal ones; and each class's first place."""
    (present,) = np.nonzero(hashes)
    if not len(present):
        raise KeyNotFoundError("there are no entries")
    _, first, classes = np.unique(hashes[present], return_index=True, return_inverse=True)
    return present, classes, present[first]


def _ones(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((np.ones(matrix.nnz, np.uint64), matrix.indices, matrix.indptr), shape=matrix.shape)
