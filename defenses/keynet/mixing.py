"""Keys that mix the channels of a space: soft keys, orthogonal keys, and products of such keys.

A network whose channels are mixed before a ReLU computes something else. Mixing keys are for weights that are averaged
and not run, and need only be invertible and well conditioned: what rounding to float32 adds to a keyed weight comes
back grown by up to the condition numbers of the keys on both its sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy.special import ndtri

from defenses.keynet.monomial import Floats, Integers, gain_fault
from federation.errors import UsageError
from federation.secret_root import SecretStream

LARGEST_CONDITION = 256.0
"""The largest condition number of a mixing key, in the row-sum and the column-sum norm: with one such key on both sides
of a kernel, the rounding of keyed weights comes back at most 65,536 times as large, 0.4% of the largest weight."""

WIDEST = 4096
"""Channels of a space that is mixed at most: the matrix of such a key has 128 MiB."""

_SLACK = 1 + 1e-6  # bounds are checked in floating point
_ORTHOGONAL = 1e-9


class MixingKey(ABC):
    """What transforms need of a key that mixes: A and its inverse.

    Attributes:
        parts: the names of its fields, which are its serialisation.
    """

    parts: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def matrix(self) -> Floats:
        """A, [channels, channels]."""

    @property
    @abstractmethod
    def inverse(self) -> Floats:
        """A^-1, [channels, channels]."""

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.matrix)

    @property
    def condition_number(self) -> float:
        """cond(A) in the 2-norm."""
        return float(np.linalg.cond(self.matrix))

    def after(self, first: MixingKey) -> MixingKey:
        """The key of the product of both matrices, `first` applied first."""
        return LinearKey(self.matrix @ first.matrix)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<secret>, size={self.size})"


@dataclass(frozen=True, eq=False, repr=False)
class SoftKey(MixingKey):
    """A = D sum_j theta_j Pi_j (Byrne, DeCann and Bloom 2020, eq. 2.7), alpha = len(theta) > 1.

    One theta is over a half and all sum to 1, so that A is D theta_1 Pi_1 (I + N) with ||N|| <= (1 - theta_1) / theta_1
    < 1 in the row-sum and the column-sum norm. Hence ||A|| <= max D and ||A^-1|| <= 1 / ((2 theta_1 - 1) min D), for
    any number of channels.

    Attributes:
        permutations: [alpha, channels], which channel each term puts at each place.
        weights: [alpha], theta.
        gains: [channels], the diagonal of D.

    Raises:
        UsageError: for anything else, or where cond(A) may exceed `LARGEST_CONDITION`.
    """

    permutations: Integers
    weights: Floats
    gains: Floats

    parts: ClassVar[tuple[str, ...]] = ("permutations", "weights", "gains")

    def __post_init__(self) -> None:
        fault = _soft_fault(self.permutations, self.weights, self.gains)
        if fault:
            raise UsageError(f"not a soft key: {fault}")

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.gains)

    @cached_property
    def matrix(self) -> Floats:
        """A, [channels, channels]."""
        matrix = np.zeros((self.size, self.size))
        for weight, permutation in zip(self.weights, self.permutations, strict=True):
            matrix[np.arange(self.size), permutation] += weight
        return matrix * self.gains[:, None]

    @cached_property
    def inverse(self) -> Floats:
        """A^-1, dense even where A is sparse."""
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    @classmethod
    def draw(cls, first: Integers, gains: Floats, alpha: int, dominance: float, stream: SecretStream) -> SoftKey:
        """Soften the monomial key (first, gains): theta_1 is `dominance`, the other terms share the rest at random."""
        others = [stream.permutation(len(first)) for _ in range(alpha - 1)]
        shares = 1 - stream.uniform(alpha - 1)  # over 0, at most 1
        weights = np.concatenate([[dominance], (1 - dominance) * shares / shares.sum()])
        return cls(np.stack([first, *others]), weights, gains)


@dataclass(frozen=True, eq=False, repr=False)
class OrthogonalKey(MixingKey):
    """A with A A^T = I.

    Attributes:
        orthogonal: A, [channels, channels].

    Raises:
        UsageError: for any other matrix.
    """

    orthogonal: Floats

    parts: ClassVar[tuple[str, ...]] = ("orthogonal",)

    def __post_init__(self) -> None:
        fault = _square_fault(self.orthogonal)
        if not fault:
            off = np.abs(self.orthogonal @ self.orthogonal.T - np.eye(len(self.orthogonal))).max()
            fault = f"A A^T is off the identity by {off:.1g}" if not off <= _ORTHOGONAL else None
        if fault:
            raise UsageError(f"not an orthogonal key: {fault}")

    @property
    def matrix(self) -> Floats:
        """A, [channels, channels]."""
        return self.orthogonal

    @property
    def inverse(self) -> Floats:
        """A^T."""
        return self.orthogonal.T

    @property
    def condition_number(self) -> float:
        """1."""
        return 1.0

    def after(self, first: MixingKey) -> MixingKey:
        """The key of the product, orthogonal where both are."""
        product = self.matrix @ first.matrix
        return OrthogonalKey(product) if isinstance(first, OrthogonalKey) else LinearKey(product)

    @classmethod
    def draw(cls, size: int, stream: SecretStream) -> OrthogonalKey:
        """Uniform over the orthogonal group (Haar): Q of a Gaussian matrix with R's diagonal positive (Mezzadri 2007)."""
        uniform = stream.uniform(size * size) + 2.0**-54  # never 0
        q, r = np.linalg.qr(ndtri(uniform).reshape(size, size))
        return cls(np.ascontiguousarray(q * np.sign(np.diagonal(r))))


@dataclass(frozen=True, eq=False, repr=False)
class LinearKey(MixingKey):
    """Any well-conditioned A: the product of two soft keys is no soft key.

    Attributes:
        linear: A, [channels, channels].

    Raises:
        UsageError: for a matrix that is singular or whose condition number exceeds `LARGEST_CONDITION`.
    """

    linear: Floats

    parts: ClassVar[tuple[str, ...]] = ("linear",)

    def __post_init__(self) -> None:
        fault = _square_fault(self.linear) or self._condition_fault()
        if fault:
            raise UsageError(f"not a key: {fault}")

    @property
    def matrix(self) -> Floats:
        """A, [channels, channels]."""
        return self.linear

    @cached_property
    def inverse(self) -> Floats:
        """A^-1."""
        return np.asarray(np.linalg.inv(self.linear), np.float64)

    def _condition_fault(self) -> str | None:
        try:
            condition = max(float(np.linalg.cond(self.linear, norm)) for norm in (1, np.inf))
        except np.linalg.LinAlgError:
            condition = float("inf")
        if not condition <= LARGEST_CONDITION * _SLACK:
            return f"its condition number is {condition:.3g}; at most {LARGEST_CONDITION:g} is allowed"
        return None


def _square_fault(matrix: Floats) -> str | None:
    if matrix.dtype != np.float64 or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        return f"a square float64 matrix is due, not {matrix.dtype} {matrix.shape}"
    if len(matrix) > WIDEST:
        return f"it has {len(matrix)} channels; at most {WIDEST} can be mixed"
    return None if np.isfinite(matrix).all() else "it holds values that are not finite"


def _soft_fault(permutations: Integers, weights: Floats, gains: Floats) -> str | None:
    if (permutations.dtype, weights.dtype, gains.dtype) != (np.int64, np.float64, np.float64):
        return "int64 permutations, float64 weights and float64 gains are due"
    if gains.ndim != 1 or not len(gains) or permutations.shape != (len(weights), len(gains)) or len(weights) < 2:
        return f"shapes {permutations.shape}, {weights.shape}, {gains.shape} are not [alpha, n], [alpha > 1] and [n]"
    if len(gains) > WIDEST:
        return f"it has {len(gains)} channels; at most {WIDEST} can be mixed"
    if not np.array_equal(np.sort(permutations, axis=1), np.tile(np.arange(len(gains)), (len(weights), 1))):
        return f"not every permutation holds every channel from 0 to {len(gains) - 1} once"
    if not (weights.min() >= 0 and abs(weights.sum() - 1) <= 1e-9 and weights.max() > 0.5):
        return "its weights are not positive with sum 1 and one of them over a half"
    if fault := gain_fault(gains):
        return fault
    condition = gains.max() / gains.min() / (2 * weights.max() - 1)
    if condition > LARGEST_CONDITION * _SLACK:
        return f"its condition number may be {condition:.3g}; at most {LARGEST_CONDITION:g} is allowed"
    return None
