"""Which bytes of a key the conformance suite looks for on the wire."""

from __future__ import annotations

from benchmark.conformance.keys import PIECE_BYTES, _pieces
from federation.secret_root import SecretRoot


def drawn(name: str, n_bytes: int) -> bytes:
    return SecretRoot(b"pieces of keys, drawn in a test " * 2).derive(name).stream(n_bytes)


def test_every_run_of_a_secret_is_a_piece() -> None:
    secret = drawn("secret", 100)
    runs = {secret[start : start + PIECE_BYTES] for start in range(100 - PIECE_BYTES + 1)}
    assert _pieces(secret, b"") == runs


def test_no_piece_reaches_into_what_is_public() -> None:
    modulus, tag, primes = drawn("modulus", 256), drawn("tag", 32), drawn("primes", 256)
    alone = _pieces(tag, b"") | _pieces(primes, b"")
    assert _pieces(tag + modulus + primes, modulus) == alone


def test_a_short_secret_is_one_piece() -> None:
    assert _pieces(drawn("short", 12), b"") == {drawn("short", 12)}


def test_a_secret_that_is_known_anyway_has_no_piece() -> None:
    assert _pieces(drawn("known", 64), drawn("before", 9) + drawn("known", 64)) == set()
