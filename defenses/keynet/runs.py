"""Compiled loops of the monomial keys: one pass over a tensor that moves its rows and columns and scales them.

Products and quotients are those of float32, value times (factor of the row * factor of the column), each rounded once,
whatever the processor. A row is read and scaled in order, which vector instructions are made for, and its columns are
moved from there. Rows are written in order and read from where the key says; since no processor can guess that, the
memory is asked for them ahead.
"""

from __future__ import annotations

from typing import TypeAlias

import numba
import numpy as np
import numpy.typing as npt

from defenses.keynet.prefetch import prefetch

Values: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.uint32]
"""Unsigned: no place counts from the end, which the compiler would otherwise have to ask of every one."""

_AHEAD = 4
"""Rows that are asked for before they are read."""

_LINE = 16
"""Values that the memory brings at once."""


@numba.njit(nogil=True, cache=True, error_model="numpy")
def multiply(
    values: Values, origins: Places, columns: Places, row_factors: Values, column_factors: Values, moved: Values
) -> None:
    """moved[r, i] = values[o, c] * (row_factors[r] * column_factors[g, c]); o = origins[r], g = r's group, c = columns[g, i].

    Args:
        values: [rows, columns a group].
        origins: [rows], which row comes to each place.
        columns: [groups, columns a group], which column comes to each place.
        row_factors: [rows], where they are written.
        column_factors: [groups, columns a group], where they are read.
        moved: like `values`; is filled.
    """
    rows, width = values.shape
    size = rows // len(columns)
    scaled = np.empty(width, np.float32)
    for row in range(rows):
        source, target, outer = values[origins[row]], moved[row], row_factors[row]
        places, inner = columns[row // size], column_factors[row // size]
        _fetch_row(values, origins[min(row + _AHEAD, rows - 1)])
        for column in range(width):
            scaled[column] = source[column] * (outer * inner[column])
        for column in range(width):
            target[column] = scaled[places[column]]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def divide(
    values: Values, origins: Places, columns: Places, row_factors: Values, column_factors: Values, moved: Values
) -> None:
    """Like `multiply`, divided by the factors."""
    rows, width = values.shape
    size = rows // len(columns)
    scaled = np.empty(width, np.float32)
    for row in range(rows):
        source, target, outer = values[origins[row]], moved[row], row_factors[row]
        places, inner = columns[row // size], column_factors[row // size]
        _fetch_row(values, origins[min(row + _AHEAD, rows - 1)])
        for column in range(width):
            scaled[column] = source[column] / (outer * inner[column])
        for column in range(width):
            target[column] = scaled[places[column]]


@numba.njit(cache=True)
def _fetch_row(values: Values, row: int) -> None:
    for column in range(0, values.shape[1], _LINE):
        prefetch(values, row, column)  # type: ignore[call-arg]  # the typing context is Numba's own argument
