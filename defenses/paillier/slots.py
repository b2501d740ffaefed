"""Unsigned digits side by side in big integers: the bits of the packed encoding, without a loop over digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

_WORD_BITS = 64


class BitSlots:
    """`slots` digits of `slot_bits` bits in one integer, digit i at bit i * slot_bits.

    Works on the little-endian 64-bit words of the integers. A digit starts in one word and spills at most into the
    next, so that an integer is the bitwise or of its digits shifted into place, grouped by word, and of the spills.
    """

    def __init__(self, slots: int, slot_bits: int) -> None:
        """Lay out the slots; `slot_bits` is in [1, 63]."""
        self.bits = slots * slot_bits
        start = np.arange(slots) * slot_bits
        self._word = start // _WORD_BITS
        self._shift = (start % _WORD_BITS).astype(np.uint64)
        self._first_in_word = np.unique(self._word, return_index=True)[1]
        self._spilling = np.flatnonzero(start % _WORD_BITS + slot_bits > _WORD_BITS)
        self._spill_shift = np.uint64(_WORD_BITS) - self._shift[self._spilling]
        self._words = -(-self.bits // _WORD_BITS)
        self._mask = np.uint64((1 << slot_bits) - 1)

    def join(self, digits: NDArray[np.uint64]) -> list[mpz]:
        """Integers from digits of shape [integers, slots], each under 2^slot_bits."""
        words = np.zeros((len(digits), self._words), "<u8")
        starts = np.bitwise_or.reduceat(digits << self._shift, self._first_in_word, axis=1)
        words[:, : starts.shape[1]] = starts
        words[:, self._word[self._spilling] + 1] |= digits[:, self._spilling] >> self._spill_shift
        return [mpz.from_bytes(row.tobytes(), "little") for row in words]

    def split(self, integers: Sequence[mpz]) -> NDArray[np.uint64]:
        """Digits of shape [integers, slots] from integers in [0, 2^(slots * slot_bits))."""
        data = b"".join(integer.to_bytes(self._words * _WORD_BITS // 8, "little") for integer in integers)
        words = np.frombuffer(data, "<u8").reshape(len(integers), self._words).astype(np.uint64)
        digits = words[:, self._word] >> self._shift
        digits[:, self._spilling] |= words[:, self._word[self._spilling] + 1] << self._spill_shift
        return digits & self._mask
