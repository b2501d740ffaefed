"""Speed at 2,048 bits against `phe`, value by value and with the same packing, and of what the protocol is made of.

Run by name: `pytest tests/benchmarks/bench_paillier.py`. Every case of a group does the same work on the same
values, so that times in a group divide to ratios. `keyhole bench paillier` prints such ratios for any key length.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from phe import paillier, util
from pytest_benchmark.fixture import BenchmarkFixture

from defenses.paillier.arithmetic import Decryptor, OwnerEncryptor, PublicEncryptor, add
from defenses.paillier.codec import PackedFixedPoint
from defenses.paillier.keys import generate_keypair

assert util.HAVE_GMP, "phe must compute with gmpy2, or the comparison is not fair"

CODEC = PackedFixedPoint(modulus_bits=2048, clients=6)
VALUES = np.random.default_rng(0).normal(0, 0.05, 4 * CODEC.values_per_ciphertext)
EXPONENT = 3
KEY = generate_keypair(2048, random.Random(0).randbytes)
PUBLIC = KEY.public_key
PACKED = CODEC.pack(CODEC.quantise(VALUES, EXPONENT))
ENCRYPTORS: dict[str, PublicEncryptor | OwnerEncryptor] = {
    "public": PublicEncryptor(PUBLIC),
    "owner": OwnerEncryptor(KEY),
}
DECRYPTOR = Decryptor(KEY)


def measure(benchmark: BenchmarkFixture, work: Callable[[], Any], *, rounds: int) -> Any:
    benchmark.extra_info["values"] = len(VALUES)
    return benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)


def phe_by_value() -> list[paillier.EncryptedNumber]:
    return [PUBLIC.encrypt(float(value), precision=1e-7) for value in VALUES]


def phe_packed() -> list[paillier.EncryptedNumber]:
    return [PUBLIC.encrypt(int(plaintext)) for plaintext in CODEC.pack(CODEC.quantise(VALUES, EXPONENT))]


@pytest.mark.benchmark(group="encrypt")
@pytest.mark.parametrize("who", ["public", "owner"])
def test_encrypt(benchmark: BenchmarkFixture, who: str) -> None:
    encryptor = ENCRYPTORS[who]
    ciphertexts = measure(
        benchmark, lambda: encryptor.encrypt(CODEC.pack(CODEC.quantise(VALUES, EXPONENT)), threads=1), rounds=20
    )
    assert DECRYPTOR.decrypt(ciphertexts) == PACKED


@pytest.mark.benchmark(group="encrypt")
@pytest.mark.parametrize(("work", "rounds"), [(phe_by_value, 2), (phe_packed, 10)])
def test_encrypt_phe(benchmark: BenchmarkFixture, work: Callable[[], Any], rounds: int) -> None:
    numbers = measure(benchmark, work, rounds=rounds)
    assert len(numbers) in (len(VALUES), len(PACKED))


@pytest.mark.benchmark(group="decrypt")
def test_decrypt(benchmark: BenchmarkFixture) -> None:
    ciphertexts = ENCRYPTORS["owner"].encrypt(PACKED)
    values = measure(
        benchmark,
        lambda: CODEC.dequantise(CODEC.unpack(DECRYPTOR.decrypt(ciphertexts, threads=1), len(VALUES)), EXPONENT),
        rounds=20,
    )
    np.testing.assert_allclose(values, VALUES, rtol=0, atol=CODEC.stated_error(EXPONENT))


@pytest.mark.benchmark(group="decrypt")
def test_decrypt_phe_by_value(benchmark: BenchmarkFixture) -> None:
    numbers = phe_by_value()
    values = measure(benchmark, lambda: [KEY.decrypt(number) for number in numbers], rounds=2)
    np.testing.assert_allclose(values, VALUES, rtol=0, atol=1e-7)


@pytest.mark.benchmark(group="decrypt")
def test_decrypt_phe_packed(benchmark: BenchmarkFixture) -> None:
    numbers = phe_packed()
    values = measure(
        benchmark,
        lambda: CODEC.unpack([KEY.decrypt(number) for number in numbers], len(VALUES)),
        rounds=10,
    )
    np.testing.assert_array_equal(values, CODEC.quantise(VALUES, EXPONENT))


@pytest.mark.benchmark(group="add")
def test_add(benchmark: BenchmarkFixture) -> None:
    columns = [ENCRYPTORS["owner"].encrypt(PACKED) for _ in range(2)]
    total = measure(benchmark, lambda: add(PUBLIC, columns), rounds=200)
    assert DECRYPTOR.decrypt(total) == [2 * plaintext for plaintext in PACKED]


@pytest.mark.benchmark(group="add")
@pytest.mark.parametrize("work", [phe_by_value, phe_packed])
def test_add_phe(benchmark: BenchmarkFixture, work: Callable[[], list[paillier.EncryptedNumber]]) -> None:
    one, other = work(), work()
    total = measure(benchmark, lambda: [a + b for a, b in zip(one, other, strict=True)], rounds=20)
    assert KEY.decrypt(total[0]) == pytest.approx(2 * KEY.decrypt(one[0]))


@pytest.mark.benchmark(group="threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_encrypt_on_threads(benchmark: BenchmarkFixture, threads: int) -> None:
    plaintexts = PACKED * 16
    ciphertexts = benchmark.pedantic(
        lambda: ENCRYPTORS["owner"].encrypt(plaintexts, threads=threads), rounds=20, warmup_rounds=1
    )
    assert DECRYPTOR.decrypt(ciphertexts) == plaintexts


@pytest.mark.benchmark(group="pack")
def test_pack(benchmark: BenchmarkFixture) -> None:
    integers = np.tile(CODEC.quantise(VALUES, EXPONENT), 400)
    plaintexts = benchmark.pedantic(lambda: CODEC.pack(integers), rounds=20, warmup_rounds=1)
    np.testing.assert_array_equal(CODEC.unpack(plaintexts, len(integers)), integers)


@pytest.mark.benchmark(group="pack")
def test_unpack(benchmark: BenchmarkFixture) -> None:
    integers = np.tile(CODEC.quantise(VALUES, EXPONENT), 400)
    plaintexts = CODEC.pack(integers)
    unpacked = benchmark.pedantic(lambda: CODEC.unpack(plaintexts, len(integers)), rounds=20, warmup_rounds=1)
    np.testing.assert_array_equal(unpacked, integers)


@pytest.mark.benchmark(group="set-up")
@pytest.mark.parametrize(
    "build", [lambda: PublicEncryptor(PUBLIC), lambda: OwnerEncryptor(KEY)], ids=["public", "owner"]
)
def test_set_up(benchmark: BenchmarkFixture, build: Callable[[], object]) -> None:
    benchmark.pedantic(build, rounds=10, warmup_rounds=1)


@pytest.mark.benchmark(group="generate keys")
@pytest.mark.parametrize("whose", ["keyhole", "phe"])
def test_generate_keys(benchmark: BenchmarkFixture, whose: str) -> None:
    stream = random.Random(1).randbytes
    makers: dict[str, Callable[[], object]] = {
        "keyhole": lambda: generate_keypair(2048, stream),
        "phe": lambda: paillier.generate_paillier_keypair(n_length=2048),
    }
    benchmark.pedantic(makers[whose], rounds=10)
