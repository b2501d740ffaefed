"""Compiled packing of digits against the same in numpy and in Python's integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defenses.paillier.slots import BitSlots


class NumpySlots:
    """Joins and splits whole columns at a time: a word is the bitwise or of the digits that begin in it, and spills."""

    def __init__(self, slots: int, slot_bits: int) -> None:
        start = np.arange(slots) * slot_bits
        self.word = start // 64
        self.shift = (start % 64).astype(np.uint64)
        self.first_in_word = np.unique(self.word, return_index=True)[1]
        self.spilling = np.flatnonzero(start % 64 + slot_bits > 64)
        self.spill_shift = np.uint64(64) - self.shift[self.spilling]
        self.words = -(-slots * slot_bits // 64)
        self.mask = np.uint64((1 << slot_bits) - 1)

    def join(self, digits: NDArray[np.uint64]) -> list[mpz]:
        words = np.zeros((len(digits), self.words), "<u8")
        starts = np.bitwise_or.reduceat(digits << self.shift, self.first_in_word, axis=1)
        words[:, : starts.shape[1]] = starts
        words[:, self.word[self.spilling] + 1] |= digits[:, self.spilling] >> self.spill_shift
        return [mpz.from_bytes(row.tobytes(), "little") for row in words]

    def split(self, integers: Sequence[mpz]) -> NDArray[np.uint64]:
        data = b"".join(integer.to_bytes(self.words * 8, "little") for integer in integers)
        words = np.frombuffer(data, "<u8").reshape(len(integers), self.words).astype(np.uint64)
        digits = words[:, self.word] >> self.shift
        digits[:, self.spilling] |= words[:, self.word[self.spilling] + 1] << self.spill_shift
        return digits & self.mask


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, NDArray[np.uint64]]:
    slot_bits = draw(st.integers(1, 63))
    largest = (1 << slot_bits) - 1
    shape = st.tuples(st.integers(0, 4), st.integers(1, 110))
    elements = st.one_of(st.sampled_from([0, 1, largest]), st.integers(0, largest))
    return slot_bits, draw(hnp.arrays(np.uint64, shape, elements=elements))


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_digits_lie_side_by_side(layout: tuple[int, NDArray[np.uint64]]) -> None:
    slot_bits, digits = layout
    compiled = BitSlots(digits.shape[1], slot_bits)
    joined = compiled.join(digits)
    assert joined == [sum(int(d) << slot * slot_bits for slot, d in enumerate(row)) for row in digits]
    np.testing.assert_array_equal(compiled.split(joined), digits)


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_compiled_and_numpy_agree(layout: tuple[int, NDArray[np.uint64]]) -> None:
    slot_bits, digits = layout
    compiled, oracle = (kind(digits.shape[1], slot_bits) for kind in (BitSlots, NumpySlots))
    joined = oracle.join(digits)
    assert compiled.join(digits) == joined
    np.testing.assert_array_equal(compiled.split(joined), oracle.split(joined))
