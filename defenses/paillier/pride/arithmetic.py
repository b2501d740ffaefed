"""Lists of numbers encrypted one by one, in `phe`'s own objects and arithmetic.

`phe` writes a number as a signed integer times 16^exponent. The exponent is public and follows the number's magnitude;
sums take the lower of two exponents, products add them. Sums and products keep the randomness of what they were made
of: only encryption draws new one, and `to_message` where it is told to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray
from phe.encoding import EncodedNumber
from phe.paillier import EncryptedNumber, PaillierPrivateKey, PaillierPublicKey

from defenses.paillier.arithmetic import OwnerEncryptor, PublicEncryptor, check_ciphertexts
from federation.encrypted_numbers import EncryptedNumbers
from federation.errors import MalformedMessage

Values: TypeAlias = NDArray[np.float64]
"""Numbers before encryption and after decryption, [count]."""


def encrypt(
    values: Values, public_key: PaillierPublicKey, *, absolute_precision: float | None = None
) -> list[EncryptedNumber]:
    """Fresh encryptions by `phe`, some 10 ms each at 2,048 bits.

    Args:
        values: [count] finite numbers.
        public_key: the receiver's key.
        absolute_precision: `phe`'s `precision`: round to multiples of 16^floor(log16(absolute_precision)); exact
            without it.
    """
    return [public_key.encrypt(value, precision=absolute_precision) for value in values.tolist()]


def encrypt_as_owner(
    values: Values,
    encryptor: OwnerEncryptor,
    public_key: PaillierPublicKey,
    *,
    absolute_precision: float | None = None,
) -> list[EncryptedNumber]:
    """The same numbers, at some 0.5 ms each for whoever holds the private key.

    Encoding and exponents are `phe`'s. The n-th residue that hides a number is drawn modulo p^2 and q^2 (Chinese
    remainder theorem) in place of r^n mod n^2; the ciphertexts are distributed alike.
    """
    encoded = [EncodedNumber.encode(public_key, value, precision=absolute_precision) for value in values.tolist()]
    signed = [mpz(_signed(number.encoding, public_key)) for number in encoded]
    return [
        EncryptedNumber(public_key, int(ciphertext), number.exponent)
        for ciphertext, number in zip(encryptor.encrypt(signed), encoded, strict=True)
    ]


def add_plain(
    encrypted: Sequence[EncryptedNumber], values: Values, *, absolute_precision: float | None = None
) -> list[EncryptedNumber]:
    """`ciphertext + plaintext` number by number, without new randomness; raises MalformedMessage where it overflows.

    Args:
        encrypted: [count] numbers.
        values: [count] finite numbers, added exactly.
        absolute_precision: round them first, as `encrypt` does.
    """

    def sum_of(number: EncryptedNumber, value: float) -> EncryptedNumber:
        if absolute_precision is None:
            return number + value
        return number + EncodedNumber.encode(number.public_key, value, precision=absolute_precision)

    with _overflow_refused("a number cannot be added to a ciphertext"):
        return [sum_of(number, value) for number, value in zip(encrypted, values.tolist(), strict=True)]


def divide(encrypted: Sequence[EncryptedNumber], by: float) -> list[EncryptedNumber]:
    """`phe`'s division of a ciphertext by a public number: the product with the encoded float 1 / by."""
    return [number / by for number in encrypted]


def add(columns: Sequence[Sequence[EncryptedNumber]]) -> list[EncryptedNumber]:
    """Sums of ciphertexts number by number; raises MalformedMessage where exponents are too far apart to be aligned.

    Args:
        columns: one or more parties' numbers, equally many each.
    """
    total = list(columns[0])
    with _overflow_refused("ciphertexts cannot be added"):
        for column in columns[1:]:
            total = [one + other for one, other in zip(total, column, strict=True)]
    return total


def decrypt(private_key: PaillierPrivateKey, encrypted: Sequence[EncryptedNumber]) -> Values:
    """The numbers, each rounded once to float64; raises MalformedMessage for what is no number under this key."""
    with _overflow_refused("an encrypted number does not decrypt"):
        return np.array([float(private_key.decrypt(number)) for number in encrypted], np.float64)


def to_message(encrypted: Sequence[EncryptedNumber], *, randomised: bool) -> EncryptedNumbers:
    """The numbers as they leave their sender.

    Args:
        encrypted: one or more numbers under one key.
        randomised: `phe`'s `ciphertext()`, which multiplies by r^n for a fresh r (10 ms a number at 2,048 bits) unless
            that has just been done; else `ciphertext(be_secure=False)`, the number's very state, as pickling writes it.
    """
    return EncryptedNumbers(
        int(encrypted[0].public_key.n),
        tuple(int(number.ciphertext(be_secure=randomised)) for number in encrypted),
        np.array([number.exponent for number in encrypted], np.int32),
    )


def rerandomised(encrypted: Sequence[EncryptedNumber], encryptor: PublicEncryptor) -> list[EncryptedNumber]:
    """The same numbers with fresh randomness: each times a fresh encryption of zero, some 0.7 ms at 2,048 bits.

    `phe`'s own `obfuscate` multiplies by r^n as well, from an exponentiation of full size: 10 ms or more.

    Args:
        encrypted: numbers under one key.
        encryptor: for that key.
    """
    zeros = encryptor.encrypt([mpz(0)] * len(encrypted))
    return [
        EncryptedNumber(
            number.public_key,
            int(number.ciphertext(be_secure=False) * zero % number.public_key.nsquare),
            number.exponent,
        )
        for number, zero in zip(encrypted, zeros, strict=True)
    ]


def from_message(message: EncryptedNumbers, public_key: PaillierPublicKey) -> list[EncryptedNumber]:
    """The numbers of a message; raises MalformedMessage where it is of another key or one is no unit modulo n^2."""
    if message.modulus != public_key.n:
        raise MalformedMessage("encrypted numbers are under another modulus than the agreed one")
    check_ciphertexts([mpz(ciphertext) for ciphertext in message.ciphertexts], public_key)
    exponents = message.exponents.tolist()
    return [
        EncryptedNumber(public_key, ciphertext, exponent)
        for ciphertext, exponent in zip(message.ciphertexts, exponents, strict=True)
    ]


def encoding_step(absolute_precision: float) -> float:
    """The unit to whose multiples `phe` rounds under this precision: 16^floor(log16(absolute_precision))."""
    return float(EncodedNumber.BASE) ** math.floor(math.log(absolute_precision, EncodedNumber.BASE))


def as_encoded(values: Values, absolute_precision: float | None) -> Values:
    """What is left of values once `phe` has encoded them: exact without a precision, else rounded half to even."""
    if absolute_precision is None:
        return values
    step = encoding_step(absolute_precision)
    return np.rint(values / step) * step


@contextlib.contextmanager
def _overflow_refused(what: str) -> Iterator[None]:
    """Turn `phe`'s refusal of a number that does not fit the modulus into MalformedMessage."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        reason = str(error).partition(" but got")[0]  # followed by hundreds of digits
        raise MalformedMessage(f"{what}: {reason[:120]}") from error


def _signed(encoding: int, public_key: PaillierPublicKey) -> int:
    return encoding - public_key.n if encoding > public_key.max_int else encoding
