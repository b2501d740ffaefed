"""The quotient test on Paillier ciphertexts: do two of them share a nonce that whoever reads the wire can divide out?

With c = (1 + n)^m r^n mod n^2, c = r^n modulo n: a ciphertext modulo the public n is a fingerprint of its nonce. Where
c2 = c1^e modulo n for a public e, c2 / c1^e = 1 + n (m2 - e m1) modulo n^2, which gives m2 to whoever knows m1: a nonce
used twice (e = 1), and `phe`'s ciphertext + plaintext, which scales by a power of two and does not re-randomise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import gmpy2
import torch
from gmpy2 import mpz

from federation.errors import MalformedMessage
from federation.messages import Transcript, raw_tensors_from_bytes
from federation.protocol import Phase

SMALLEST_MODULUS = 64
"""Bytes; anything shorter in a key message is no modulus."""

SQUARINGS = 256
"""Exponents 2^0 .. 2^256 are tried: phe aligns floats by powers of 16 and divides by multiplying with up to 2^55."""


def public_moduli(keys: Transcript) -> list[mpz]:
    """Numbers in the public parts of key messages that can be a modulus: odd, composite, no power, 512 bits or more."""
    found: dict[mpz, None] = {}
    for envelope in keys.phase(Phase.KEYS):
        for name, content in _byte_vectors(envelope.payload):
            number = mpz.from_bytes(content, "big")
            if name.endswith("public") and len(content) >= SMALLEST_MODULUS and _can_be_modulus(number):
                found[number] = None
    return list(found)


def linked_residues(payloads: Sequence[bytes], modulus: mpz) -> str | None:
    """Why ciphertexts modulo `modulus`^2 in these messages are linked by a public power of two, or None.

    A message that repeats another byte for byte is looked at once: passing one on unchanged tells nothing. False
    alarms: under ciphertexts^2 * 257 / modulus, nil for 512 bits and more.
    """
    residues = [
        ciphertext % modulus for payload in dict.fromkeys(payloads) for ciphertext in _ciphertexts(payload, modulus)
    ]
    known = {mpz(1), *residues}
    if len(known) <= len(residues):
        return "two Paillier ciphertexts have one nonce, or one has none"
    powers = residues
    for exponent in range(1, SQUARINGS + 1):
        powers = [power * power % modulus for power in powers]
        if known.intersection(powers):
            return (
                f"a Paillier ciphertext is another one to the power 2^{exponent} but for its plaintext: no fresh nonce"
            )
    return None


def _ciphertexts(payload: bytes, modulus: mpz) -> Iterable[mpz]:
    width = 2 * ((modulus.bit_length() + 7) // 8)
    for _, content in _byte_vectors(payload):
        if content and len(content) % width == 0:
            for start in range(0, len(content), width):
                yield mpz.from_bytes(content[start : start + width], "big")


def _byte_vectors(payload: bytes) -> list[tuple[str, bytes]]:
    """The vectors of bytes in a set of named tensors; none where the message is something else."""
    try:
        tensors = raw_tensors_from_bytes(payload, "an audited message")
    except MalformedMessage:
        return []
    return [(name, tensor.numpy().tobytes()) for name, tensor in tensors.items() if tensor.dtype == torch.uint8]


def _can_be_modulus(number: mpz) -> bool:
    return bool(number % 2) and not gmpy2.is_prime(number) and not gmpy2.is_power(number)
