"""Signed integers side by side in the plaintexts of Paillier ciphertexts, summed slot by slot.

A plaintext is sum_i q_i * 2^(b * i) with slots of b bits, wide enough for the signed sum of K clients, so that adding
plaintexts (that is: multiplying ciphertexts) adds the integers of every slot exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from gmpy2 import mpz
from numpy.typing import ArrayLike, NDArray

from defenses.paillier.slots import BitSlots
from federation.errors import MalformedMessage, TrainingError, UsageError

SMALLEST_EXPONENT = -126
"""Bounds stop at the smallest normal float32: under it (also for a tensor of zeros) this exponent stands."""

LARGEST_EXPONENT = 128
"""2^128 is above every float32."""

_EXACT_FLOAT_BITS = 53


@dataclass(frozen=True)
class PackedIntegers(ABC):
    """How `clients` clients write numbers, made integers, into plaintexts for a modulus of `modulus_bits` bits.

    Args:
        modulus_bits: length of the Paillier modulus n.
        clients: K, the largest number of messages that are ever summed.

    Raises:
        UsageError: where sums exceed 2^53 (they would not be exact in float64) or a slot does not fit the modulus.
    """

    modulus_bits: int
    clients: int

    def __post_init__(self) -> None:
        if self.clients < 1 or self.largest_value < 1:
            raise UsageError(f"packing for {self}: there must be 1 client or more and integers beyond 0")
        if self.largest_sum > 2**_EXACT_FLOAT_BITS:
            raise UsageError(f"packing for {self}: sums reach {self.largest_sum}, above 2^53; take coarser integers")
        if self.values_per_ciphertext < 1:
            raise UsageError(f"a slot of {self.slot_bits} bits does not fit a modulus of {self.modulus_bits} bits")

    @property
    @abstractmethod
    def largest_value(self) -> int:
        """The largest magnitude of one client's integer."""

    @abstractmethod
    def quantise(
        self, values: ArrayLike, exponents: ArrayLike, generator: torch.Generator | None = None
    ) -> NDArray[np.int64]:
        """Integers within +-`largest_value` that stand for the values.

        Args:
            values: [count] real numbers, |value| <= 2^exponent.
            exponents: [count] integers (or one for all): the exponent of the bound of each value's tensor.
            generator: where rounding is at random, what decides it.

        Raises:
            TrainingError: for a value that is not finite or over its bound; names the first not finite or the worst.
            UsageError: for exponents outside [SMALLEST_EXPONENT, LARGEST_EXPONENT].
        """

    @abstractmethod
    def dequantise(self, integers: NDArray[np.int64], exponents: ArrayLike) -> NDArray[np.float64]:
        """The numbers that integers (of one client or summed) stand for.

        Args:
            integers: [count], as `quantise` or `unpack` returned them.
            exponents: [count] integers (or one for all), as given to `quantise`.
        """

    @property
    def largest_sum(self) -> int:
        """The largest magnitude of a sum over the clients."""
        return self.clients * self.largest_value

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

    def pack(self, integers: NDArray[np.int64]) -> list[mpz]:
        """One client's integers as signed plaintexts, value i in slot i % slots of plaintext i // slots.

        Args:
            integers: [count] within +-`largest_value`.

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
        """The integers of `count` slots, of one client or summed over up to K: [count] within +-`largest_sum`.

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


def scaled_to_bounds(values: ArrayLike, exponents: ArrayLike) -> NDArray[np.float64]:
    """Values over their bounds, within [-1, 1] and exact; arguments and errors as of `PackedIntegers.quantise`."""
    values = np.asarray(values, np.float64)
    exponents = np.broadcast_to(checked_exponents(exponents), values.shape)
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise TrainingError(f"value {first} is {values.flat[first]}; only finite weights can be encrypted")
    with np.errstate(over="ignore"):  # an overflow is out of bound, and refused as such
        scaled = np.ldexp(values, -exponents)
    magnitudes = np.abs(scaled)
    if magnitudes.size and magnitudes.max() > 1:
        worst = int(magnitudes.argmax())
        raise TrainingError(
            f"value {worst} is {values.flat[worst]:.9g}, outside its agreed bound of +-2^{exponents.flat[worst]}"
        )
    return scaled


def checked_exponents(exponents: ArrayLike) -> NDArray[np.intc]:
    """Exponents as C integers; raises UsageError for other types or outside [SMALLEST_EXPONENT, LARGEST_EXPONENT]."""
    exponents = np.asarray(exponents)
    if exponents.dtype.kind not in "iu":
        raise UsageError(f"exponents of bounds must be integers, not {exponents.dtype}")
    if exponents.size and not SMALLEST_EXPONENT <= exponents.min() <= exponents.max() <= LARGEST_EXPONENT:
        raise UsageError(
            f"exponents of bounds from {exponents.min()} to {exponents.max()}; "
            f"they must be in [{SMALLEST_EXPONENT}, {LARGEST_EXPONENT}]"
        )
    return exponents.astype(np.intc)
