"""Each distinguisher finds its fake, and none raises a false alarm on random bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmark.audit.distinguishers import (
    BYTE_TESTS,
    Distinguisher,
    Sample,
    equal_differences,
    repeats_between_messages,
    repeats_within_message,
    skewed_bytes,
    telling_bytes,
    unequal_lengths,
)

SIZE = 8192
HEADER = b"a header that tells nothing of the weights"
SCHEDULE = (("a", "flat"), ("a", "flat"), ("a", "random"), ("b", "flat"), ("b", "random"), ("b", "random"))

Seal = Callable[[bytes, str, np.random.Generator], bytes]


def plaintext(weights: str, generator: np.random.Generator) -> bytes:
    values = np.full(SIZE // 4, 1.2345678e-6) if weights == "flat" else generator.uniform(-1, 1, SIZE // 4)
    return values.astype("<f4").tobytes()


def conversation(seal: Seal, seed: int = 0) -> list[Sample]:
    """Messages by the audit's schedule; a client's random weights are the same both times."""
    generator = np.random.default_rng(seed)
    plain = {weights: plaintext(weights, np.random.default_rng(seed + 1000)) for weights in ("flat", "random")}
    return [Sample(sender, weights, HEADER + seal(plain[weights], sender, generator)) for sender, weights in SCHEDULE]  # type: ignore[arg-type]


def one_time_pad(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    return xor(content, generator.bytes(len(content)))


def xor(content: bytes, mask: bytes) -> bytes:
    return (np.frombuffer(content, np.uint8) ^ np.frombuffer(mask, np.uint8)).tobytes()


def pad(seed: int, size: int = SIZE) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def fixed_pad(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    return xor(content, pad(7))


def two_clear_floats(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    return (
        one_time_pad(content[:4000], sender, generator)
        + content[4000:4008]
        + one_time_pad(content[4008:], "", generator)
    )


def one_value_for_all(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    return xor(content, generator.bytes(64) * (SIZE // 64))


def noise_on_floats(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    noise = generator.normal(0, 1e4, SIZE // 4)
    return (np.frombuffer(content, "<f4") + noise).astype("<f4").tobytes()


def six_bits_a_byte(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    return (np.frombuffer(generator.bytes(SIZE), np.uint8) % 64).tobytes()


def pad_of_the_sender(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    return xor(content, pad(ord(sender)))


def mask_of_the_sender(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    return (np.frombuffer(content, "<u4") + np.frombuffer(pad(ord(sender)), "<u4")).tobytes()


def longer_by_chance(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
    return one_time_pad(content, sender, generator) + bytes(generator.integers(1, 100))


@pytest.mark.parametrize(
    ("test", "seal", "reason"),
    [
        (unequal_lengths, longer_by_chance, "bytes"),
        (repeats_between_messages, fixed_pad, "share a run of"),
        (repeats_between_messages, two_clear_floats, "share a run of 8 bytes"),
        (repeats_within_message, one_value_for_all, "repeats 490 blocks"),
        (skewed_bytes, noise_on_floats, "not uniform"),
        (skewed_bytes, six_bits_a_byte, "not uniform"),
        (equal_differences, fixed_pad, "XOR"),
        (equal_differences, pad_of_the_sender, "XOR"),
        (equal_differences, mask_of_the_sender, "modulo 256"),
    ],
)
def test_finds_its_fake(test: Distinguisher, seal: Seal, reason: str) -> None:
    found = test(conversation(seal))
    assert found is not None
    assert reason in found


@pytest.mark.parametrize("test", BYTE_TESTS)
def test_raises_no_false_alarm_on_ciphertext(test: Distinguisher) -> None:
    # by the stated rates, one alarm in 100 of these conversations has a probability under 1e-6
    alarms = [seed for seed in range(100) if test(conversation(one_time_pad, seed)) is not None]
    assert not alarms


def test_says_nothing_of_bytes_that_do_not_depend_on_the_weights() -> None:
    def with_public_key(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
        return sender.encode() * 512 + one_time_pad(content, sender, generator)

    samples = conversation(with_public_key)
    assert all(test(samples) is None for test in BYTE_TESTS)
    assert 0.99 * SIZE < telling_bytes(samples) <= SIZE


def test_the_skew_of_paillier_ciphertext_stays_under_the_limit() -> None:
    # numbers under n^2 for an n at its smallest, 3/4 of a power of two: the worst case of the leading byte
    n_squared = int(0.5625 * 2**64) * 2 ** (4096 - 64)

    def seal(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
        numbers = (int.from_bytes(generator.bytes(520), "big") % n_squared for _ in range(512))
        return b"".join(number.to_bytes(512, "big") for number in numbers)

    assert all(skewed_bytes(conversation(seal, seed)) is None for seed in range(4))


def test_coefficients_in_words_that_they_fill_pass_and_in_wider_ones_do_not() -> None:
    # those of CKKS: under a prime that is just under 2^56, in seven bytes each or, as libraries keep them, in eight
    prime = 2**56 - 286_719

    def in_seven(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
        words = generator.integers(0, prime, SIZE, dtype=np.uint64)
        return words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :7].tobytes()

    def in_eight(content: bytes, sender: str, generator: np.random.Generator) -> bytes:
        # the top bits of a library's 60-bit coefficients
        return generator.integers(0, 2**60, SIZE, dtype=np.uint64).astype("<u8").tobytes()

    assert all(test(conversation(in_seven, seed)) is None for seed in range(10) for test in BYTE_TESTS)
    assert "not uniform" in (skewed_bytes(conversation(in_eight)) or "")
