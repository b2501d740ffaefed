"""Paillier encryption, addition and decryption of lists of plaintexts, fast enough for whole models.

A ciphertext of m is c = (1 + n)^m * s mod n^2 with a random n-th residue s; (1 + n)^m = 1 + n * m costs one product, so
encrypting is making s. Both encryptors raise a fixed base with a comb instead of raising a fresh r to the power n:

- anyone (`PublicEncryptor`): s = h_s^r with h_s = (-x^2)^n mod n^2 and r of |n|/2 bits (Damgard, Jurik, Nielsen 2010,
  section 4.2). It is as safe as Paillier's own scheme if such short powers of h_s cannot be told from long ones;
- the owner of the key (`OwnerEncryptor`): powers modulo p^2 and q^2 with exponents longer than the order, joined by the
  Chinese remainder theorem; no such assumption.

Plaintexts are signed integers, |m| < n / 2. Ciphertexts are interchangeable with those of `phe` under the same key.

Long lists are spread over threads (`threads.in_pieces`); every method that takes long takes `threads`, how many at most
(None: `threads.default_threads`), and `progress`, called with the number of items done and of all.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray
from phe.paillier import PaillierPrivateKey, PaillierPublicKey

from defenses.paillier.comb import FixedBaseComb
from defenses.paillier.keys import Randomness, modulus_bytes, random_bytes, random_integer
from defenses.paillier.threads import Progress, in_pieces
from federation.errors import MalformedMessage, UsageError

_BIAS_BYTES = 8
"""Extra random bytes of an integer that is reduced: its distribution is within 2^-64 of uniform."""


class PublicEncryptor:
    """Encrypts with the public key alone. Building one takes the time of some 90 encryptions: build one a key."""

    def __init__(self, public_key: PaillierPublicKey, randomness: Randomness = secrets.token_bytes) -> None:
        """Draw h_s and build its comb, 9 MB for a key of 3,072 bits.

        Args:
            public_key: its primes should be 3 mod 4 (`generate_keypair`).
            randomness: where x and the exponents come from; the operating system unless a test injects another.
        """
        self._n = mpz(public_key.n)
        self._n_squared = self._n * self._n
        self._randomness = randomness
        x = _random_unit(self._n, randomness)
        h_s = gmpy2.powmod(-x * x % self._n, self._n, self._n_squared)
        self._exponent_bytes = -(-modulus_bytes(public_key) // 2)
        self._comb = FixedBaseComb(h_s, self._n_squared, self._exponent_bytes)

    @property
    def table_bytes(self) -> int:
        """Memory of the comb's tables."""
        return self._comb.nbytes

    def encrypt(
        self, plaintexts: Sequence[mpz], *, threads: int | None = None, progress: Progress | None = None
    ) -> list[mpz]:
        """One fresh ciphertext a plaintext; raises UsageError for a plaintext not under n / 2 in magnitude."""
        _check_plaintexts(plaintexts, self._n)
        exponents = _exponents(self._randomness, len(plaintexts), self._exponent_bytes)

        def encrypted(piece: slice) -> list[mpz]:
            residues = self._comb.powers(exponents[piece])
            return _blinded(plaintexts[piece], residues, self._n, self._n_squared)

        return in_pieces(encrypted, len(plaintexts), threads, progress)


class OwnerEncryptor:
    """Encrypts with the private key, somewhat faster. Building one takes the time of some 80 encryptions."""

    def __init__(self, private_key: PaillierPrivateKey, randomness: Randomness = secrets.token_bytes) -> None:
        """Draw a base modulo p^2 and modulo q^2 and build their combs; arguments as for `PublicEncryptor`."""
        self._n = mpz(private_key.public_key.n)
        self._n_squared = self._n * self._n
        self._randomness = randomness
        self._p_squared, self._q_squared = (mpz(prime) ** 2 for prime in (private_key.p, private_key.q))
        self._p_squared_inverse = gmpy2.invert(self._p_squared, self._q_squared)
        self._exponent_bytes = -(-modulus_bytes(private_key.public_key) // 2) + _BIAS_BYTES
        self._comb_p, self._comb_q = (self._random_residue_comb(mpz(prime)) for prime in (private_key.p, private_key.q))

    @property
    def table_bytes(self) -> int:
        """Memory of the comb's tables."""
        return self._comb_p.nbytes + self._comb_q.nbytes

    def encrypt(
        self, plaintexts: Sequence[mpz], *, threads: int | None = None, progress: Progress | None = None
    ) -> list[mpz]:
        """One fresh ciphertext a plaintext; raises UsageError for a plaintext not under n / 2 in magnitude."""
        _check_plaintexts(plaintexts, self._n)
        of_p, of_q = (_exponents(self._randomness, len(plaintexts), self._exponent_bytes) for _ in range(2))

        def encrypted(piece: slice) -> list[mpz]:
            pairs = zip(self._comb_p.powers(of_p[piece]), self._comb_q.powers(of_q[piece]), strict=True)
            return _blinded(plaintexts[piece], [self._joined(*pair) for pair in pairs], self._n, self._n_squared)

        return in_pieces(encrypted, len(plaintexts), threads, progress)

    def _random_residue_comb(self, prime: mpz) -> FixedBaseComb:
        """Powers of a random p-th residue modulo p^2; the n-th residues there are the p-th, a group of order p - 1."""
        modulus = prime * prime
        base = gmpy2.powmod(_random_unit(prime, self._randomness), prime, modulus)
        return FixedBaseComb(base, modulus, self._exponent_bytes)

    def _joined(self, in_p: mpz, in_q: mpz) -> mpz:
        """The number modulo n^2 that is `in_p` modulo p^2 and `in_q` modulo q^2."""
        return in_p + self._p_squared * ((in_q - in_p) * self._p_squared_inverse % self._q_squared)


class Decryptor:
    """Decrypts with the private key, modulo p^2 and q^2 (Paillier 1999, section 7)."""

    def __init__(self, private_key: PaillierPrivateKey) -> None:
        self._key = private_key
        self._n = mpz(private_key.public_key.n)

    def decrypt(
        self, ciphertexts: Sequence[mpz], *, threads: int | None = None, progress: Progress | None = None
    ) -> list[mpz]:
        """Signed plaintexts, |m| < n / 2; raises MalformedMessage for what is not a ciphertext.

        A ciphertext under another key of this length decrypts to a random number: the packing is what notices.
        """
        check_ciphertexts(ciphertexts, self._key.public_key)
        key, n = self._key, self._n

        def decrypted(piece: slice) -> list[mpz]:
            halves_p = _decrypt_half(ciphertexts[piece], mpz(key.p), mpz(key.hp))
            halves_q = _decrypt_half(ciphertexts[piece], mpz(key.q), mpz(key.hq))
            joined = (
                in_p + key.p * ((in_q - in_p) * key.p_inverse % key.q)
                for in_p, in_q in zip(halves_p, halves_q, strict=True)
            )
            return [plaintext - n if plaintext > n // 2 else plaintext for plaintext in joined]

        return in_pieces(decrypted, len(ciphertexts), threads, progress)


def add(public_key: PaillierPublicKey, columns: Iterable[Sequence[mpz]]) -> list[mpz]:
    """Ciphertexts of the sums of the plaintexts, position by position: products modulo n^2.

    Args:
        columns: columns[k] are the ciphertexts of client k, as many as every other client's; read one at a time.

    Raises:
        MalformedMessage: without clients, or where they sent different numbers of ciphertexts.
    """
    n_squared = mpz(public_key.nsquare)
    total: list[mpz] | None = None
    for column in columns:
        if total is None:
            total = list(column)
        elif len(column) != len(total):
            raise MalformedMessage(
                f"clients sent {len(total)} and {len(column)} ciphertexts; all must send the same number"
            )
        else:
            total = [one * other % n_squared for one, other in zip(total, column, strict=True)]
    if total is None:
        raise MalformedMessage("no clients sent ciphertexts; all must send the same number")
    return total


def check_ciphertext(ciphertext: mpz, public_key: PaillierPublicKey) -> None:
    """Raise MalformedMessage unless `ciphertext` is a unit modulo n^2: in [1, n^2) and without a factor of n."""
    if not 0 < ciphertext < public_key.nsquare:
        raise MalformedMessage("a Paillier ciphertext is outside [1, n^2)")
    if gmpy2.gcd(ciphertext, public_key.n) != 1:
        raise MalformedMessage("a Paillier ciphertext shares a factor with n; no encryption does")


def check_ciphertexts(ciphertexts: Iterable[mpz], public_key: PaillierPublicKey) -> None:
    """Raise MalformedMessage as `check_ciphertext` does; one greatest common divisor for all, of their product."""
    n, n_squared = mpz(public_key.n), mpz(public_key.nsquare)
    product = mpz(1)
    for ciphertext in ciphertexts:
        if not 0 < ciphertext < n_squared:
            raise MalformedMessage("a Paillier ciphertext is outside [1, n^2)")
        product = product * ciphertext % n
    check_ciphertext(product or n, public_key)


def ciphertext_bytes(public_key: PaillierPublicKey) -> int:
    """Length of a serialised ciphertext: twice the modulus."""
    return 2 * modulus_bytes(public_key)


def ciphertexts_to_bytes(public_key: PaillierPublicKey, ciphertexts: Sequence[mpz]) -> bytes:
    """Big-endian, each `ciphertext_bytes` long, one after the other."""
    width = ciphertext_bytes(public_key)
    return b"".join(ciphertext.to_bytes(width, "big") for ciphertext in ciphertexts)


def ciphertexts_from_bytes(public_key: PaillierPublicKey, data: bytes, count: int) -> list[mpz]:
    """Read `count` ciphertexts; raises MalformedMessage for another length or for what is not a ciphertext."""
    width = ciphertext_bytes(public_key)
    if len(data) != count * width:
        raise MalformedMessage(
            f"{len(data)} bytes for {count} Paillier ciphertexts of {width} bytes; there must be {count * width}"
        )
    ciphertexts = [mpz.from_bytes(data[start : start + width], "big") for start in range(0, len(data), width)]
    check_ciphertexts(ciphertexts, public_key)
    return ciphertexts


def _random_unit(modulus: mpz, randomness: Randomness) -> mpz:
    """A uniform number in [2, modulus - 2] without a factor in common with `modulus`."""
    drawn = mpz(random_integer(randomness, (modulus.bit_length() + 7) // 8 + _BIAS_BYTES)) % modulus
    if not 1 < drawn < modulus - 1 or gmpy2.gcd(drawn, modulus) != 1:
        raise UsageError("the randomness returned a number that is useless for encryption; pass fresh, uniform bytes")
    return drawn


def _exponents(randomness: Randomness, count: int, n_bytes: int) -> NDArray[np.uint8]:
    """[count, n_bytes] of fresh bytes; drawn before the work is spread, since a stream has one reader."""
    drawn = b"".join(random_bytes(randomness, n_bytes) for _ in range(count))
    return np.frombuffer(drawn, np.uint8).reshape(count, n_bytes)


def _check_plaintexts(plaintexts: Iterable[mpz], n: mpz) -> None:
    for plaintext in plaintexts:
        if not -n < 2 * plaintext < n:
            raise UsageError("a plaintext reaches n / 2 in magnitude and would wrap; pack fewer values in it")


def _blinded(plaintexts: Sequence[mpz], residues: Sequence[mpz], n: mpz, n_squared: mpz) -> list[mpz]:
    """(1 + n)^plaintext * residue mod n^2 (Paillier 1999, scheme 1, with g = 1 + n)."""
    return [(1 + n * plaintext) * residue % n_squared for plaintext, residue in zip(plaintexts, residues, strict=True)]


def _decrypt_half(ciphertexts: Sequence[mpz], prime: mpz, scale: mpz) -> list[mpz]:
    """Plaintexts modulo `prime`: L(c^(p-1) mod p^2) * h_p mod p with L(u) = (u - 1) / p (Paillier 1999, section 7)."""
    modulus = prime * prime
    reduced = [ciphertext % modulus for ciphertext in ciphertexts]
    powers = gmpy2.powmod_base_list(reduced, prime - 1, modulus)
    return [(power - 1) // prime * scale % prime for power in powers]
