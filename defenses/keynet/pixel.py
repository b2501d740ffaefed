"""One pixel key of Key-Net: an invertible matrix A on a flattened feature map and its homogeneous coordinate.

Byrne, DeCann and Bloom (2020), eq. 2.7: A = D * sum_{j <= alpha} theta_j Pi_j, with positive gains D, shares theta_j > 0
that sum to 1 and permutations Pi_j of all C*H*W entries: (Pi_j v)[i] = v[permutations[j, i]]. For alpha = 1 the key is a
scaled permutation (monomial), the only kind that commutes with ReLU; for alpha > 1 it mixes ("soft").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse

from defenses.keynet.keys import LARGEST_GAIN, Floats, Integers
from defenses.keynet.space_key import SpaceKey, homogeneous
from federation.errors import UsageError
from federation.secret_root import SecretStream

LARGEST_CONDITION = 1e6
"""cond(A) of a soft key at most, whatever a defense allows: at 2^-24 a rounding, 6% of the largest weight."""

_NEGLIGIBLE = 1e-12
"""Entries of an inverse under this share of its largest are rounding noise, and left out."""


@dataclass(frozen=True, eq=False)
class PixelKey(SpaceKey):
    """The key of one space of feature maps, or of one vector.

    Attributes:
        permutations: int64 [alpha, entries].
        shares: float64 [alpha], positive, of sum 1.
        gains: float64 [entries], positive.

    Raises:
        UsageError: for arrays that are no such key.
    """

    permutations: Integers
    shares: Floats
    gains: Floats

    def __post_init__(self) -> None:
        fault = key_fault(self.permutations, self.shares, self.gains)
        if fault:
            raise UsageError(f"not a pixel key: {fault}")

    @classmethod
    def identity(cls, size: int) -> PixelKey:
        """The key that changes nothing."""
        return cls(np.arange(size)[None], np.ones(1), np.ones(size))

    @classmethod
    def draw(cls, stream: SecretStream, size: int, *, gain_range: float, alpha: int, permute: bool = True) -> PixelKey:
        """A key from a secret stream.

        Args:
            size: entries.
            gain_range: s; gains are log-uniform on [1/s, s].
            alpha: how many permutations are mixed, with shares uniform on the simplex.
            permute: False for the identity in place of each permutation.
        """
        permutations = np.stack([stream.permutation(size) if permute else np.arange(size) for _ in range(alpha)])
        shares = -np.log1p(-stream.uniform(alpha)) + np.finfo(np.float64).tiny
        gains = np.exp(math.log(gain_range) * (2 * stream.uniform(size) - 1))
        return cls(permutations, shares / shares.sum(), gains)

    @property
    def size(self) -> int:
        """Entries, without the homogeneous coordinate."""
        return len(self.gains)

    @property
    def is_monomial(self) -> bool:
        """Whether it is a scaled permutation."""
        return len(self.shares) == 1

    @property
    def is_permutation(self) -> bool:
        """Whether it moves entries and changes no value."""
        return self.is_monomial and bool(np.all(self.gains == 1))

    @property
    def has_offsets(self) -> bool:
        """Never."""
        return False

    @property
    def permutation(self) -> Integers:
        """[entries], of a monomial key: which entry stands at each place."""
        assert self.is_monomial, "a soft key has several permutations"
        return np.asarray(self.permutations[0])

    @cached_property
    def matrix(self) -> scipy.sparse.csr_array:
        """A, homogeneous: [entries + 1, entries + 1] in float64, the last coordinate fixed."""
        rows = np.tile(np.arange(self.size), len(self.shares))
        mixed = _sparse(np.outer(self.shares, self.gains).ravel(), rows, self.permutations.ravel(), self.size)
        return homogeneous(mixed)

    @cached_property
    def inverse(self) -> scipy.sparse.csr_array:
        """A^-1, homogeneous: one entry a row for a monomial key, nearly dense for a soft one."""
        if self.is_monomial:
            return homogeneous(_sparse(1 / self.gains, self.permutation, np.arange(self.size), self.size))
        dense = np.linalg.inv(self.matrix[:-1, :-1].toarray())
        dense[np.abs(dense) < _NEGLIGIBLE * np.abs(dense).max()] = 0.0
        return homogeneous(scipy.sparse.csr_array(dense))

    @cached_property
    def condition_number(self) -> float:
        """cond(A): the larger of those in the 1-norm and in the maximum norm; infinite for a singular matrix.

        A monomial key's is its largest gain over its smallest. The 1-norm's bounds what rounding of a keyed matrix costs
        the weights that are recovered from it.
        """
        if self.is_monomial:
            return float(self.gains.max() / self.gains.min())
        try:
            pair = [abs(self.matrix), abs(self.inverse)]
        except np.linalg.LinAlgError:
            return math.inf
        return max(math.prod(float(one.sum(axis=axis).max()) for one in pair) for axis in (0, 1))

    def __repr__(self) -> str:
        return f"PixelKey(<secret>, size={self.size}, alpha={len(self.shares)})"


def key_fault(permutations: Any, shares: Any, gains: Any) -> str | None:
    """Why the arrays are no pixel key; None where they are one."""
    if permutations.dtype != np.int64 or shares.dtype != np.float64 or gains.dtype != np.float64:
        return f"int64 and twice float64 are due, not {permutations.dtype}, {shares.dtype}, {gains.dtype}"
    if gains.ndim != 1 or not len(gains) or not len(shares) or permutations.shape != (*shares.shape, *gains.shape):
        return f"permutations {permutations.shape} do not fit {shares.shape} shares and {gains.shape} gains"
    if not np.array_equal(np.sort(permutations, axis=1), np.broadcast_to(np.arange(len(gains)), permutations.shape)):
        return f"a permutation does not hold every entry from 0 to {len(gains) - 1} once"
    if not (gains.min() >= 1 / LARGEST_GAIN and gains.max() <= LARGEST_GAIN):
        return f"its gains are not all between {1 / LARGEST_GAIN:g} and {LARGEST_GAIN:g}"
    if not (shares.min() > 0 and abs(shares.sum() - 1) < 1e-9):
        return "its shares are not positive numbers of sum 1"
    return None


def _sparse(data: Floats, rows: Integers, columns: Integers, size: int) -> scipy.sparse.coo_array:
    return scipy.sparse.coo_array((data, (rows, columns)), shape=(size, size))
