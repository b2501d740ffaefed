"""Tensors under monomial keys: their rows and columns are moved and scaled, nothing is mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defenses.keynet import runs
from defenses.keynet.monomial import ChannelKey, Floats, Integers
from federation.channels import TensorAxes
from federation.weights import Weights

GAIN_ERROR = 2.0**-23
"""Relative error of a recovered value at most, where gains were used: one float32 rounding each way (3e-8 RMS)."""

_SAME_GAIN = 1e-6
_UNKEYED = ChannelKey(np.zeros(1, dtype=np.int64), np.ones(1))


@dataclass(frozen=True, eq=False)
class _Step:
    """One direction of a transform: what comes to each place, and the factors there.

    A vector an axis is kept and not a table of the kernel's size, which spares every client its memory.

    Attributes:
        targets: uint32 [outputs], the place that each row goes to.
        columns: uint32 [groups, inputs a group], within the group.
        out_factors: float32 [outputs].
        in_factors: float32 [groups, inputs a group].
    """

    targets: runs.Places
    columns: runs.Places
    out_factors: runs.Values
    in_factors: runs.Values

    @classmethod
    def of(cls, rows: Integers, columns: Integers, out_factors: Floats, in_factors: Floats, groups: int) -> _Step:
        """The step that puts entry rows[i], columns[j] of whole spaces at i, j; groups move as a whole."""
        by_group = columns.reshape(groups, -1)
        return cls(
            np.argsort(rows).astype(np.uint32),
            (by_group % by_group.shape[1]).astype(np.uint32),
            out_factors.astype(np.float32),
            in_factors.astype(np.float32).reshape(groups, -1),
        )

    @property
    def moves(self) -> bool:
        """Whether anything leaves its place."""
        groups, width = self.columns.shape
        stay = np.tile(np.arange(width), (groups, 1))
        return not (np.array_equal(self.targets, np.arange(len(self.targets))) and np.array_equal(self.columns, stay))

    @property
    def scales(self) -> bool:
        """Whether any factor differs from 1."""
        factors = self.out_factors.reshape(len(self.columns), -1, 1) * self.in_factors[:, None]
        return bool(np.any(np.abs(factors - 1) > _SAME_GAIN))

    def unscaled(self) -> _Step:
        """The same moves with all factors 1, which change no value."""
        return _Step(self.targets, self.columns, np.ones_like(self.out_factors), np.ones_like(self.in_factors))

    def apply(self, loop: Callable[..., None], tensor: Tensor) -> Tensor:
        """Run one of the compiled loops over a contiguous tensor; the result is in new memory."""
        moved = torch.empty_like(tensor)
        values, result = (each.numpy().reshape(len(self.targets), -1) for each in (tensor, moved))
        taps = values.shape[1] // self.columns.shape[1]
        loop(values, self.targets, self.columns, self.out_factors, self.in_factors, taps, result)
        return moved


class MonomialTransform:
    """The transform of one tensor whose channel spaces have monomial keys.

    Args:
        out_key: of the space along axis 0.
        in_key: of the space along axis 1, None for a vector.
        axes: the tensor's axes.
    """

    def __init__(self, out_key: ChannelKey, in_key: ChannelKey | None, axes: TensorAxes) -> None:
        in_key = in_key or _UNKEYED
        in_factors = 1 / in_key.gains
        to = _Step.of(out_key.permutation, in_key.permutation, out_key.gains, in_factors, axes.groups)
        # back at their places, values meet the very factors that they were multiplied with
        rows, columns = np.argsort(out_key.permutation), np.argsort(in_key.permutation)
        back = _Step.of(rows, columns, out_key.gains[rows], in_factors[columns], axes.groups)
        self.scales, self.permutes = to.scales, to.moves
        self.to, self.back = (to, back) if self.scales else (to.unscaled(), back.unscaled())
        self.shape = (out_key.size, in_key.size // axes.groups * axes.in_expansion)

    @property
    def recovery_error(self) -> float:
        """Largest relative error of a value that was protected and recovered."""
        return GAIN_ERROR if self.scales else 0.0

    def protect(self, values: Tensor) -> Tensor:
        """A_out W A_in^-1 of a contiguous float32 tensor, in new memory."""
        return self.to.apply(runs.multiply, values)

    def recover(self, values: Tensor) -> Tensor:
        """A_out^-1 W A_in, in new memory; dividing by what was multiplied with leaves the fewest roundings."""
        return self.back.apply(runs.divide, values)


class Vectors:
    """The transforms of several vectors, joined: one move and one product for all of them.

    Args:
        transforms: by tensor name, each of a vector.
    """

    def __init__(self, transforms: Mapping[str, MonomialTransform]) -> None:
        self._names = list(transforms)
        self._sizes = [transform.shape[0] for transform in transforms.values()]
        self._to = self._joined([transform.to for transform in transforms.values()])
        self._back = self._joined([transform.back for transform in transforms.values()])

    def protect(self, vectors: Mapping[str, Tensor]) -> Weights:
        """A v of every vector, each in memory of its own."""
        places, factors = self._to
        return self._parted(self._join(vectors).index_select(0, places).mul_(factors))

    def recover(self, vectors: Mapping[str, Tensor]) -> Weights:
        """A^-1 v of every vector, each in memory of its own."""
        places, factors = self._back
        return self._parted(self._join(vectors).index_select(0, places).div_(factors))

    def _join(self, vectors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([vectors[name] for name in self._names])

    def _parted(self, joined: Tensor) -> Weights:
        parts: Sequence[Tensor] = torch.split_with_sizes_copy(joined, self._sizes)  # type: ignore[func-returns-value,assignment]
        return dict(zip(self._names, parts, strict=True))

    def _joined(self, steps: list[_Step]) -> tuple[Tensor, Tensor]:
        """Which value of all comes to each place, and its factor."""
        starts = np.cumsum([0, *self._sizes[:-1]])
        places = np.concatenate([start + np.argsort(step.targets) for start, step in zip(starts, steps, strict=True)])
        factors = np.concatenate([step.out_factors * step.in_factors[0, 0] for step in steps])
        return torch.from_numpy(places), torch.from_numpy(factors)
