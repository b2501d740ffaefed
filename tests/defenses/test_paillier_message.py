"""The Paillier messages: what survives its bytes, and everything else refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from defenses.paillier.codec import LARGEST_EXPONENT, SMALLEST_EXPONENT
from defenses.paillier.message import Occasion, PaillierMessage, exponents_from_bytes, exponents_to_bytes
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.weights import layout_of

LAYOUT = layout_of(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
COUNTERS = {"1.num_batches_tracked": torch.tensor(5)}
EXPONENTS = (0, 1, -126, 128, 3, 4)
MESSAGE = PaillierMessage(b"ciphertexts", Occasion(7, ("client-0", "client-12"), EXPONENTS), COUNTERS)

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=60),
    st.integers(0, 2**32 - 1),
    st.lists(names, min_size=1, max_size=8, unique=True),
    st.lists(st.integers(SMALLEST_EXPONENT, LARGEST_EXPONENT), min_size=6, max_size=6),
)
def test_messages_survive_their_bytes(content: bytes, number: int, cohort: list[str], exponents: list[int]) -> None:
    message = PaillierMessage(content, Occasion(number, tuple(cohort), tuple(exponents)), COUNTERS)
    assert PaillierMessage.from_bytes(message.to_bytes(), LAYOUT, "test") == message
    assert exponents_from_bytes(exponents_to_bytes(tuple(exponents)), LAYOUT, "test") == tuple(exponents)


def changed(**fields: Tensor | None) -> bytes:
    tensors: dict[str, Any] = raw_tensors_from_bytes(MESSAGE.to_bytes(), "test")
    tensors |= {f"paillier.{name}": tensor for name, tensor in fields.items()}
    return tensors_to_bytes({name: tensor for name, tensor in tensors.items() if tensor is not None})


def as_bytes(text: bytes) -> Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not a readable set"),
        (changed(ciphertexts=None), "no vector of ciphertext bytes"),
        (changed(ciphertexts=torch.zeros(2, 2, dtype=torch.uint8)), "no vector of ciphertext bytes"),
        (changed(round=None), "the round must be"),
        (changed(round=torch.tensor([-1])), "the round must be"),
        (changed(round=torch.tensor([2**32])), "the round must be"),
        (changed(round=torch.tensor([1, 2])), "the round must be"),
        (changed(round=torch.tensor([1], dtype=torch.int32)), "the round must be"),
        (changed(cohort=None), "different names"),
        (changed(cohort=as_bytes(b"")), "different names"),
        (changed(cohort=as_bytes(b"client-0\n")), "different names"),
        (changed(cohort=as_bytes(b"client-0\nclient-0")), "different names"),
        (changed(cohort=as_bytes(b"client-\xff")), "different names"),
        (changed(cohort=torch.tensor([1, 2])), "different names"),
        (changed(cohort=as_bytes("\n".join(map(str, range(10_001))).encode())), "1 to 10000 different names"),
        (changed(exponents=None), "one int16 exponent"),
        (changed(exponents=torch.zeros(5, dtype=torch.int16)), "one int16 exponent"),
        (changed(exponents=torch.zeros(6)), "one int16 exponent"),
        (changed(exponents=torch.tensor([0, 0, 0, 0, 0, 129], dtype=torch.int16)), "outside -126 to 128"),
        (changed(capacity=torch.tensor([2])), "missing or unknown"),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(payload: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        PaillierMessage.from_bytes(payload, LAYOUT, "global message")
    assert str(caught.value).startswith("global message: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("exponents", [(), (0,) * 5, (0, 0, 0, 0, 0, -127)])
def test_other_bounds_are_refused(exponents: tuple[int, ...]) -> None:
    with pytest.raises(MalformedMessage, match="exponent"):
        exponents_from_bytes(exponents_to_bytes(exponents), LAYOUT, "bounds")
    with pytest.raises(MalformedMessage, match="exponents alone"):
        exponents_from_bytes(tensors_to_bytes({"others": torch.zeros(6, dtype=torch.int16)}), LAYOUT, "bounds")
