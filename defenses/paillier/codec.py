"""Signed fixed point, packed: many weights in the plaintext of one Paillier ciphertext, summed slot by slot.

A weight w of a tensor with the public bound 2^e becomes the integer q = round(w / 2^e * 2^F), |q| <= 2^F. The scale is
the same for every value of a tensor, hence nothing about a value shows outside the ciphertext.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from defenses.paillier.packing import (
    LARGEST_EXPONENT,
    SMALLEST_EXPONENT,
    PackedIntegers,
    checked_exponents,
    scaled_to_bounds,
)
from federation.errors import TrainingError, UsageError

__all__ = ["LARGEST_EXPONENT", "SMALLEST_EXPONENT", "PackedFixedPoint", "power_of_two_exponent"]

DEFAULT_FRACTION_BITS = 27
"""Under the bound 8 = 2^3 the unit is 2^-24 and a weight is off by at most 2^-25, the precision of float32 near 1."""


def power_of_two_exponent(max_abs: float) -> int:
    """The smallest e with `max_abs` <= 2^e, not under SMALLEST_EXPONENT.

    Args:
        max_abs: the largest magnitude in a tensor.

    Raises:
        TrainingError: where `max_abs` is negative, not finite or over 2^LARGEST_EXPONENT.
    """
    if not 0 <= max_abs <= 2.0**LARGEST_EXPONENT:
        raise TrainingError(f"no bound can be set on a largest magnitude of {max_abs}; it must be in [0, 2^128]")
    if max_abs == 0:
        return SMALLEST_EXPONENT
    mantissa, exponent = math.frexp(max_abs)
    own_bound = mantissa == 0.5  # a power of two
    return max(exponent - own_bound, SMALLEST_EXPONENT)


@dataclass(frozen=True)
class PackedFixedPoint(PackedIntegers):
    """Numbers to the nearest multiple of 2^(exponent - F).

    Args:
        fraction_bits: F; integers lie in [-2^F, 2^F].

    Raises:
        UsageError: see `PackedIntegers`, and for negative fraction bits.
    """

    fraction_bits: int = DEFAULT_FRACTION_BITS

    def __post_init__(self) -> None:
        if self.fraction_bits < 0:
            raise UsageError(f"packing for {self}: there must be 0 fraction bits or more")
        super().__post_init__()

    @property
    def largest_value(self) -> int:
        """2^F, the largest magnitude of one client's integer."""
        return 1 << self.fraction_bits

    def stated_error(self, exponent: int) -> float:
        """Largest error of a value summed over K clients under the bound 2^exponent: half a unit a client."""
        return float(np.ldexp(float(self.clients), exponent - self.fraction_bits - 1))

    def quantise(
        self, values: ArrayLike, exponents: ArrayLike, generator: torch.Generator | None = None
    ) -> NDArray[np.int64]:
        """See `PackedIntegers.quantise`; to the nearest, half to even, so that no generator is needed."""
        return np.rint(np.ldexp(scaled_to_bounds(values, exponents), self.fraction_bits)).astype(np.int64)

    def dequantise(self, integers: NDArray[np.int64], exponents: ArrayLike) -> NDArray[np.float64]:
        """See `PackedIntegers.dequantise`; exact."""
        return np.ldexp(integers.astype(np.float64), checked_exponents(exponents) - self.fraction_bits)
