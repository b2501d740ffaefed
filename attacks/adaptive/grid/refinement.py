"""Matching two bipartite graphs that are the same but for their numbering, by colour refinement.

Weisfeiler and Leman (1968): a vertex's next colour is a hash of its own and of its neighbours' colours. On a grid the
border spreads inwards until all vertices that no symmetry exchanges differ. What symmetries exchange is told apart by
giving one vertex a colour of its own in both graphs ("individualising"), and refining again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

Integers = npt.NDArray[np.int64]
Colours = npt.NDArray[np.uint64]

_GOLDEN, _FIRST, _SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, eq=False)
class Matching:
    """Two graphs matched.

    Attributes:
        rows, columns: for each vertex of the second graph, the vertex of the first that it is.
        choices: in how many ways the individualised vertices could have been chosen: the number of symmetries of the
            graph, where all that share a colour can be exchanged.
    """

    rows: Integers
    columns: Integers
    choices: int


def match_graphs(
    first: scipy.sparse.csr_array, second: scipy.sparse.csr_array, first_colours: Colours, second_colours: Colours
) -> Matching | None:
    """Match two bipartite graphs; None where they are not the same graph, as far as this finds.

    Args:
        first, second: [rows, columns] uint64, ones where there is an edge; no two rows, and no two columns, have the
            same neighbours.
        first_colours, second_colours: what is known of their columns beforehand: only equal ones are matched.
    """
    if first.shape != second.shape or first.nnz != second.nnz:
        return None
    pair, choices = (_Coloured.of(first, first_colours), _Coloured.of(second, second_colours)), 1
    for step in range(first.shape[1]):
        refined = _refined(*pair)
        if refined is None:
            return None
        pair = refined
        colours, counts = np.unique(pair[0].columns, return_counts=True)
        if len(colours) == first.shape[1]:
            found = _by_colour(*pair)
            return None if found is None else Matching(*found, choices)
        smallest = np.where(counts > 1, counts, counts.max() + 1).argmin()
        chosen = _individualised(*pair, colours[smallest], np.uint64(step + 1))
        if chosen is None:
            return None
        pair, choices = chosen, choices * int(counts[smallest])
    return None


def fingerprints(count: int) -> Colours:
    """[count] different pseudo-random 64-bit numbers, always the same."""
    with np.errstate(over="ignore"):
        return _mixed(np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


@dataclass(frozen=True, eq=False)
class _Coloured:
    """A graph with colours on its columns and rows."""

    graph: scipy.sparse.csr_array
    transposed: scipy.sparse.csr_array
    columns: Colours
    rows: Colours

    @classmethod
    def of(cls, graph: scipy.sparse.csr_array, columns: Colours) -> _Coloured:
        return cls(graph, graph.T.tocsr(), columns, np.zeros(graph.shape[0], np.uint64))

    def next(self) -> _Coloured:
        """One step of refinement: rows from columns, columns from rows."""
        rows = _mixed(self.graph @ _mixed(self.columns))
        return self.coloured(_mixed(self.columns + _mixed(self.transposed @ _mixed(rows))), rows)

    def coloured(self, columns: Colours, rows: Colours | None = None) -> _Coloured:
        return _Coloured(self.graph, self.transposed, columns, self.rows if rows is None else rows)


def _refined(first: _Coloured, second: _Coloured) -> tuple[_Coloured, _Coloured] | None:
    """Both refined equally often, until no colour splits; None where their colours differ."""
    with np.errstate(over="ignore"):
        known = 0
        while True:
            first, second = first.next(), second.next()
            found = len(np.unique(first.columns))
            if found == known:
                break
            known = found
    same = np.array_equal(np.sort(first.columns), np.sort(second.columns))
    return (first, second) if same and np.array_equal(np.sort(first.rows), np.sort(second.rows)) else None


def _individualised(
    first: _Coloured, second: _Coloured, colour: np.uint64, mark: np.uint64
) -> tuple[_Coloured, _Coloured] | None:
    """A column of this colour marked in both graphs, such that their colours still agree once refined."""
    marked = _marked(first, int(np.flatnonzero(first.columns == colour)[0]), mark)
    for candidate in np.flatnonzero(second.columns == colour):
        pair = marked, _marked(second, int(candidate), mark)
        if _refined(*pair) is not None:
            return pair
    return None


def _marked(graph: _Coloured, column: int, mark: np.uint64) -> _Coloured:
    columns = graph.columns.copy()
    with np.errstate(over="ignore"):
        columns[column : column + 1] = _mixed(columns[column : column + 1] + mark)
    return graph.coloured(columns)


def _by_colour(first: _Coloured, second: _Coloured) -> tuple[Integers, Integers] | None:
    """For the second graph's rows and columns, those of the first with the same colour; None where edges differ."""
    places = []
    for part in ("rows", "columns"):
        ours, theirs = getattr(first, part), getattr(second, part)
        order = np.argsort(ours)
        if len(np.unique(ours)) != len(ours):
            return None
        places.append(order[np.searchsorted(ours[order], theirs)])
    rows, columns = places
    moved = second.graph.tocoo()
    renamed = scipy.sparse.csr_array((moved.data, (rows[moved.row], columns[moved.col])), shape=first.graph.shape)
    return None if (renamed != first.graph).nnz else (rows, columns)


def _mixed(values: Colours) -> Colours:
    """A hash of each number: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * _FIRST
        values = (values ^ (values >> np.uint64(27))) * _SECOND
        return np.asarray(values ^ (values >> np.uint64(31)))
