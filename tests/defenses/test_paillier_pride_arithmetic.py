"""Lists of phe's numbers against phe itself, exact fractions and the quotient of ciphertexts."""

from __future__ import annotations

from fractions import Fraction

import gmpy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phe.encoding import EncodedNumber
from phe.paillier import EncryptedNumber

from defenses.paillier.arithmetic import OwnerEncryptor, PublicEncryptor
from defenses.paillier.keys import generate_keypair
from defenses.paillier.pride import arithmetic
from federation.encrypted_numbers import EncryptedNumbers
from federation.errors import MalformedMessage
from federation.secret_root import SecretRoot

KEY = generate_keypair(512, SecretRoot(b"keys of the arithmetic's tests.." * 2).reader(), allow_small=True)
PUBLIC = KEY.public_key
ENCRYPTOR = OwnerEncryptor(KEY)
VALUES = np.array([0.0, -0.0, 0.1, -3.5, 1e-6, -2.5e-9, 41.0, 1e5, 0.0625])
OTHERS = np.array([0.3, 0.0, -0.1, 3.5, 7.0, 1e-6, -0.5, 1e-5, -1.0])

weights = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=4).map(np.array)
precisions = st.none() | st.sampled_from([1e-9, 1e-7, 0.01, 0.5, 1.0, 7.0, 16.0, 100.0])


def owned(values: np.ndarray, precision: float | None = None) -> list[EncryptedNumber]:
    return arithmetic.encrypt_as_owner(values, ENCRYPTOR, PUBLIC, absolute_precision=precision)


@settings(max_examples=40, deadline=None)
@given(weights, precisions)
def test_both_ways_to_encrypt_give_what_phe_gives(values: np.ndarray, precision: float | None) -> None:
    expected = [PUBLIC.encrypt(value, precision=precision) for value in values.tolist()]
    for encrypted in (arithmetic.encrypt(values, PUBLIC, absolute_precision=precision), owned(values, precision)):
        assert [number.exponent for number in encrypted] == [number.exponent for number in expected]
        assert [KEY.decrypt(number) for number in encrypted] == [KEY.decrypt(number) for number in expected]
    assert np.array_equal(arithmetic.decrypt(KEY, expected), arithmetic.as_encoded(values, precision))


@settings(max_examples=200, deadline=None)
@given(weights, precisions)
def test_the_encoding_step_is_the_one_of_phe(values: np.ndarray, precision: float | None) -> None:
    expected = [EncodedNumber.encode(PUBLIC, value, precision=precision).decode() for value in values.tolist()]
    assert np.array_equal(arithmetic.as_encoded(values, precision), expected)


def test_the_papers_precision_rounds_to_integers() -> None:
    assert arithmetic.encoding_step(7.0) == 1.0
    encrypted = arithmetic.encrypt(np.array([0.4, -0.3, 1.6, 0.5]), PUBLIC, absolute_precision=7.0)
    assert [KEY.decrypt(number) for number in encrypted] == [0, 0, 2, 0]


def test_encryption_is_fresh() -> None:
    for encrypt in (lambda: owned(VALUES), lambda: arithmetic.encrypt(VALUES, PUBLIC)):
        numbers = [*encrypt(), *encrypt()]
        nonces = {number.ciphertext(be_secure=False) % PUBLIC.n for number in numbers}
        assert len(nonces) == 2 * len(VALUES)
        assert 1 not in nonces


def test_sums_and_quotients_are_exact_but_for_the_last_rounding() -> None:
    summed = arithmetic.add_plain(arithmetic.encrypt(VALUES, PUBLIC), OTHERS)
    columns = [summed, arithmetic.encrypt(OTHERS, PUBLIC), arithmetic.encrypt(VALUES, PUBLIC)]
    read = arithmetic.decrypt(KEY, arithmetic.divide(arithmetic.divide(arithmetic.add(columns), 3), 2))
    third = Fraction(1 / 3)  # phe multiplies by the float
    expected = [
        float((2 * Fraction(value) + 2 * Fraction(other)) * third / 2)
        for value, other in zip(VALUES.tolist(), OTHERS.tolist(), strict=True)
    ]
    assert read.tolist() == expected


def test_plain_summands_are_rounded_where_a_precision_is_given() -> None:
    encrypted = arithmetic.encrypt(VALUES, PUBLIC, absolute_precision=7.0)
    read = arithmetic.decrypt(KEY, arithmetic.add_plain(encrypted, OTHERS, absolute_precision=7.0))
    assert np.array_equal(read, np.rint(VALUES) + np.rint(OTHERS))


def quotient(before: EncryptedNumbers, after: EncryptedNumbers, scalar: int, index: int) -> int | None:
    """The plaintext m of (1 + n)^m = after / before^(16^k * scalar) modulo n^2, or None where it is no such power."""
    n, steps = before.modulus, before.exponents[index] - after.exponents[index]
    if scalar != 1:
        steps -= 14  # the exponent of phe's one half
    power = gmpy2.powmod(before.ciphertexts[index], 16 ** int(steps) * scalar, n * n)
    ratio = after.ciphertexts[index] * gmpy2.invert(power, n * n) % (n * n)
    if (ratio - 1) % n:
        return None
    plaintext = (ratio - 1) // n
    return int(plaintext - n if plaintext > n // 2 else plaintext)


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("randomised", [False, True])
def test_what_was_added_shows_in_the_quotient_unless_re_randomised(halved: bool, randomised: bool) -> None:
    received = arithmetic.to_message(owned(VALUES), randomised=False)
    summed = arithmetic.add_plain(arithmetic.from_message(received, PUBLIC), OTHERS)
    if halved:
        summed = arithmetic.divide(summed, 2)
    sent = arithmetic.to_message(summed, randomised=randomised)
    scalar = 2**55 if halved else 1  # phe's one half is 2^55 * 16^-14
    found = [quotient(received, sent, scalar, index) for index in range(len(OTHERS))]
    if randomised:
        assert found == [None] * len(OTHERS)
        return
    exponents = sent.exponents.tolist()
    values = [Fraction(m) * Fraction(16) ** e for m, e in zip(found, exponents, strict=True) if m is not None]
    assert values == [Fraction(value) / (2 if halved else 1) for value in OTHERS.tolist()]


def test_re_randomising_changes_every_ciphertext_and_no_number() -> None:
    plain = owned(VALUES)
    fresh = arithmetic.rerandomised(plain, PublicEncryptor(PUBLIC))
    assert np.array_equal(arithmetic.decrypt(KEY, fresh), VALUES)
    assert [number.exponent for number in fresh] == [number.exponent for number in plain]
    before, after = (arithmetic.to_message(numbers, randomised=False) for numbers in (plain, fresh))
    assert not set(before.ciphertexts) & set(after.ciphertexts)
    # the quotient of the two is an encryption of zero, which is no power of 1 + n
    assert [quotient(before, after, 1, index) for index in range(len(VALUES))] == [None] * len(VALUES)


def test_messages_come_back_and_are_held_to_their_key() -> None:
    message = arithmetic.to_message(arithmetic.encrypt(VALUES, PUBLIC), randomised=True)
    assert np.array_equal(arithmetic.decrypt(KEY, arithmetic.from_message(message, PUBLIC)), VALUES)
    other = EncryptedNumbers(message.modulus + 2, message.ciphertexts, message.exponents)
    with pytest.raises(MalformedMessage, match="another modulus"):
        arithmetic.from_message(other, PUBLIC)
    shared = EncryptedNumbers(message.modulus, (*message.ciphertexts[1:], int(KEY.p)), message.exponents)
    with pytest.raises(MalformedMessage, match="factor"):
        arithmetic.from_message(shared, PUBLIC)


@pytest.mark.parametrize("exponent", [-1024, 1024])
def test_exponents_out_of_all_proportion_are_refused(exponent: int) -> None:
    [honest] = arithmetic.encrypt(np.array([0.5]), PUBLIC)
    forged = EncryptedNumber(PUBLIC, honest.ciphertext(), exponent)
    with pytest.raises(MalformedMessage, match="cannot be added"):
        arithmetic.add_plain([forged], np.array([0.5]))
    with pytest.raises(MalformedMessage, match="cannot be added"):
        arithmetic.add([[honest], [forged]])
    if exponent > 0:
        with pytest.raises(MalformedMessage, match="does not decrypt"):
            arithmetic.decrypt(KEY, [forged])


def test_a_plaintext_in_the_forbidden_middle_is_refused() -> None:
    middle = EncryptedNumber(PUBLIC, PUBLIC.raw_encrypt(int(PUBLIC.n // 2)), 0)
    with pytest.raises(MalformedMessage, match="does not decrypt: Overflow"):
        arithmetic.decrypt(KEY, [middle])
