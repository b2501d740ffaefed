"""The fixed-point grid on which CKKS is exact: values to slots and back.

CKKS decrypts with noise. Values are therefore multiples of UNIT before they are encoded, and a decrypted slot is
rounded to the nearest one: as long as the noise stays under half a unit, sums come out exact, as integers would.

The noise of a slot, in units of 1 / SCALE: every contribution adds, to each of N coefficients, an error of SEAL's
centred binomial distribution (21 against 21 fair bits, variance 10.5) and a rounding error of at most 1/2; the real and
the imaginary part of a slot are sums of them with weights whose squares sum to N / 2. Taking the roundings as uniform,
both are sub-Gaussian, so that of K contributions

    P(|noise| > t) <= 2 exp(-t^2 / (2 K (N / 2) (10.5 + 1/4))).

Half a unit is t = 2^15: for K = 256 that is 2^-136 a value, for fewer much less. Measured, the deviation is 148 sqrt(K).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defenses.ckks.ring import DEGREE
from federation.errors import MalformedMessage

UNIT = 2.0**-24
"""A client's value is off by half a unit, the precision of float32 near 1."""

SCALE = 2.0**40
"""What a slot is multiplied with before it is rounded to coefficients: 2^16 for a unit."""

LARGEST = 10_000.0
"""The largest magnitude of a value. Two of them in a complex slot stay under 2^14, coefficients under 2^54."""

Slots = NDArray[np.float64]
"""Values of ciphertexts, [ciphertexts, DEGREE]: real and imaginary part of each complex slot in turn."""


def ciphertexts_for(count: int) -> int:
    """Ciphertexts that `count` values take, and the counter of contributions behind them."""
    return -(-(count + 1) // DEGREE)


def to_slots(values: NDArray[np.float64]) -> Slots:
    """One client's values, rounded to the grid, then one unit that counts the client, then zeros.

    Args:
        values: [count], finite, of magnitude up to LARGEST.
    """
    slots = np.zeros(ciphertexts_for(len(values)) * DEGREE)
    slots[: len(values)] = np.rint(values / UNIT) * UNIT
    slots[len(values)] = UNIT
    return slots.reshape(-1, DEGREE)


def from_slots(slots: Slots, count: int, contributions: int, where: str) -> NDArray[np.float64]:
    """The sum that decrypted slots hold, without their noise: [count].

    Raises:
        MalformedMessage: for a value out of range, another number of contributions, or something in the padding: what
            was decrypted is not that many contributions under this key.
    """
    units = np.rint(slots.reshape(-1) / UNIT)
    if not np.abs(units).max() <= LARGEST / UNIT + contributions:
        raise MalformedMessage(f"{where}: a value beyond +-{LARGEST:g}: another key, or no sum of contributions")
    if units[count] != contributions:
        raise MalformedMessage(f"{where}: the sum of {units[count]:.0f} contributions, not of {contributions}")
    if units[count + 1 :].any():
        raise MalformedMessage(f"{where}: padding after the {count} values is not zero")
    return units[:count] * UNIT
