"""The comb, and the products of limbs under it, against gmpy2's own arithmetic."""

from __future__ import annotations

import math

import gmpy2
import numpy as np
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from defenses.paillier.comb import FixedBaseComb
from defenses.paillier.limbs import comb_powers, fill_products, from_limbs, limbs_of, to_limbs

MODULI = st.one_of(st.integers(2, 2**9), st.integers(2**60, 2**68), st.integers(2, 2**300))


def as_rows(exponents: list[int], n_bytes: int) -> np.ndarray:
    content = b"".join(exponent.to_bytes(n_bytes, "big") for exponent in exponents)
    return np.frombuffer(content, np.uint8).reshape(len(exponents), n_bytes)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 2**300), MODULI, st.data())
def test_the_comb_raises_to_powers(n_bytes: int, base: int, modulus: int, data: st.DataObject) -> None:
    comb = FixedBaseComb(mpz(base % modulus), mpz(modulus), n_bytes)
    largest = (1 << 8 * n_bytes) - 1
    exponents = [0, 1, largest, data.draw(st.integers(0, largest))]
    assert comb.powers(as_rows(exponents, n_bytes)) == [gmpy2.powmod(base, e, modulus) for e in exponents]


@settings(max_examples=60, deadline=None)
@given(MODULI, st.integers(1, 3), st.integers(1, 3), st.data())
def test_products_and_squares_are_reduced(modulus: int, tables: int, offsets: int, data: st.DataObject) -> None:
    """At the ends of the range too: zero and modulus - 1, and moduli that fill their limbs or do not."""
    numbers = st.one_of(st.sampled_from([0, 1, modulus - 1]), st.integers(0, modulus - 1))
    factors = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=tables, max_size=tables))
    limbs, rows = limbs_of(mpz(modulus)), to_limbs([mpz(modulus)], limbs_of(mpz(modulus)))
    filled = np.zeros((tables, 8, limbs), np.uint64)
    filled[:, 0] = to_limbs([mpz(1)], limbs)
    for table, own in enumerate(factors):
        filled[table, [1, 2, 4]] = to_limbs([mpz(factor) for factor in own], limbs)
    fill_products(filled, rows[0])
    entries = [[math.prod(f for t, f in enumerate(own) if u >> t & 1) % modulus for u in range(8)] for own in factors]
    for found, expected in zip(filled, entries, strict=True):
        assert from_limbs(found) == expected
    digits = data.draw(hnp.arrays(np.uint8, (4, offsets, tables), elements=st.integers(0, 7)))
    for own_digits, power in zip(digits, from_limbs(comb_powers(filled, digits, rows[0])), strict=True):
        of_offset = [math.prod(entries[t][u] for t, u in enumerate(row)) for row in own_digits]
        assert power == math.prod(product ** (1 << offset) for offset, product in enumerate(of_offset)) % modulus


@given(st.lists(st.integers(0, 2**192 - 1), max_size=5))
def test_limbs_are_the_number(numbers: list[int]) -> None:
    rows = to_limbs([mpz(number) for number in numbers], 3)
    assert rows.shape == (len(numbers), 3)
    assert from_limbs(rows) == numbers
    assert [sum(int(limb) << 64 * index for index, limb in enumerate(row)) for row in rows] == numbers


def test_a_number_that_does_not_fit_is_refused() -> None:
    for number in (1 << 128, -1):
        with pytest.raises(OverflowError):
            to_limbs([mpz(number)], 2)


def test_no_exponents_give_no_powers() -> None:
    assert FixedBaseComb(mpz(3), mpz(1009), 4).powers(np.empty((0, 4), np.uint8)) == []
