"""Ciphertexts on the wire: polynomials modulo one 56-bit prime, seven bytes a coefficient, and their sum.

Nothing here needs a key or TenSEAL; the server does no more than this.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from federation.errors import MalformedMessage, UsageError

DEGREE = 4096
"""N, coefficients of a polynomial modulo X^N + 1; as many values fit one ciphertext, two in each complex slot."""

MODULUS = 2**56 - 286_719
"""q, the largest prime under 2^56 that is 1 modulo 2N, as the number-theoretic transform asks for.

With N = 4096 and ternary secrets, up to 58 bits give 256 bits of security (Homomorphic Encryption Security Standard,
2018). A prime so close to 2^56 lets a coefficient fill its seven bytes: its distribution is 2^-37 off uniform.
"""

WORDS = 2 * DEGREE
"""Coefficients of a ciphertext: two polynomials."""

WORD_BYTES = 7

CIPHERTEXT_BYTES = WORDS * WORD_BYTES

LARGEST_SUM = 256
"""Ciphertexts that are ever added: as many words under 2^56 stay under 2^64, and the noise under half a unit."""

Words = NDArray[np.uint64]
"""Coefficients of ciphertexts, [ciphertexts, WORDS], each under MODULUS."""


def words_to_bytes(words: Words) -> bytes:
    """The seven low bytes of every coefficient, little-endian."""
    return words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :WORD_BYTES].tobytes()


def words_from_bytes(content: bytes, ciphertexts: int, where: str) -> Words:
    """Read so many ciphertexts; raises MalformedMessage for another length or a coefficient that is not under q."""
    if len(content) != ciphertexts * CIPHERTEXT_BYTES:
        raise MalformedMessage(
            f"{where}: {len(content)} bytes of ciphertext; {ciphertexts} ciphertexts of {CIPHERTEXT_BYTES} are due"
        )
    padded = np.zeros((ciphertexts * WORDS, 8), np.uint8)
    padded[:, :WORD_BYTES] = np.frombuffer(content, np.uint8).reshape(-1, WORD_BYTES)
    words = padded.view("<u8").astype(np.uint64, copy=False).reshape(ciphertexts, WORDS)
    if words.size and words.max() >= MODULUS:
        raise MalformedMessage(f"{where}: a ciphertext has a coefficient that is not under the modulus")
    return words


def add(ciphertexts: Iterable[Words]) -> Words:
    """The coefficient-wise sum modulo q; raises UsageError for more summands than LARGEST_SUM."""
    first, *others = ciphertexts
    if len(others) >= LARGEST_SUM:
        raise UsageError(f"ckks adds {LARGEST_SUM} contributions at most, not {1 + len(others)}")
    total = first.copy()
    for words in others:
        total += words
    return total % np.uint64(MODULUS)
