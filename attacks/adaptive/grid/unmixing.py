"""The basis in which a key mixes the pixels of a block, found from a keyed layer's rows: which of them lack which pixel.

A key that mixes the m entries of a block by an invertible B turns the part w of a row that falls on them into w B^-1: a
combination of those rows of B^-1 whose pixels the row's window has. A window that touches a block in one pixel alone shows
that row of B^-1 up to its scale, and all output channels there show the same: parallel rows give a pixel away. Modulo the
pixels found, windows with one more pixel are parallel in their turn, until none is left. Gone through again without ever
taking one pixel p, this ends at all rows that lack it. What is orthogonal to them is column p of B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from attacks.adaptive.grid.template import Floats, Integers

TOLERANCES = 1e-7, 3e-5
"""How far unit vectors may be apart and pass for parallel: by rounding, once it has grown, of float64 and of float32."""

_SURE = 3.0
"""In tolerances: what is left of a unit vector up to this length may be rounding."""
_PROJECTIONS = 6
_SEED = 0


def block_basis(parts: Sequence[Floats], channels: int, tolerance: float) -> Floats | None:
    """[m, m], the columns of B in unknown order, each of unit norm and of either sign; None where the rows do not tell.

    Args:
        parts: [R, m] each, what rows of the layer hold in the m columns of a block, none of them all 0; several blocks
            have the same B.
        channels: output channels, at least 2: how many rows share each window.
        tolerance: one of `TOLERANCES`.
    """
    rows = np.concatenate(parts)
    blocks = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    vectors = _distinct(rows / np.linalg.norm(rows, axis=1, keepdims=True), blocks, tolerance)
    rest = _Rest(vectors, rows.shape[1], tolerance)
    columns = []
    while rest.dimensions:
        found = rest.lone_pixels(channels)
        if not len(found):
            return None
        for row in found:
            column = _without(rest, int(row), channels)
            if column is None:
                return None
            columns.append(column)
        rest = rest.modulo(found)[0]
    return np.stack(columns, axis=1)


def _without(rest: _Rest, row: int, channels: int) -> Floats | None:
    """[m], the column of B for the one pixel that `row` still has; None where some other pixel cannot be told from it."""
    while len(others := rest.lone_pixels(channels, but=row)):
        rest, row = rest.modulo(others, row)
    return rest.directions[row] if rest.dimensions == 1 else None


@dataclass(frozen=True, eq=False)
class _Rest:
    """What is left of rows modulo the pixels found.

    Attributes:
        vectors: [R, m], orthogonal to those pixels; of unit norm at first.
        dimensions: pixels not found yet.
        tolerance: see `TOLERANCES`.
    """

    vectors: Floats
    dimensions: int
    tolerance: float

    @property
    def directions(self) -> Floats:
        """[R, m] of unit norm."""
        return self.vectors / np.linalg.norm(self.vectors, axis=1, keepdims=True)

    def lone_pixels(self, channels: int, but: int = -1) -> Integers:
        """The longest vector of each set of parallel ones; without the set that has row `but`.

        Of a window's rows, one a channel, some may have a weight too small to tell: two in three make a set.
        """
        lengths = np.linalg.norm(self.vectors, axis=1)
        (sure,) = np.nonzero(lengths > _SURE * self.tolerance)
        sets = _parallel(self.directions[sure], self.tolerance)
        taken = np.bincount(sets, minlength=1) >= channels - channels // 3
        taken[sets[sure == but]] = False
        order = np.lexsort((-lengths[sure], sets))
        first = np.flatnonzero(np.diff(sets[order], prepend=-1))
        return sure[order[first]][taken[sets[order[first]]]]

    def modulo(self, rows: Integers, kept: int = 0) -> tuple[_Rest, int]:
        """What is left modulo the directions of these rows as well; and where row `kept` stands in it."""
        basis = np.linalg.qr(self.directions[rows].T)[0]
        vectors = self.vectors - (self.vectors @ basis) @ basis.T
        left = np.linalg.norm(vectors, axis=1) > _SURE * self.tolerance
        return _Rest(vectors[left], self.dimensions - len(rows), self.tolerance), int(left[:kept].sum())


def _distinct(directions: Floats, blocks: Integers, tolerance: float) -> Floats:
    """The unit vectors without those that only repeat, in another of `blocks` [R], what one block shows already."""
    sets = _parallel(directions, tolerance)
    pairs, pair, counts = np.unique(np.stack([sets, blocks]), axis=1, return_inverse=True, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    fullest = order[np.flatnonzero(np.diff(pairs[0][order], prepend=-1))]
    return directions[np.isin(pair.ravel(), fullest)]


def _parallel(directions: Floats, tolerance: float) -> Integers:
    """[R], a number for each set of unit vectors that are parallel, whatever their sign."""
    count, size = directions.shape
    if not count:
        return np.zeros(0, np.int64)
    looks = np.random.default_rng(_SEED).normal(size=(size, min(size, _PROJECTIONS)))
    seen = directions @ (looks / np.linalg.norm(looks, axis=0))
    seen = seen * np.sign(seen[:, :1])
    pairs = cKDTree(seen).query_pairs(tolerance, output_type="ndarray")
    links = scipy.sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)
