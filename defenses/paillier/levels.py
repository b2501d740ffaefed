"""QSGD's levels as integers that add up: what a quantised update is to a packed Paillier plaintext.

This is QSGD (Alistarh et al. 2017, section 3.1) with two differences that summing under encryption asks for: the norm of
a tensor is its largest magnitude, not its 2-norm, and it is common to the cohort (rounded up to a power of two), so that
one level means the same in every client's message. A bucket is a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from defenses.paillier.packing import PackedIntegers, checked_exponents, scaled_to_bounds


@dataclass(frozen=True)
class PackedLevels(PackedIntegers):
    """Numbers rounded at random, without bias, to one of the two levels about them; levels are 2^exponent / s apart.

    Args:
        levels: s, positive levels; integers lie in [-s, s].
    """

    levels: int = 127

    @property
    def largest_value(self) -> int:
        """s."""
        return self.levels

    def stated_error(self, exponent: int) -> float:
        """Error of a value summed over K clients under the bound 2^exponent: less than a level a client."""
        return float(np.ldexp(self.clients / self.levels, exponent))

    def quantise(
        self, values: ArrayLike, exponents: ArrayLike, generator: torch.Generator | None = None
    ) -> NDArray[np.int64]:
        """See `PackedIntegers.quantise`: floor(s v / 2^e), or one more with the probability that makes the mean v."""
        assert generator is not None, "rounding at random takes a generator"
        scaled = scaled_to_bounds(values, exponents) * self.levels
        lower = np.floor(scaled)
        drawn = torch.rand(scaled.shape, generator=generator, dtype=torch.float64).numpy()
        return (lower + (drawn < scaled - lower)).astype(np.int64)

    def dequantise(self, integers: NDArray[np.int64], exponents: ArrayLike) -> NDArray[np.float64]:
        """See `PackedIntegers.dequantise`."""
        return np.ldexp(integers / self.levels, checked_exponents(exponents))
