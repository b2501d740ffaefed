"""Encryption, addition and decryption against `phe`, plain powers and exact integer sums."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import gmpy2
import numpy as np
import pytest
from gmpy2 import mpz
from phe.paillier import EncryptedNumber

from defenses.paillier.arithmetic import (
    Decryptor,
    OwnerEncryptor,
    PublicEncryptor,
    add,
    check_ciphertext,
    ciphertext_bytes,
    ciphertexts_from_bytes,
    ciphertexts_to_bytes,
)
from defenses.paillier.codec import PackedFixedPoint
from defenses.paillier.keys import generate_keypair
from federation.errors import MalformedMessage, UsageError

BITS = 512
KEY = generate_keypair(BITS, random.Random(7).randbytes, allow_small=True)
PUBLIC = KEY.public_key
N = mpz(PUBLIC.n)
ENCRYPTORS: dict[str, PublicEncryptor | OwnerEncryptor] = {
    "public": PublicEncryptor(PUBLIC),
    "owner": OwnerEncryptor(KEY),
}
DECRYPTOR = Decryptor(KEY)
PLAINTEXTS = [mpz(m) for m in (0, 1, -1, 2**200, -(2**200), (N - 1) // 2, -((N - 1) // 2))]

by_both = pytest.mark.parametrize("encrypt", [e.encrypt for e in ENCRYPTORS.values()], ids=ENCRYPTORS.keys())
Encrypt = Callable[[Sequence[mpz]], list[mpz]]


@by_both
def test_plaintexts_come_back_signed(encrypt: Encrypt) -> None:
    assert DECRYPTOR.decrypt(encrypt(PLAINTEXTS)) == PLAINTEXTS
    assert DECRYPTOR.decrypt(encrypt([])) == []


@by_both
def test_phe_decrypts_our_ciphertexts(encrypt: Encrypt) -> None:
    for plaintext, ciphertext in zip(PLAINTEXTS, encrypt(PLAINTEXTS), strict=True):
        assert KEY.raw_decrypt(int(ciphertext)) == plaintext % N
    (ciphertext,) = encrypt([mpz(-12345)])
    assert KEY.decrypt(EncryptedNumber(PUBLIC, int(ciphertext), exponent=0)) == -12345


def test_we_decrypt_the_ciphertexts_of_phe() -> None:
    small = [int(plaintext) for plaintext in PLAINTEXTS if abs(plaintext) <= PUBLIC.max_int]
    ciphertexts = [mpz(PUBLIC.encrypt(plaintext).ciphertext()) for plaintext in small]
    assert DECRYPTOR.decrypt(ciphertexts) == small


@by_both
def test_ours_and_those_of_phe_add_up(encrypt: Encrypt) -> None:
    theirs = [mpz(PUBLIC.encrypt(value).ciphertext()) for value in (5, -70)]
    assert DECRYPTOR.decrypt(add(PUBLIC, [theirs, encrypt([mpz(-8), mpz(9)])])) == [-3, -61]


@by_both
def test_ciphertexts_of_equal_plaintexts_all_differ_by_more_than_a_plaintext(encrypt: Encrypt) -> None:
    ciphertexts = encrypt([mpz(42)] * 100)
    assert len(set(ciphertexts)) == 100
    # where the random parts were equal, the quotient of two ciphertexts would be 1 mod n and give the difference away
    assert len({ciphertext % N for ciphertext in ciphertexts}) == 100


@pytest.mark.parametrize(
    "kind", [lambda stream: PublicEncryptor(PUBLIC, stream), lambda stream: OwnerEncryptor(KEY, stream)]
)
def test_an_injected_stream_decides_the_ciphertexts(kind: Callable[..., PublicEncryptor | OwnerEncryptor]) -> None:
    first, again, other = (kind(random.Random(seed).randbytes).encrypt(PLAINTEXTS) for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)
    assert DECRYPTOR.decrypt(other) == PLAINTEXTS


def test_exponents_have_the_length_that_the_scheme_asks_for() -> None:
    asked: list[int] = []

    def stream(n_bytes: int) -> bytes:
        asked.append(n_bytes)
        return random.Random(len(asked)).randbytes(n_bytes)

    PublicEncryptor(PUBLIC, stream).encrypt([mpz(0)] * 3)
    assert asked[1:] == [BITS // 2 // 8] * 3  # |n| / 2 bits a ciphertext, after x
    asked.clear()
    OwnerEncryptor(KEY, stream).encrypt([mpz(0)])
    assert asked[2:] == [BITS // 2 // 8 + 8] * 2  # 64 bits over the order, modulo p^2 and q^2


def test_the_public_encryptor_follows_the_paper() -> None:
    """c = (1 + n)^m * h_s^r with h_s = (-x^2)^n, all modulo n^2, by plain powers from the same stream."""
    stream = random.Random(4)
    x = int.from_bytes(stream.randbytes(BITS // 8 + 8), "big") % N
    r = int.from_bytes(stream.randbytes(BITS // 16), "big")
    h_s = pow(-(x**2), int(N), int(N**2))
    expected = pow(1 + int(N), 77, int(N**2)) * pow(h_s, r, int(N**2)) % N**2
    assert PublicEncryptor(PUBLIC, random.Random(4).randbytes).encrypt([mpz(77)]) == [expected]


@by_both
def test_the_random_part_is_an_nth_residue(encrypt: Encrypt) -> None:
    order = (KEY.p - 1) * (KEY.q - 1)
    for zero in encrypt([mpz(0)] * 5):
        assert gmpy2.powmod(zero, order, N**2) == 1
        assert zero != 1


@pytest.mark.parametrize("stream", [bytes, lambda n: bytes(n - 1) + b"\x01", lambda n: b"12345"])
def test_useless_randomness_is_refused(stream: Callable[[int], bytes]) -> None:
    for build in (lambda: PublicEncryptor(PUBLIC, stream), lambda: OwnerEncryptor(KEY, stream)):
        with pytest.raises(UsageError, match="the randomness returned"):
            build()


@by_both
def test_plaintexts_that_would_wrap_are_refused(encrypt: Encrypt) -> None:
    for plaintext in ((N + 1) // 2, -((N + 1) // 2), N):
        with pytest.raises(UsageError, match="would wrap"):
            encrypt([mpz(0), plaintext])


def bounds_with_all_signs(codec: PackedFixedPoint, clients: int) -> np.ndarray:
    """[clients, values]: every client at +bound, every client at -bound, split signs, ones, zeros and a mixture."""
    bound = codec.largest_value
    same = np.tile([bound, -bound, 0, 1, -1], (clients, 1))
    split = np.where(np.arange(clients)[:, None] % 2, same, -same)
    mixture = np.random.default_rng(clients).choice([-bound, -bound + 1, -1, 0, 1, bound], (clients, 40))
    return np.concatenate([same, split, mixture], axis=1)


@pytest.mark.parametrize("clients", [2, 6, 100])
def test_sums_over_clients_are_exact_at_the_bounds(clients: int) -> None:
    codec = PackedFixedPoint(BITS, clients)
    integers = bounds_with_all_signs(codec, clients)
    kinds = list(ENCRYPTORS.values())
    sent = [
        ciphertexts_to_bytes(PUBLIC, kinds[client % 2].encrypt(codec.pack(row))) for client, row in enumerate(integers)
    ]
    count = codec.ciphertexts_for(integers.shape[1])
    total = add(PUBLIC, [ciphertexts_from_bytes(PUBLIC, message, count) for message in sent])
    summed = codec.unpack(DECRYPTOR.decrypt(total), integers.shape[1])
    np.testing.assert_array_equal(summed, integers.sum(axis=0))


def test_a_round_with_a_real_key() -> None:
    key = generate_keypair(2048, random.Random(5).randbytes)
    codec = PackedFixedPoint(2048, clients=6)
    weights = np.random.default_rng(0).normal(0, 0.05, (6, 150))
    shares = weights * (np.array([1200, 30000, 3000, 1200, 12000, 300]) / 47700)[:, None]
    encryptors: list[PublicEncryptor | OwnerEncryptor] = [PublicEncryptor(key.public_key), OwnerEncryptor(key)]
    columns = [
        encryptors[client % 2].encrypt(codec.pack(codec.quantise(share, 3))) for client, share in enumerate(shares)
    ]
    total = add(key.public_key, columns)
    assert len(ciphertexts_to_bytes(key.public_key, total)) == 3 * 512
    mean = codec.dequantise(codec.unpack(Decryptor(key).decrypt(total), 150), 3)
    assert np.abs(mean - shares.sum(axis=0)).max() <= codec.stated_error(3)
    for ciphertext, plaintext in zip(total, Decryptor(key).decrypt(total), strict=True):
        assert key.raw_decrypt(int(ciphertext)) == plaintext % key.public_key.n


def test_more_clients_than_agreed_are_noticed() -> None:
    codec = PackedFixedPoint(BITS, clients=6)
    column = ENCRYPTORS["owner"].encrypt(codec.pack(np.full(5, codec.largest_value)))
    with pytest.raises(MalformedMessage, match="packed value 0"):
        codec.unpack(DECRYPTOR.decrypt(add(PUBLIC, [column] * 7)), 5)


def test_another_key_is_noticed_by_the_packing() -> None:
    other = generate_keypair(BITS, random.Random(8).randbytes, allow_small=True)
    codec = PackedFixedPoint(BITS, clients=6)
    integers = np.arange(40)
    ciphertexts = PublicEncryptor(PUBLIC, random.Random(9).randbytes).encrypt(codec.pack(integers))
    np.testing.assert_array_equal(codec.unpack(DECRYPTOR.decrypt(ciphertexts), 40), integers)
    reduced = [ciphertext % other.public_key.nsquare for ciphertext in ciphertexts]
    with pytest.raises(MalformedMessage):
        codec.unpack(Decryptor(other).decrypt(reduced), 40)


BAD_CIPHERTEXTS = {
    "zero": (mpz(0), "outside"),
    "negative": (mpz(-1), "outside"),
    "n squared": (N * N, "outside"),
    "n": (N, "factor"),
    "p": (mpz(KEY.p), "factor"),
    "multiple of q": (mpz(KEY.q) * 12345, "factor"),
}


@pytest.mark.parametrize(("ciphertext", "message"), BAD_CIPHERTEXTS.values(), ids=BAD_CIPHERTEXTS.keys())
def test_what_is_no_ciphertext_is_refused(ciphertext: mpz, message: str) -> None:
    (sound,) = ENCRYPTORS["public"].encrypt([mpz(1)])
    check_ciphertext(sound, PUBLIC)
    with pytest.raises(MalformedMessage, match=message):
        check_ciphertext(ciphertext, PUBLIC)
    with pytest.raises(MalformedMessage, match=message):
        DECRYPTOR.decrypt([sound, ciphertext])
    if ciphertext >= 0:
        with pytest.raises(MalformedMessage, match=message):
            ciphertexts_from_bytes(PUBLIC, ciphertexts_to_bytes(PUBLIC, [sound, ciphertext]), 2)


@by_both
def test_messages_survive_their_bytes(encrypt: Encrypt) -> None:
    ciphertexts = [*encrypt(PLAINTEXTS), mpz(1)]
    data = ciphertexts_to_bytes(PUBLIC, ciphertexts)
    assert len(data) == len(ciphertexts) * ciphertext_bytes(PUBLIC) == 8 * 2 * BITS // 8
    assert ciphertexts_from_bytes(PUBLIC, data, len(ciphertexts)) == ciphertexts
    assert ciphertexts_from_bytes(PUBLIC, b"", 0) == []


def test_messages_of_another_length_are_refused() -> None:
    data = ciphertexts_to_bytes(PUBLIC, ENCRYPTORS["public"].encrypt(PLAINTEXTS))
    for wrong, count in ((data[:-1], 7), (data + b"\x00", 7), (data, 6), (data, 8), (b"", 1)):
        with pytest.raises(MalformedMessage, match="bytes for"):
            ciphertexts_from_bytes(PUBLIC, wrong, count)


def test_sums_need_clients_that_agree_in_length() -> None:
    column = ENCRYPTORS["public"].encrypt(PLAINTEXTS)
    assert add(PUBLIC, [column]) == column
    for columns in ([], [column, column[:-1]]):
        with pytest.raises(MalformedMessage, match="same number"):
            add(PUBLIC, columns)
