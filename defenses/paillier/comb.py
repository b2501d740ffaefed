"""Powers of one fixed base: a comb of eight teeth.

C. H. Lim and P. J. Lee, "More flexible exponentiation with precomputation", CRYPTO '94.
"""

from __future__ import annotations

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

from defenses.paillier.limbs import comb_powers, fill_products, from_limbs, limbs_of, to_limbs

_TEETH = 8
"""Bits of the exponent that one look-up takes in."""

_SPACING = 4
"""Neighbouring columns that share a table. One table a column would save the three squarings of a power (1.5% of its
multiplications for a key of 3,072 bits, not measurable) for four times the memory and the set-up time."""


class FixedBaseComb:
    """Tables that turn `base ** exponent % modulus` into some `exponent_bytes` multiplications.

    The exponent is laid out as eight rows (teeth) of `columns` bits; tooth t starts at bit t * columns. Table b holds,
    for every byte u, the product of base^(2^(t * columns + 8 * b)) over the bits t set in u: one look-up covers a whole
    column of eight bits, and the columns between the tables are reached by squaring.

    The look-ups follow the exponent, so time and memory access depend on it: this is not meant for a machine that an
    attacker shares.
    """

    def __init__(self, base: mpz, modulus: mpz, exponent_bytes: int) -> None:
        """Build the tables: about 64 * `exponent_bytes` multiplications and 8 * `exponent_bytes` squarings.

        Args:
            base: in [1, modulus).
            modulus: above 1.
            exponent_bytes: length of the exponents; at least 1.
        """
        n_tables = -(-exponent_bytes // _SPACING)
        limbs = limbs_of(modulus)
        self._exponent_bytes = exponent_bytes
        self._columns = n_tables * _SPACING
        self._modulus = to_limbs([modulus], limbs)[0]
        powers = [base]
        for _ in range(_TEETH * n_tables - 1):
            powers.append(gmpy2.powmod(powers[-1], 1 << _SPACING, modulus))
        self._tables = np.empty((n_tables, 1 << _TEETH, limbs), np.uint64)
        self._tables[:, 0] = to_limbs([mpz(1)], limbs)
        for tooth in range(_TEETH):
            self._tables[:, 1 << tooth] = to_limbs(powers[tooth * n_tables : (tooth + 1) * n_tables], limbs)
        fill_products(self._tables, self._modulus)

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return self._tables.nbytes

    def powers(self, exponents: NDArray[np.uint8]) -> list[mpz]:
        """The base raised to each exponent; runs without Python's lock.

        Args:
            exponents: [count, exponent_bytes], the highest byte first.
        """
        return from_limbs(comb_powers(self._tables, self._digits(exponents), self._modulus))

    def _digits(self, exponents: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The columns as bytes, [count, spacing, tables]: bit t of column i is bit t * columns + i of the exponent."""
        count = len(exponents)
        padded = np.zeros((count, self._columns), np.uint8)
        padded[:, : self._exponent_bytes] = exponents[:, ::-1]
        teeth = np.unpackbits(padded, axis=1, bitorder="little").reshape(count, _TEETH, self._columns)
        columns = np.packbits(teeth, axis=1, bitorder="little").reshape(count, self._columns // _SPACING, _SPACING)
        return np.ascontiguousarray(columns.swapaxes(1, 2))
