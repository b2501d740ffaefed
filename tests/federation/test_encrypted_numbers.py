"""The wire format of encrypted numbers: there and back, read by phe, and refused where it is anything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phe.paillier import EncryptedNumber, generate_paillier_keypair
from torch import Tensor

from federation.encrypted_numbers import LARGEST_EXPONENT, EncryptedNumbers
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes

MODULUS = (1 << 255) + 95
BYTES = 32

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@st.composite
def numbers(draw: st.DrawFn) -> EncryptedNumbers:
    modulus = draw(st.integers(1 << 127, 1 << 600))
    count = draw(st.integers(0, 5))
    ciphertexts = draw(st.lists(st.integers(1, modulus * modulus - 1), min_size=count, max_size=count))
    exponents = draw(st.lists(st.integers(-LARGEST_EXPONENT, LARGEST_EXPONENT), min_size=count, max_size=count))
    return EncryptedNumbers(modulus, tuple(ciphertexts), np.array(exponents, np.int32))


@settings(max_examples=60, deadline=None)
@given(numbers())
def test_numbers_come_back_from_a_message(sent: EncryptedNumbers) -> None:
    message = tensors_to_bytes({**sent.to_tensors(), "other": torch.ones(3)})
    tensors = raw_tensors_from_bytes(message, "test")
    read = EncryptedNumbers.take_from(tensors, "test")
    assert (read.modulus, read.ciphertexts) == (sent.modulus, sent.ciphertexts)
    assert read.exponents.dtype == np.int32
    assert read.exponents.tolist() == sent.exponents.tolist()
    assert tensors.keys() == {"other"}


def test_the_tensors_are_as_documented() -> None:
    tensors = EncryptedNumbers(MODULUS, (1, 258, MODULUS), np.array([-14, 0, 3], np.int32)).to_tensors()
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "encrypted.modulus": (torch.uint8, (BYTES,)),
        "encrypted.ciphertexts": (torch.uint8, (3, 2 * BYTES)),
        "encrypted.exponents": (torch.int32, (3,)),
    }
    assert tensors["encrypted.ciphertexts"][1].tolist() == [0] * (2 * BYTES - 2) + [1, 2]
    assert tensors["encrypted.modulus"].tolist() == list(MODULUS.to_bytes(BYTES, "big"))


def test_phe_reads_what_phe_wrote() -> None:
    public_key, private_key = generate_paillier_keypair(n_length=256)
    values = [0.0, -1.5, 3.25e-5, 7.0, -1e4]
    encrypted = [public_key.encrypt(value) for value in values]
    sent = EncryptedNumbers(
        int(public_key.n),
        tuple(number.ciphertext() for number in encrypted),
        np.array([number.exponent for number in encrypted], np.int32),
    )
    read = EncryptedNumbers.take_from(sent.to_tensors(), "test")
    columns = zip(read.ciphertexts, read.exponents.tolist(), strict=True)
    assert [private_key.decrypt(EncryptedNumber(public_key, *column)) for column in columns] == values


def without(name: str) -> Change:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: {**tensors, name: change(tensors[name])}


def filled(row: int, content: int) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[row] = torch.tensor(list(content.to_bytes(2 * BYTES, "big")), dtype=torch.uint8)
        return changed

    return change


MALFORMED: dict[str, tuple[Change, str]] = {
    "no modulus": (without("encrypted.modulus"), "no vector of bytes with the modulus"),
    "no ciphertexts": (without("encrypted.ciphertexts"), "no table of ciphertexts of 64 bytes"),
    "no exponents": (without("encrypted.exponents"), "one int32 for each of the 3"),
    "a modulus of signed bytes": (replaced("encrypted.modulus", lambda t: t.view(torch.int8)), "no vector of bytes"),
    "a modulus with axes": (replaced("encrypted.modulus", lambda t: t[None]), "no vector of bytes"),
    "a padded modulus": (replaced("encrypted.modulus", lambda t: torch.cat([t[:1] * 0, t])), "the first not 0"),
    "a short modulus": (replaced("encrypted.modulus", lambda t: t[:15]), "16 bytes or more"),
    "another modulus length": (replaced("encrypted.modulus", lambda t: t[:31]), "no table of ciphertexts of 62 bytes"),
    "ciphertexts in one row": (replaced("encrypted.ciphertexts", lambda t: t.flatten()), "no table"),
    "signed ciphertexts": (replaced("encrypted.ciphertexts", lambda t: t.view(torch.int8)), "no table"),
    "a ciphertext short": (replaced("encrypted.ciphertexts", lambda t: t[1:]), "each of the 2 ciphertexts"),
    "a ciphertext of zero": (replaced("encrypted.ciphertexts", filled(1, 0)), "ciphertext 1 is outside"),
    "a ciphertext of n^2": (replaced("encrypted.ciphertexts", filled(2, MODULUS**2)), "ciphertext 2 is outside"),
    "wide exponents": (replaced("encrypted.exponents", lambda t: t.long()), "one int32 for each"),
    "exponents with axes": (replaced("encrypted.exponents", lambda t: t[None]), "one int32 for each"),
    "a large exponent": (replaced("encrypted.exponents", lambda t: t + LARGEST_EXPONENT), "exponent 2 is 1025"),
    "the smallest int32": (
        replaced("encrypted.exponents", lambda t: torch.full_like(t, -(2**31))), "exponent 0 is -2147483648"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_anything_else_is_refused(case: str) -> None:
    change, reason = MALFORMED[case]
    tensors = EncryptedNumbers(MODULUS, (1, 2, 3), np.array([-14, 0, 1], np.int32)).to_tensors()
    with pytest.raises(MalformedMessage, match=reason) as raised:
        EncryptedNumbers.take_from(change(tensors), "the test's message")
    assert str(raised.value).startswith("the test's message: ")


def test_the_bounds_themselves_are_accepted() -> None:
    exponents = np.array([-LARGEST_EXPONENT, LARGEST_EXPONENT], np.int32)
    sent = EncryptedNumbers(MODULUS, (1, MODULUS**2 - 1), exponents)
    assert EncryptedNumbers.take_from(sent.to_tensors(), "test").ciphertexts == sent.ciphertexts
