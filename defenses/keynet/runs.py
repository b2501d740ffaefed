"""Compiled loops of the monomial keys: one pass over a kernel that moves its runs and scales them.

A run is what one output channel has of one input channel: the taps of a kernel, or the weights of a channel's pixels.
Products and quotients are those of float32, value times (factor of the output * factor of the input), each rounded
once, whatever the processor.
"""

from __future__ import annotations

from typing import TypeAlias

import numba
import numpy as np
import numpy.typing as npt

Values: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.uint32]
"""Unsigned: no place counts from the end, which the compiler would otherwise have to ask of every one."""


@numba.njit(nogil=True, cache=True, error_model="numpy")
def multiply(
    values: Values, targets: Places, columns: Places, out_factors: Values, in_factors: Values, taps: int, moved: Values
) -> None:
    """moved[o, run i] = values[r, run columns[g, i]] * (out_factors[o] * in_factors[g, i]); o = targets[r], g its group.

    Rows are read in order and written where they go: a store need not be waited for.

    Args:
        values: [outputs, inputs a group * taps].
        targets: [outputs], the place that each row goes to.
        columns: [groups, inputs a group], places within the group.
        out_factors: [outputs].
        in_factors: [groups, inputs a group].
        taps: values a run.
        moved: like `values`; is filled.
    """
    groups, width = columns.shape
    size = len(targets) // groups
    for block in range(groups):
        group = targets[block * size] // size  # the rows of one group go to one group
        places, inner = columns[group], in_factors[group]
        for row in range(block * size, (block + 1) * size):
            source, target, outer = values[row], moved[targets[row]], out_factors[targets[row]]
            if taps == 1:
                for run in range(width):
                    target[run] = source[places[run]] * (outer * inner[run])
                continue
            for run in range(width):
                factor = outer * inner[run]
                for tap in range(taps):
                    target[run * taps + tap] = source[places[run] * taps + tap] * factor


@numba.njit(nogil=True, cache=True, error_model="numpy")
def divide(
    values: Values, targets: Places, columns: Places, out_factors: Values, in_factors: Values, taps: int, moved: Values
) -> None:
    """Like `multiply`, divided by the factors."""
    groups, width = columns.shape
    size = len(targets) // groups
    for block in range(groups):
        group = targets[block * size] // size  # the rows of one group go to one group
        places, inner = columns[group], in_factors[group]
        for row in range(block * size, (block + 1) * size):
            source, target, outer = values[row], moved[targets[row]], out_factors[targets[row]]
            if taps == 1:
                for run in range(width):
                    target[run] = source[places[run]] / (outer * inner[run])
                continue
            for run in range(width):
                factor = outer * inner[run]
                for tap in range(taps):
                    target[run * taps + tap] = source[places[run] * taps + tap] / factor
