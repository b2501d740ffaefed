"""Paillier key pairs on `phe`'s key classes: made from a secret byte stream, written and read as fixed-length bytes.

The primes are those that the scheme of Damgard, Jurik and Nielsen, "A generalization of Paillier's public-key system
with applications to electronic voting" (Int. J. Inf. Secur. 9, 2010), asks for: p = q = 3 mod 4 and gcd(p-1, q-1) = 2,
so that -1 is a non-square with Jacobi symbol +1 and the squares form a cyclic group.
"""

from __future__ import annotations

from collections.abc import Callable

import gmpy2
from phe.paillier import PaillierPrivateKey, PaillierPublicKey

from federation.errors import MalformedMessage, UsageError

Randomness = Callable[[int], bytes]
"""Called with a number of bytes, returns that many fresh, secret, uniform bytes."""

SECURE_BITS = 2048
"""Smallest modulus accepted unless a caller asks for less: about 112 bits of security (NIST SP 800-57)."""

SMALLEST_BITS = 128
"""Smallest modulus at all; below it the primes are too few for the draw to succeed reliably."""

_PRIMALITY_ROUNDS = 40
"""GMP runs a Baillie-PSW test and this many rounds less 24 of Miller-Rabin."""


def random_bytes(randomness: Randomness, n_bytes: int) -> bytes:
    """`n_bytes` fresh bytes; raises UsageError where `randomness` returns another length."""
    drawn = randomness(n_bytes)
    if len(drawn) != n_bytes:
        raise UsageError(f"the randomness returned {len(drawn)} bytes where {n_bytes} were asked for")
    return drawn


def random_integer(randomness: Randomness, n_bytes: int) -> int:
    """A uniform integer of `n_bytes` bytes; raises UsageError where `randomness` returns another length."""
    return int.from_bytes(random_bytes(randomness, n_bytes), "big")


def generate_keypair(bits: int, randomness: Randomness, *, allow_small: bool = False) -> PaillierPrivateKey:
    """Make a key pair whose modulus has exactly `bits` bits; the public half is the result's `public_key`.

    The pair is a function of the bytes that `randomness` returns and nothing else. Candidates are drawn independently,
    so a prime is uniform among those of its shape (two top bits set, 3 mod 4).

    Args:
        bits: length of n = p * q, a multiple of 16, so that p and q are whole bytes.
        randomness: a key stream derived from a secret root; it must not be the run's seed.
        allow_small: accept a modulus under 2,048 bits, which protects nothing (tests).

    Raises:
        UsageError: for a refused length, or where the stream yields no primes (a constant stream).
    """
    _check_bits(bits, allow_small, UsageError)
    p = _draw_prime(bits // 2, randomness)
    for _ in range(1000):
        q = _draw_prime(bits // 2, randomness)
        if _distant(p, q, bits) and gmpy2.gcd(p - 1, q - 1) == 2:
            return PaillierPrivateKey(PaillierPublicKey(p * q), p, q)
    raise UsageError("the randomness yields the same prime again and again; pass a stream of fresh bytes")


def public_key_to_bytes(public_key: PaillierPublicKey) -> bytes:
    """n, big-endian, in as many bytes as its length asks for."""
    return int(public_key.n).to_bytes(modulus_bytes(public_key), "big")


def public_key_from_bytes(data: bytes, *, allow_small: bool = False) -> PaillierPublicKey:
    """Read a public key; raises MalformedMessage where `data` cannot be an n = p * q of `generate_keypair`."""
    bits = 8 * len(data)
    _check_bits(bits, allow_small, MalformedMessage)
    n = int.from_bytes(data, "big")
    if n.bit_length() != bits:
        raise MalformedMessage(f"Paillier modulus has {n.bit_length()} bits; its {len(data)} bytes must hold {bits}")
    if n % 4 != 1:
        raise MalformedMessage(f"Paillier modulus is {n % 4} mod 4; the product of two primes 3 mod 4 is 1 mod 4")
    if gmpy2.is_prime(n) or gmpy2.is_power(n):
        raise MalformedMessage("Paillier modulus is a prime or a power; it must be the product of two distinct primes")
    return PaillierPublicKey(n)


def private_key_to_bytes(private_key: PaillierPrivateKey) -> bytes:
    """n, then the smaller and the larger prime, big-endian: twice the length of n. Secret."""
    half = modulus_bytes(private_key.public_key) // 2
    primes = (int(prime).to_bytes(half, "big") for prime in (private_key.p, private_key.q))
    return public_key_to_bytes(private_key.public_key) + b"".join(primes)


def private_key_from_bytes(data: bytes, *, allow_small: bool = False) -> PaillierPrivateKey:
    """Read a private key; raises MalformedMessage where it is not one that `generate_keypair` could have made."""
    if len(data) % 4:
        raise MalformedMessage(f"Paillier private key of {len(data)} bytes; the length must be a multiple of 4")
    half = len(data) // 4
    public_key = public_key_from_bytes(data[: 2 * half], allow_small=allow_small)
    p, q = (int.from_bytes(data[start : start + half], "big") for start in (2 * half, 3 * half))
    if p * q != public_key.n:
        raise MalformedMessage("Paillier private key does not fit its modulus: p * q is not n")
    if not p < q:
        raise MalformedMessage("Paillier private key lists its primes in the wrong order; the smaller comes first")
    for name, prime in (("p", p), ("q", q)):
        if prime % 4 != 3 or not gmpy2.is_prime(prime, _PRIMALITY_ROUNDS):
            raise MalformedMessage(f"Paillier private key: {name} is not a prime that is 3 mod 4")
    if gmpy2.gcd(p - 1, q - 1) != 2:
        raise MalformedMessage("Paillier private key: p - 1 and q - 1 share more than the factor 2")
    return PaillierPrivateKey(public_key, p, q)


def modulus_bytes(public_key: PaillierPublicKey) -> int:
    """Length of n in bytes; a ciphertext takes twice as many."""
    return (int(public_key.n).bit_length() + 7) // 8


def _check_bits(bits: int, allow_small: bool, error: type[UsageError] | type[MalformedMessage]) -> None:
    smallest = SMALLEST_BITS if allow_small else SECURE_BITS
    if bits < smallest or bits % 16:
        raise error(f"Paillier modulus of {bits} bits; it must be a multiple of 16 and at least {smallest}")


def _draw_prime(bits: int, randomness: Randomness) -> int:
    """A prime of `bits` bits that is 3 mod 4, its two top bits set so that two of them multiply to 2 * `bits` bits."""
    shape = (3 << (bits - 2)) | 3
    # one candidate in bits * ln(2) / 2 is prime: failing this often by chance has probability e^-50 or less
    for _ in range(20 * bits):
        candidate = random_integer(randomness, bits // 8) | shape
        if gmpy2.is_prime(candidate, _PRIMALITY_ROUNDS):
            return candidate
    raise UsageError(f"the randomness yields no prime of {bits} bits; pass a stream of fresh bytes")


def _distant(p: int, q: int, bits: int) -> bool:
    """Whether p and q differ by more than 2^(bits/2 - 100) (FIPS 186-5, A.1.1), out of reach of Fermat's factoring."""
    return p != q and abs(p - q).bit_length() > bits // 2 - 100
