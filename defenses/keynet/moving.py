"""Tensors under monomial keys: their rows and columns are moved and scaled, nothing is mixed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defenses.keynet import pieces, runs
from defenses.keynet.monomial import ChannelKey, Floats, Integers
from federation.channels import TensorAxes
from federation.weights import Weights

GAIN_ERROR = 2.0**-23
"""Relative error of a recovered value at most, where gains were used: one float32 rounding each way (3e-8 RMS)."""

_SAME_GAIN = 1e-6
_UNKEYED = ChannelKey(np.zeros(1, dtype=np.int64), np.ones(1))

_SHORT = 32
"""Values a row up to which tensors are joined to one row: calls and loops for so few would take longer than the values."""


@dataclass(frozen=True, eq=False)
class Step:
    """One direction of a transform on a tensor [rows, columns a group]; see `runs.multiply`.

    A vector an axis is kept and not a table of the tensor's size, which spares every client its memory.

    Attributes:
        origins: uint32 [rows], which row comes to each place.
        columns: uint32 [groups, columns a group], which column of its group comes to each place.
        row_factors: float32 [rows], where they are written.
        column_factors: float32 [groups, columns a group], where they are read.
    """

    origins: runs.Places
    columns: runs.Places
    row_factors: runs.Values
    column_factors: runs.Values

    @classmethod
    def of(cls, rows: Integers, columns: Integers, row_factors: Floats, column_factors: Floats, groups: int) -> Step:
        """The step that puts entry rows[i], columns[j] of whole spaces at i, j, with the factors of i and j.

        Groups move as a whole.
        """
        within = columns.reshape(groups, -1) % (len(columns) // groups)
        by_place = column_factors.astype(np.float32).reshape(groups, -1)
        by_source = np.take_along_axis(by_place, np.argsort(within, axis=1), axis=1)
        return cls(rows.astype(np.uint32), within.astype(np.uint32), row_factors.astype(np.float32), by_source)

    @classmethod
    def joined(cls, steps: Sequence[Step]) -> Step:
        """The step of several tensors one after the other, as one row: every value has a place and a factor."""
        starts = np.cumsum([0, *(step.size for step in steps[:-1])])
        places = [start + step._sources().ravel() for start, step in zip(starts, steps, strict=True)]
        factors = [step._factors()[np.argsort(step.origins)].ravel() for step in steps]
        return cls(
            np.zeros(1, np.uint32),
            np.concatenate(places).astype(np.uint32)[None],
            np.ones(1, np.float32),
            np.concatenate(factors)[None],
        )

    @property
    def size(self) -> int:
        """Values of the tensor."""
        return len(self.origins) * self.columns.shape[1]

    @property
    def moves(self) -> bool:
        """Whether anything leaves its place."""
        stay = np.arange(self.columns.shape[1])
        return not (np.array_equal(self.origins, np.arange(len(self.origins))) and bool(np.all(self.columns == stay)))

    @property
    def scales(self) -> bool:
        """Whether any factor differs from 1."""
        return bool(np.any(np.abs(self._factors() - 1) > _SAME_GAIN))

    def unscaled(self) -> Step:
        """The same moves with all factors 1, which change no value."""
        return Step(self.origins, self.columns, np.ones_like(self.row_factors), np.ones_like(self.column_factors))

    def with_runs(self, length: int) -> Step:
        """The same for a run of so many values in place of each: the taps of a kernel, or a channel's pixels."""
        columns = self.columns[..., None].astype(np.int64) * length + np.arange(length)
        return Step(
            self.origins,
            columns.reshape(len(self.columns), -1).astype(np.uint32),
            self.row_factors,
            np.repeat(self.column_factors, length, axis=1),
        )

    def _groups(self) -> Integers:
        """[rows], the group of each row."""
        return np.arange(len(self.origins)) // (len(self.origins) // len(self.columns))

    def _factors(self) -> runs.Values:
        """[rows, columns a group], by the row where it is written and the column where it is read."""
        return self.row_factors[:, None] * self.column_factors[self._groups()]

    def _sources(self) -> Integers:
        """[rows, columns a group], the number of the value that comes to each place."""
        return self.origins[:, None].astype(np.int64) * self.columns.shape[1] + self.columns[self._groups()]


class MonomialTransform:
    """The transform of one tensor whose channel spaces have monomial keys.

    Args:
        out_key: of the space along axis 0.
        in_key: of the space along axis 1, None for a vector.
        axes: the tensor's axes.

    Attributes:
        to, back: both directions, for one value a channel; what goes back is divided by what was multiplied with, which
            leaves the fewest roundings.
    """

    def __init__(self, out_key: ChannelKey, in_key: ChannelKey | None, axes: TensorAxes) -> None:
        in_key = in_key or _UNKEYED
        in_factors = 1 / in_key.gains
        to = Step.of(out_key.permutation, in_key.permutation, out_key.gains, in_factors, axes.groups)
        # back at their places, values meet the very factors that they were multiplied with
        rows, columns = np.argsort(out_key.permutation), np.argsort(in_key.permutation)
        back = Step.of(rows, columns, out_key.gains[rows], in_factors[columns], axes.groups)
        self.scales, self.permutes = to.scales, to.moves
        self.to, self.back = (to, back) if self.scales else (to.unscaled(), back.unscaled())
        self.shape = (out_key.size, in_key.size // axes.groups * axes.in_expansion)

    @property
    def recovery_error(self) -> float:
        """Largest relative error of a value that was protected and recovered."""
        return GAIN_ERROR if self.scales else 0.0


class Movement:
    """One direction of the transforms of several tensors.

    Args:
        loop: `runs.multiply` or `runs.divide`.
        steps: by name, for one value a channel.
        shapes: of the tensors.
    """

    def __init__(self, loop: Callable[..., None], steps: Mapping[str, Step], shapes: Mapping[str, torch.Size]) -> None:
        self._loop, self._shapes = loop, shapes
        whole = {name: step.with_runs(shapes[name].numel() // step.size) for name, step in steps.items()}
        by_size = sorted(whole.items(), key=lambda item: item[1].size, reverse=True)
        self._long = {name: step for name, step in by_size if step.columns.shape[1] > _SHORT}
        self._short = {name: step.size for name, step in whole.items() if name not in self._long}
        self._joined = Step.joined([whole[name] for name in self._short]) if self._short else None
        self._folded = [name for name in self._short if len(shapes[name]) > 1]
        self._size = sum(step.size for step in whole.values())

    def apply(self, tensors: Mapping[str, Tensor]) -> Weights:
        """The moved and scaled tensors, in new memory; the short ones are parts of one block."""
        moved = {name: torch.empty(self._shapes[name]) for name in self._long}
        work = [self._piece(step, tensors[name], moved[name]) for name, step in self._long.items()]
        if self._joined is not None:
            block = torch.empty(self._joined.size)
            joined = torch.cat([tensors[name].flatten() for name in self._short])
            work.append(self._piece(self._joined, joined, block))
            parts = block.split(list(self._short.values()))
            moved |= zip(self._short, parts, strict=True)
            moved |= {name: moved[name].view(self._shapes[name]) for name in self._folded}
        pieces.run(work, self._size)
        return moved

    def _piece(self, step: Step, tensor: Tensor, moved: Tensor) -> pieces.Piece:
        rows = len(step.origins)
        return functools.partial(
            self._loop,
            tensor.numpy(force=True).reshape(rows, -1),
            step.origins,
            step.columns,
            step.row_factors,
            step.column_factors,
            moved.numpy().reshape(rows, -1),
        )
