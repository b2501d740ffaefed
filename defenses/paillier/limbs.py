"""Products of big integers in compiled loops that do not hold Python's lock, so that threads run side by side.

GMP's low-level functions (`mpn_mul_n`, `mpn_tdiv_qr`) are called from numba on rows of 64-bit limbs, the lowest limb
first. They are taken from the library that gmpy2 itself is linked with. gmpy2's own way of releasing the lock, once
for every product, costs on short numbers what a second thread would bring.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import gmpy2
import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
from gmpy2 import mpz
from numba import njit, types
from numpy.typing import NDArray

from federation.errors import KeyholeError

LIMB_BYTES = 8


def _gmp_function(symbol: str, *arguments: types.Type) -> types.ExternalFunction:
    """Make a function of GMP known to the compiler; raises KeyholeError where gmpy2 came without a shared GMP."""
    try:
        address = ctypes.cast(getattr(ctypes.CDLL(gmpy2.gmpy2.__file__), symbol), ctypes.c_void_p).value
    except (AttributeError, OSError) as error:
        raise KeyholeError(
            f"gmpy2 is not linked with a shared GMP library ({error}); install its PyPI wheel"
        ) from error
    llvmlite.binding.add_symbol(symbol, address)
    return types.ExternalFunction(symbol, types.void(*arguments))


# pointers are passed as the integers that `array.ctypes.data` is; sizes are counted in limbs
_multiply = _gmp_function("__gmpn_mul_n", *[types.uintp] * 3, types.intp)
_divide = _gmp_function(
    "__gmpn_tdiv_qr", *[types.uintp] * 2, types.intp, types.uintp, types.intp, types.uintp, types.intp
)


def limbs_of(modulus: mpz) -> int:
    """Limbs that a number below `modulus` takes; the highest limb of the modulus itself is not zero."""
    return -(-modulus.bit_length() // (8 * LIMB_BYTES))


def to_limbs(numbers: Sequence[mpz], limbs: int) -> NDArray[np.uint64]:
    """[numbers, limbs] from non-negative integers that fit; raises OverflowError for others."""
    content = b"".join(number.to_bytes(limbs * LIMB_BYTES, "little") for number in numbers)
    return np.frombuffer(content, "<u8").astype(np.uint64).reshape(len(numbers), limbs)


def from_limbs(rows: NDArray[np.uint64]) -> list[mpz]:
    """Integers from [numbers, limbs]."""
    return [mpz.from_bytes(row.tobytes(), "little") for row in rows.astype("<u8", copy=False)]


def fill_products(table: NDArray[np.uint64], modulus: NDArray[np.uint64]) -> None:
    """Complete a table of products: entry u becomes the product of the entries 2^t over the bits t set in u.

    Args:
        table: [..., 2^teeth, limbs], entries 0 (the number 1) and 2^t in place.
        modulus: [limbs].
    """
    _fill_products(table.reshape(-1, *table.shape[-2:]), modulus, *_scratch(modulus))


def comb_powers(
    tables: NDArray[np.uint64], digits: NDArray[np.uint8], modulus: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """For each row of digits, [numbers, limbs]: the product over t and o of entry digits[o, t] of table t to the 2^o.

    Args:
        tables: [tables, entries, limbs].
        digits: [numbers, offsets, tables].
        modulus: [limbs].
    """
    powers = np.empty((len(digits), len(modulus)), np.uint64)
    _comb_powers(tables, digits, modulus, powers, *_scratch(modulus))
    return powers


def _scratch(modulus: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Room for a product and a quotient. The caller's, since the compiler may free what only an address refers to."""
    return np.empty(2 * len(modulus), np.uint64), np.empty(len(modulus) + 1, np.uint64)


@njit(nogil=True, cache=True)
def _multiply_modulo(result, one, other, modulus, product, quotient):  # type: ignore[no-untyped-def]
    limbs = modulus.size
    _multiply(product.ctypes.data, one.ctypes.data, other.ctypes.data, limbs)
    _divide(quotient.ctypes.data, result.ctypes.data, 0, product.ctypes.data, 2 * limbs, modulus.ctypes.data, limbs)


@njit(nogil=True, cache=True)
def _fill_products(tables, modulus, product, quotient):  # type: ignore[no-untyped-def]
    for table in tables:
        highest = 1
        for entry in range(1, len(table)):
            if entry == 2 * highest:
                highest = entry
            elif entry > highest:
                _multiply_modulo(table[entry], table[entry - highest], table[highest], modulus, product, quotient)


@njit(nogil=True, cache=True)
def _comb_powers(tables, digits, modulus, powers, product, quotient):  # type: ignore[no-untyped-def]
    for number in range(len(digits)):
        power = powers[number]
        power[:] = tables[0, 0]
        for offset in range(digits.shape[1] - 1, -1, -1):
            if offset < digits.shape[1] - 1:
                _multiply_modulo(power, power, power, modulus, product, quotient)
            for table in range(len(tables)):
                entry = tables[table, digits[number, offset, table]]
                _multiply_modulo(power, power, entry, modulus, product, quotient)
