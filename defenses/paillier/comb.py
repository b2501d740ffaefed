"""Powers of one fixed base: a comb of eight teeth.

C. H. Lim and P. J. Lee, "More flexible exponentiation with precomputation", CRYPTO '94.
"""

from __future__ import annotations

import gmpy2
import numpy as np
from gmpy2 import mpz

_TEETH = 8
"""Bits of the exponent that one look-up takes in."""

_SPACING = 8
"""Neighbouring columns that share a table. One table a column would save the seven squarings of a power (5% of its
multiplications for a 2,048-bit key, no measurable time) for six times the set-up time and eight times the memory."""


class FixedBaseComb:
    """Tables that turn `base ** exponent % modulus` into some `exponent_bits / 8` multiplications.

    The exponent is laid out as eight rows (teeth) of `columns` bits; tooth t starts at bit t * columns. Table b holds,
    for every byte u, the product of base^(2^(t * columns + 8 * b)) over the bits t set in u: one look-up covers a whole
    column of eight bits, and the columns between the tables are reached by squaring.

    The look-ups follow the exponent, so time and memory access depend on it: this is not meant for a machine that an
    attacker shares.
    """

    def __init__(self, base: mpz, modulus: mpz, exponent_bits: int) -> None:
        """Build the tables: about 32 * `exponent_bits` / 8 multiplications and `exponent_bits` squarings.

        Args:
            base: in [1, modulus).
            modulus: above 1.
            exponent_bits: exponents up to 2^exponent_bits - 1 can be raised.
        """
        n_tables = -(-exponent_bits // (_TEETH * _SPACING))
        self._modulus = modulus
        self._columns = n_tables * _SPACING
        powers = [base]
        for _ in range(_TEETH * n_tables - 1):
            powers.append(gmpy2.powmod(powers[-1], 1 << _SPACING, modulus))
        self._tables = [_products(powers[table::n_tables], modulus) for table in range(n_tables)]

    def power(self, exponent: int) -> mpz:
        """`base ** exponent % modulus`; raises OverflowError for an exponent that is negative or beyond the tables."""
        digits = self._digits(exponent)
        modulus = self._modulus
        result = mpz(1)
        for offset in reversed(range(_SPACING)):
            result = result * result % modulus
            for table, digit in zip(self._tables, digits[offset::_SPACING], strict=True):
                result = result * table[digit] % modulus
        return result

    def _digits(self, exponent: int) -> bytes:
        """The columns of the exponent as bytes, the lowest first: bit t of byte i is bit t * columns + i."""
        little_endian = np.frombuffer(exponent.to_bytes(self._columns, "little"), np.uint8)
        teeth = np.unpackbits(little_endian, bitorder="little").reshape(_TEETH, self._columns)
        return np.packbits(teeth, axis=0, bitorder="little").tobytes()


def _products(factors: list[mpz], modulus: mpz) -> list[mpz]:
    """For every bit pattern, the product modulo `modulus` of the factors whose bit is set."""
    products = [mpz(1)]
    for factor in factors:
        products += [product * factor % modulus for product in products]
    return products
