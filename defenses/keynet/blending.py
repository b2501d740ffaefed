"""Tensors under keys that mix channels: dense products on one or both axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from defenses.keynet.mixing import MixingKey
from defenses.keynet.monomial import ChannelKey, Floats, Integers
from federation.channels import TensorAxes

ROUNDING = 2.0**-24
"""Half a unit in the last place of float32, relative: the error of one rounding."""

_FLOAT64 = 1 + 2.0**-10  # what products in float64 add to the roundings of float32, with room


class MixingTransform:
    """The transform of one tensor of which at least one channel space is mixed; ungrouped, therefore.

    Products run in float64: in float32 their own rounding would exceed that of the keyed weights several times.

    Args:
        out_keys: of the spaces along axis 0.
        in_keys: of the spaces along axis 1, none for a vector.
        axes: the tensor's axes.
    """

    def __init__(
        self,
        out_keys: Sequence[ChannelKey | MixingKey],
        in_keys: Sequence[ChannelKey | MixingKey],
        axes: TensorAxes,
    ) -> None:
        assert axes.groups == 1, "a grouped kernel has monomial keys on both sides"
        self._keys = [out_keys, in_keys] if in_keys else [out_keys]
        self._out = _side_by_side([_map_of(key) for key in out_keys])
        self._in = _side_by_side([_contragredient_of(key) for key in in_keys]) if in_keys else None
        self.shape = (self._out.size, (self._in.size if self._in else 1) * axes.in_expansion)

    @property
    def recovery_error(self) -> float:
        """Largest error of a value that was protected and recovered, relative to the tensor's largest value.

        A keyed value is at most ||A_out|| ||A_in^-1|| times the largest value (row-sum norm on the left, column-sum
        norm on the right), its rounding comes back grown by ||A_out^-1|| ||A_in||, and the result is rounded once more.
        The norm of concatenated spaces' keys is the largest of theirs.
        """
        growth = 1.0
        for keys, order in zip(self._keys, (np.inf, 1), strict=False):
            growth *= max(float(np.linalg.norm(key.matrix, order)) for key in keys)
            growth *= max(float(np.linalg.norm(key.inverse, order)) for key in keys)
        return ROUNDING * (growth + 1) * _FLOAT64

    def protect(self, values: Tensor) -> Tensor:
        """A_out W A_in^-1, in new memory."""
        keyed = self._out.apply(values.double().view(len(values), -1))
        return self._across(keyed, undo=False).reshape(values.shape).float()

    def recover(self, values: Tensor) -> Tensor:
        """A_out^-1 W A_in, in new memory."""
        plain = self._out.undo(values.double().view(len(values), -1))
        return self._across(plain, undo=True).reshape(values.shape).float()

    def _across(self, values: Tensor, *, undo: bool) -> Tensor:
        """The map of the inputs along axis 1, where each channel is a run of values."""
        if self._in is None:
            return values
        outputs, channels = len(values), self._in.size
        by_channel = values.view(outputs, channels, -1).transpose(0, 1)
        step = self._in.undo if undo else self._in.apply
        return step(by_channel.reshape(channels, -1)).view(by_channel.shape).transpose(0, 1)


class _Moves:
    """A monomial map along axis 0 of a matrix."""

    def __init__(self, permutation: Integers, gains: Floats) -> None:
        self.size = len(permutation)
        self._places = torch.from_numpy(permutation)
        self._origins = torch.from_numpy(np.argsort(permutation))
        self._gains = torch.from_numpy(gains)[:, None]

    def apply(self, rows: Tensor) -> Tensor:
        return rows.index_select(0, self._places).mul_(self._gains)

    def undo(self, rows: Tensor) -> Tensor:
        return (rows / self._gains).index_select(0, self._origins)


class _Products:
    """A dense map along axis 0 of a matrix."""

    def __init__(self, matrix: Floats, inverse: Floats) -> None:
        self.size = len(matrix)
        self._matrix, self._inverse = torch.from_numpy(matrix), torch.from_numpy(inverse)

    def apply(self, rows: Tensor) -> Tensor:
        return self._matrix @ rows

    def undo(self, rows: Tensor) -> Tensor:
        return self._inverse @ rows


class _SideBySide:
    """Maps of the spaces that stand one after the other along axis 0 of a matrix."""

    def __init__(self, maps: Sequence[_Moves | _Products]) -> None:
        self._maps, self._sizes = maps, [each.size for each in maps]
        self.size = sum(self._sizes)

    def apply(self, rows: Tensor) -> Tensor:
        return torch.cat([each.apply(part) for each, part in zip(self._maps, rows.split(self._sizes), strict=True)])

    def undo(self, rows: Tensor) -> Tensor:
        return torch.cat([each.undo(part) for each, part in zip(self._maps, rows.split(self._sizes), strict=True)])


def _side_by_side(maps: Sequence[_Moves | _Products]) -> _Moves | _Products | _SideBySide:
    return maps[0] if len(maps) == 1 else _SideBySide(maps)


def _map_of(key: ChannelKey | MixingKey) -> _Moves | _Products:
    """A and its inverse."""
    if isinstance(key, ChannelKey):
        return _Moves(key.permutation, key.gains)
    return _Products(key.matrix, key.inverse)


def _contragredient_of(key: ChannelKey | MixingKey) -> _Moves | _Products:
    """The transpose of A^-1 and its inverse: W A^-1 is this map along the other axis."""
    if isinstance(key, ChannelKey):
        return _Moves(key.permutation, 1 / key.gains)
    return _Products(key.inverse.T, key.matrix.T)
