"""Monomial keys A = diag(gains) P of one channel space: they move and scale channels, and mix none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from federation.errors import UsageError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LARGEST_GAIN = 2.0**20
"""Gains lie between its inverse and it, so that no ratio of two takes a usual weight out of float32's range."""


@dataclass(frozen=True, eq=False)
class ChannelKey:
    """The monomial key of one channel space: (A v)[i] = gains[i] * v[permutation[i]].

    Attributes:
        permutation: [channels], which channel stands at each place of the keyed tensor.
        gains: [channels], the positive factor at each place of the keyed tensor.

    Raises:
        UsageError: for anything but a permutation and as many positive gains between 2^-20 and 2^20.
    """

    permutation: Integers
    gains: Floats

    parts: ClassVar[tuple[str, ...]] = ("permutation", "gains")

    def __post_init__(self) -> None:
        fault = _fault(self.permutation, self.gains)
        if fault:
            raise UsageError(f"not a channel key: {fault}")

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.permutation)

    @property
    def condition_number(self) -> float:
        """cond(A) in the 2-norm: the largest gain over the smallest."""
        return float(self.gains.max() / self.gains.min())

    @cached_property
    def matrix(self) -> Floats:
        """A, [channels, channels]."""
        matrix = np.zeros((self.size, self.size))
        matrix[np.arange(self.size), self.permutation] = self.gains
        return matrix

    @cached_property
    def inverse(self) -> Floats:
        """A^-1, [channels, channels]."""
        inverse = np.zeros((self.size, self.size))
        inverse[self.permutation, np.arange(self.size)] = 1 / self.gains
        return inverse

    @classmethod
    def side_by_side(cls, keys: Sequence[ChannelKey]) -> ChannelKey:
        """The key of concatenated spaces: the keys as blocks on the diagonal of one matrix."""
        if len(keys) == 1:
            return keys[0]
        starts = itertools.accumulate((key.size for key in keys[:-1]), initial=0)
        permutations = [start + key.permutation for start, key in zip(starts, keys, strict=True)]
        return cls(np.concatenate(permutations), np.concatenate([key.gains for key in keys]))

    def after(self, first: ChannelKey) -> ChannelKey:
        """The key of the product of both matrices, `first` applied first."""
        return ChannelKey(first.permutation[self.permutation], self.gains * first.gains[self.permutation])

    def before(self, second: ChannelKey) -> ChannelKey:
        """The key of which this one is the product with `second`, applied after it: V^-1 of V F."""
        permutation, gains = np.empty_like(self.permutation), np.empty_like(self.gains)
        permutation[second.permutation] = self.permutation
        gains[second.permutation] = self.gains / second.gains
        return ChannelKey(permutation, gains)

    def __repr__(self) -> str:
        return f"ChannelKey(<secret>, size={self.size})"


def _fault(permutation: Integers, gains: Floats) -> str | None:
    if permutation.dtype != np.int64 or gains.dtype != np.float64:
        return f"int64 permutation and float64 gains are due, not {permutation.dtype} and {gains.dtype}"
    if permutation.ndim != 1 or permutation.shape != gains.shape or not len(permutation):
        return f"the shapes {permutation.shape} and {gains.shape} are not one length"
    if not np.array_equal(np.sort(permutation), np.arange(len(permutation))):
        return f"its permutation does not hold every channel from 0 to {len(permutation) - 1} once"
    return gain_fault(gains)


def gain_fault(gains: Floats) -> str | None:
    """Why these are no gains, None where they are."""
    if not (gains.min() >= 1 / LARGEST_GAIN and gains.max() <= LARGEST_GAIN):
        return f"its gains are not all between {1 / LARGEST_GAIN:g} and {LARGEST_GAIN:g}"
    return None
