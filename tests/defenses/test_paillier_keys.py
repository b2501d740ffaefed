"""Paillier keys: the shape of the primes, a pair that follows from its stream alone, and bytes that are checked."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable

import gmpy2
import pytest
from phe import paillier, util

from defenses.paillier.keys import (
    generate_keypair,
    private_key_from_bytes,
    private_key_to_bytes,
    public_key_from_bytes,
    public_key_to_bytes,
)
from federation.errors import MalformedMessage, UsageError

BITS = 512
KEY = generate_keypair(BITS, random.Random(1).randbytes, allow_small=True)


def test_phe_computes_with_gmp() -> None:
    assert util.HAVE_GMP


@pytest.mark.parametrize("bits", [128, 256, 512, 768])
@pytest.mark.parametrize("seed", range(5))
def test_primes_have_the_shape_that_the_scheme_asks_for(bits: int, seed: int) -> None:
    key = generate_keypair(bits, random.Random(seed).randbytes, allow_small=True)
    n = key.public_key.n
    assert n == key.p * key.q
    assert n.bit_length() == bits
    assert key.p.bit_length() == key.q.bit_length() == bits // 2
    assert key.p % 4 == key.q % 4 == 3
    assert math.gcd(key.p - 1, key.q - 1) == 2
    assert math.gcd(n, (key.p - 1) * (key.q - 1)) == 1
    assert util.is_prime(key.p)
    assert util.is_prime(key.q)


def test_the_pair_follows_from_the_stream_alone() -> None:
    again = generate_keypair(BITS, random.Random(1).randbytes, allow_small=True)
    other = generate_keypair(BITS, random.Random(2).randbytes, allow_small=True)
    assert (again.p, again.q) == (KEY.p, KEY.q)
    assert not {other.p, other.q} & {KEY.p, KEY.q}


def test_phe_decrypts_its_own_numbers_under_our_key() -> None:
    assert KEY.decrypt(KEY.public_key.encrypt(-3.25)) == -3.25


@pytest.mark.parametrize("bits", [512, 1024, 2032])
def test_short_moduli_are_refused_unless_asked_for(bits: int) -> None:
    with pytest.raises(UsageError, match="at least 2048"):
        generate_keypair(bits, secrets.token_bytes)
    with pytest.raises(MalformedMessage, match="at least 2048"):
        public_key_from_bytes(b"\xff" * (bits // 8))


@pytest.mark.parametrize("bits", [0, 64, 112, 520, 2049])
def test_lengths_that_do_not_fit_are_refused_always(bits: int) -> None:
    with pytest.raises(UsageError, match="multiple of 16"):
        generate_keypair(bits, secrets.token_bytes, allow_small=True)


@pytest.mark.parametrize(
    "stream",
    [bytes, lambda n: b"\xa5" * n, lambda n: bytes(n - 1), lambda n: bytes(n + 1), lambda n: b""],
    ids=["zeros", "constant", "short", "long", "empty"],
)
def test_a_broken_stream_is_refused(stream: Callable[[int], bytes]) -> None:
    with pytest.raises(UsageError, match="the randomness"):
        generate_keypair(128, stream, allow_small=True)


def test_a_stream_that_repeats_one_prime_is_refused() -> None:
    prime = KEY.p.to_bytes(BITS // 16, "big")
    with pytest.raises(UsageError, match="same prime"):
        generate_keypair(BITS, lambda n: prime, allow_small=True)


def test_keys_survive_their_bytes() -> None:
    public = public_key_to_bytes(KEY.public_key)
    private = private_key_to_bytes(KEY)
    assert (len(public), len(private)) == (BITS // 8, BITS // 4)
    assert public_key_from_bytes(public, allow_small=True) == KEY.public_key
    read = private_key_from_bytes(private, allow_small=True)
    assert (read.p, read.q, read.public_key.n) == (KEY.p, KEY.q, KEY.public_key.n)


def test_a_real_key_survives_its_bytes() -> None:
    key = generate_keypair(2048, random.Random(3).randbytes)
    assert public_key_from_bytes(public_key_to_bytes(key.public_key)) == key.public_key
    assert private_key_from_bytes(private_key_to_bytes(key)).q == key.q


def big_endian(number: int, length: int = BITS // 8) -> bytes:
    return number.to_bytes(length, "big")


def prime_after(start: int, condition: Callable[[int], bool]) -> int:
    prime = int(gmpy2.next_prime(start))
    while not condition(prime):
        prime = int(gmpy2.next_prime(prime))
    return prime


N = KEY.public_key.n
BAD_MODULI = {
    "empty": (b"", "at least"),
    "short": (big_endian(N)[1:], "multiple of 16"),
    "long": (b"\x00" + big_endian(N), "multiple of 16"),
    "padded": (b"\x00\x00" + big_endian(N), "must hold"),
    "top bit clear": (big_endian(N >> 2 | 1), "must hold"),
    "even": (big_endian(N - 1), "mod 4"),
    "3 mod 4": (big_endian(N + 2), "mod 4"),
    "prime": (big_endian(prime_after(3 << BITS - 2, lambda p: p % 4 == 1)), "prime or a power"),
    "square": (big_endian(KEY.q**2), "prime or a power"),
}


@pytest.mark.parametrize(("data", "message"), BAD_MODULI.values(), ids=BAD_MODULI.keys())
def test_what_is_not_a_modulus_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(MalformedMessage, match=message):
        public_key_from_bytes(data, allow_small=True)


def private_bytes(p: int, q: int, n: int | None = None) -> bytes:
    return big_endian(p * q if n is None else n) + big_endian(p, BITS // 16) + big_endian(q, BITS // 16)


THREE_MOD_FOUR = 3 << BITS // 2 - 2
P_SHARING = prime_after(THREE_MOD_FOUR, lambda p: p % 12 == 7)
Q_SHARING = prime_after(P_SHARING + 10**9, lambda p: p % 12 == 7)
P_ONE = prime_after(THREE_MOD_FOUR, lambda p: p % 4 == 1)
Q_ONE = prime_after(P_ONE + 10**9, lambda p: p % 4 == 1)
COMPOSITE = (KEY.p + 4) if not util.is_prime(KEY.p + 4) else (KEY.p + 8)
BAD_PRIVATE_KEYS = {
    "empty": (b"", "at least"),
    "one byte short": (private_key_to_bytes(KEY)[:-1], "multiple of 4"),
    "four bytes short": (private_key_to_bytes(KEY)[:-4], "p \\* q is not n"),
    "product is not n": (private_bytes(KEY.p, KEY.q + 4, n=N), "p \\* q is not n"),
    "primes swapped": (private_bytes(KEY.q, KEY.p), "wrong order"),
    "p is composite": (private_bytes(*sorted((COMPOSITE, KEY.q))), "is not a prime"),
    "one and n": (private_bytes(1, N >> BITS // 2, n=N), "p \\* q is not n"),
    "primes 1 mod 4": (private_bytes(P_ONE, Q_ONE), "3 mod 4"),
    "p - 1 and q - 1 share 3": (private_bytes(P_SHARING, Q_SHARING), "share more"),
}


@pytest.mark.parametrize(("data", "message"), BAD_PRIVATE_KEYS.values(), ids=BAD_PRIVATE_KEYS.keys())
def test_what_is_not_a_private_key_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(MalformedMessage, match=message):
        private_key_from_bytes(data, allow_small=True)


def test_every_flipped_bit_of_a_private_key_is_noticed() -> None:
    data = private_key_to_bytes(KEY)
    for bit in range(0, 8 * len(data), 7):
        flipped = (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")
        with pytest.raises(MalformedMessage):
            private_key_from_bytes(flipped, allow_small=True)


def test_a_phe_key_with_other_primes_is_told_apart() -> None:
    p, q = sorted((P_ONE, KEY.q))
    foreign = paillier.PaillierPrivateKey(paillier.PaillierPublicKey(p * q), p, q)
    with pytest.raises(MalformedMessage, match="mod 4"):
        private_key_from_bytes(private_key_to_bytes(foreign), allow_small=True)
