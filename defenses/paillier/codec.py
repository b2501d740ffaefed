"""Signed fixed point, packed: many weights in the plaintext of one Paillier ciphertext, summed slot by slot.

A weight w of a tensor with the public bound 2^e becomes the integer q = round(w / 2^e * 2^F), |q| <= 2^F. A plaintext
is sum_i q_i * 2^(b * i) with slots of b bits, wide enough for the signed sum of K clients, so that adding plaintexts
(that is: multiplying ciphertexts) adds the weights exactly, as integers. The scale is the same for every value of a
tensor, hence nothing about a value shows outside the ciphertext.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gmpy2 import mpz
from numpy.typing import ArrayLike, NDArray

from defenses.paillier.slots import BitSlots
from federation.errors import MalformedMessage, TrainingError, UsageError

DEFAULT_FRACTION_BITS = 27
"""Under the bound 8 = 2^3 the unit is 2^-24 and a weight is off by at most 2^-25, the precision of float32 near 1."""

SMALLEST_EXPONENT = -126
"""Bounds stop at the smallest normal float32: under it (also for a tensor of zeros) this exponent stands."""

LARGEST_EXPONENT = 128
"""2^128 is above every float32."""

_EXACT_FLOAT_BITS = 53


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
class PackedFixedPoint:
    """How `clients` clients write numbers into plaintexts for a modulus of `modulus_bits` bits.

    Args:
        modulus_bits: length of the Paillier modulus n.
        clients: K, the largest number of messages that are ever summed.
        fraction_bits: F; integers lie in [-2^F, 2^F]. A coarser encoding (levels of a quantiser) asks for fewer bits
            and gets narrower slots.

    Raises:
        UsageError: where K * 2^F exceeds 2^53 (a sum would not be exact in float64) or a slot does not fit the modulus.
    """

    modulus_bits: int
    clients: int
    fraction_bits: int = DEFAULT_FRACTION_BITS

    def __post_init__(self) -> None:
        if self.clients < 1 or self.fraction_bits < 0:
            raise UsageError(
                f"packing for {self.clients} clients with {self.fraction_bits} fraction bits; "
                "there must be 1 client or more and 0 fraction bits or more"
            )
        if self.largest_sum > 2**_EXACT_FLOAT_BITS:
            raise UsageError(
                f"packing for {self.clients} clients with {self.fraction_bits} fraction bits: sums reach "
                f"{self.largest_sum}, above 2^53; take fewer fraction bits"
            )
        if self.values_per_ciphertext < 1:
            raise UsageError(f"a slot of {self.slot_bits} bits does not fit a modulus of {self.modulus_bits} bits")

    @property
    def largest_value(self) -> int:
        """2^F, the largest magnitude of one client's integer."""
        return 1 << self.fraction_bits

    @property
    def largest_sum(self) -> int:
        """K * 2^F, the largest magnitude of a sum over the clients."""
        return self.clients << self.fraction_bits

    @property
    def slot_bits(self) -> int:
        """Width of a slot: the magnitude of the largest sum and a sign."""
        return self.largest_sum.bit_length() + 1

    @property
    def values_per_ciphertext(self) -> int:
        """Slots whose signed sums stay under n / 2 in magnitude, so that no plaintext wraps."""
        return (self.modulus_bits - 1) // self.slot_bits

    @property
    def bytes_per_value(self) -> float:
        """Ciphertext bytes per value in a full ciphertext: 7.76 for six clients at 2,048 bits."""
        return 2 * ((self.modulus_bits + 7) // 8) / self.values_per_ciphertext

    def ciphertexts_for(self, count: int) -> int:
        """Plaintexts, and so ciphertexts, that `count` values take."""
        return -(-count // self.values_per_ciphertext)

    def stated_error(self, exponent: int) -> float:
        """Largest error of a value summed over K clients under the bound 2^exponent: half a unit a client."""
        return float(np.ldexp(float(self.clients), exponent - self.fraction_bits - 1))

    def quantise(self, values: ArrayLike, exponents: ArrayLike) -> NDArray[np.int64]:
        """Round values to integers in [-2^F, 2^F], half to even.

        Args:
            values: [count] real numbers, |value| <= 2^exponent.
            exponents: [count] integers (or one for all): the exponent of the bound of each value's tensor.

        Raises:
            TrainingError: for a value that is not finite or over its bound; names the first not finite or the worst.
            UsageError: for exponents outside [SMALLEST_EXPONENT, LARGEST_EXPONENT].
        """
        values = np.asarray(values, np.float64)
        exponents = np.broadcast_to(_checked_exponents(exponents), values.shape)
        finite = np.isfinite(values)
        if not finite.all():
            first = int(np.argmin(finite))
            raise TrainingError(f"value {first} is {values.flat[first]}; only finite weights can be encrypted")
        with np.errstate(over="ignore"):  # an overflow is out of bound, and refused as such
            scaled = np.ldexp(values, self.fraction_bits - exponents)
        magnitudes = np.abs(scaled)
        if magnitudes.size and magnitudes.max() > self.largest_value:
            worst = int(magnitudes.argmax())
            raise TrainingError(
                f"value {worst} is {values.flat[worst]:.9g}, outside its agreed bound of +-2^{exponents.flat[worst]}"
            )
        return np.rint(scaled).astype(np.int64)

    def dequantise(self, integers: NDArray[np.int64], exponents: ArrayLike) -> NDArray[np.float64]:
        """The numbers that integers (of one client or summed) stand for; exact.

        Args:
            integers: [count], as `quantise` or `unpack` returned them.
            exponents: [count] integers (or one for all), as given to `quantise`.
        """
        return np.ldexp(integers.astype(np.float64), _checked_exponents(exponents) - self.fraction_bits)

    def pack(self, integers: NDArray[np.int64]) -> list[mpz]:
        """One client's integers as signed plaintexts, value i in slot i % slots of plaintext i // slots.

        Args:
            integers: [count] within [-2^F, 2^F].

        Raises:
            UsageError: for other types or shapes, or an integer that would spill into its neighbour's slot.
        """
        if integers.ndim != 1 or integers.dtype != np.int64:
            raise UsageError(f"pack takes a vector of int64, not {integers.dtype} of shape {integers.shape}")
        if integers.size and not -self.largest_value <= integers.min() <= integers.max() <= self.largest_value:
            raise UsageError(
                f"pack takes integers within +-{self.largest_value}; got {integers.min()} to {integers.max()}"
            )
        slots = self.ciphertexts_for(integers.size) * self.values_per_ciphertext
        padded = np.full(slots, self._slot_offset, np.int64)
        padded[: integers.size] += integers
        unsigned = padded.astype(np.uint64).reshape(-1, self.values_per_ciphertext)
        return [joined - self._plaintext_offset for joined in self._slots.join(unsigned)]

    def unpack(self, plaintexts: Sequence[mpz], count: int) -> NDArray[np.int64]:
        """The integers of `count` slots, of one client or summed over up to K: [count] within [-K * 2^F, K * 2^F].

        Raises:
            MalformedMessage: for another number of plaintexts than `count` values take, a plaintext or a slot out of
                range, or a padding slot that is not zero: what was decrypted is not a sum that clients packed with
                this layout and encrypted under this key.
        """
        if len(plaintexts) != self.ciphertexts_for(count):
            raise MalformedMessage(
                f"{len(plaintexts)} packed plaintexts for {count} values; there must be {self.ciphertexts_for(count)}"
            )
        joined = [plaintext + self._plaintext_offset for plaintext in plaintexts]
        for index, plaintext in enumerate(joined):
            if not 0 <= plaintext < 1 << self._slots.bits:
                raise MalformedMessage(f"packed plaintext {index} is outside the {self._slots.bits} bits of its slots")
        integers = self._slots.split(joined).astype(np.int64).reshape(-1) - self._slot_offset
        outside = np.flatnonzero(np.abs(integers) > self.largest_sum)
        if outside.size:
            raise MalformedMessage(
                f"packed value {outside[0]} is {integers[outside[0]]}, outside +-{self.largest_sum}: "
                f"more than {self.clients} clients, a value over its bound or another key"
            )
        if integers[count:].any():
            raise MalformedMessage(f"padding after the {count} packed values is not zero")
        return integers[:count]

    @cached_property
    def _slots(self) -> BitSlots:
        return BitSlots(self.values_per_ciphertext, self.slot_bits)

    @property
    def _slot_offset(self) -> int:
        """Added to a signed slot it gives an unsigned digit of `slot_bits` bits."""
        return 1 << (self.slot_bits - 1)

    @cached_property
    def _plaintext_offset(self) -> mpz:
        """The slot offset in every slot: what turns a signed plaintext into an integer of unsigned digits and back."""
        every_slot = np.full((1, self.values_per_ciphertext), self._slot_offset, np.uint64)
        return self._slots.join(every_slot)[0]


def _checked_exponents(exponents: ArrayLike) -> NDArray[np.intc]:
    exponents = np.asarray(exponents)
    if exponents.dtype.kind not in "iu":
        raise UsageError(f"exponents of bounds must be integers, not {exponents.dtype}")
    if exponents.size and not SMALLEST_EXPONENT <= exponents.min() <= exponents.max() <= LARGEST_EXPONENT:
        raise UsageError(
            f"exponents of bounds from {exponents.min()} to {exponents.max()}; "
            f"they must be in [{SMALLEST_EXPONENT}, {LARGEST_EXPONENT}]"
        )
    return exponents.astype(np.intc)
