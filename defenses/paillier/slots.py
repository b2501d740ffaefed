"""Unsigned digits side by side in big integers: the bits of the packed encoding, in compiled loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gmpy2 import mpz
from numba import njit
from numpy.typing import NDArray

from defenses.paillier.limbs import LIMB_BYTES, from_limbs, to_limbs

_LIMB_BITS = 8 * LIMB_BYTES


class BitSlots:
    """`slots` digits of `slot_bits` bits in one integer, digit i at bit i * slot_bits.

    Works on the 64-bit limbs of the integers, the lowest first. A digit starts in one limb and spills at most into the
    next.
    """

    def __init__(self, slots: int, slot_bits: int) -> None:
        """Lay out the slots; `slot_bits` is in [1, 63]."""
        self.bits = slots * slot_bits
        self._slots, self._slot_bits = slots, slot_bits
        self._limbs = -(-self.bits // _LIMB_BITS)

    def join(self, digits: NDArray[np.uint64]) -> list[mpz]:
        """Integers from digits of shape [integers, slots], each under 2^slot_bits."""
        limbs = np.zeros((len(digits), self._limbs), np.uint64)
        _join(digits, self._slot_bits, limbs)
        return from_limbs(limbs)

    def split(self, integers: Sequence[mpz]) -> NDArray[np.uint64]:
        """Digits of shape [integers, slots] from integers in [0, 2^(slots * slot_bits))."""
        digits = np.empty((len(integers), self._slots), np.uint64)
        _split(to_limbs(integers, self._limbs), self._slot_bits, digits)
        return digits


@njit(nogil=True, cache=True)
def _join(digits, slot_bits, limbs):  # type: ignore[no-untyped-def]
    for number in range(digits.shape[0]):
        for slot in range(digits.shape[1]):
            limb, shift = divmod(slot * slot_bits, _LIMB_BITS)
            digit = digits[number, slot]
            limbs[number, limb] |= digit << np.uint64(shift)
            if shift + slot_bits > _LIMB_BITS:
                limbs[number, limb + 1] |= digit >> np.uint64(_LIMB_BITS - shift)


@njit(nogil=True, cache=True)
def _split(limbs, slot_bits, digits):  # type: ignore[no-untyped-def]
    mask = np.uint64((1 << slot_bits) - 1)
    for number in range(digits.shape[0]):
        for slot in range(digits.shape[1]):
            limb, shift = divmod(slot * slot_bits, _LIMB_BITS)
            digit = limbs[number, limb] >> np.uint64(shift)
            if shift + slot_bits > _LIMB_BITS:
                digit |= limbs[number, limb + 1] << np.uint64(_LIMB_BITS - shift)
            digits[number, slot] = digit & mask
