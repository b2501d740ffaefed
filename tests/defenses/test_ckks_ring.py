"""CKKS without TenSEAL: words on the wire, their sum, the grid, messages, and what is said where TenSEAL is missing."""

from __future__ import annotations

import sys
from math import exp, log2

import gmpy2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.audit.stand_in import stand_in
from defenses.ckks.grid import LARGEST, SCALE, UNIT, ciphertexts_for, from_slots, to_slots
from defenses.ckks.message import CkksMessage
from defenses.ckks.protocol import CkksServer
from defenses.ckks.ring import (
    CIPHERTEXT_BYTES,
    DEGREE,
    LARGEST_SUM,
    MODULUS,
    WORDS,
    Words,
    add,
    words_from_bytes,
    words_to_bytes,
)
from defenses.registry import DEFENSES, build_defense
from federation.errors import MalformedMessage, UsageError
from federation.messages import client_name
from federation.protocol import RoundContext
from federation.seeds import torch_generator


def random_words(seed: int, ciphertexts: int = 1) -> Words:
    return np.random.default_rng(seed).integers(0, MODULUS, (ciphertexts, WORDS), dtype=np.uint64)


def test_the_modulus_is_the_largest_prime_under_its_bits_with_a_transform() -> None:
    candidates = range(2**56 - 2 * DEGREE + 1, 2**56 - 10**6, -2 * DEGREE)
    assert next(number for number in candidates if gmpy2.is_prime(number, 40)) == MODULUS


def test_words_take_seven_little_endian_bytes() -> None:
    words = random_words(0, ciphertexts=2)
    content = words_to_bytes(words)
    assert content == b"".join(int(word).to_bytes(7, "little") for word in words.reshape(-1))
    assert np.array_equal(words_from_bytes(content, 2, "test"), words)


@pytest.mark.parametrize("content", [b"", bytes(CIPHERTEXT_BYTES - 1), bytes(CIPHERTEXT_BYTES + 1), bytes(7)])
def test_other_lengths_are_refused(content: bytes) -> None:
    with pytest.raises(MalformedMessage, match="bytes of ciphertext"):
        words_from_bytes(content, 1, "test")


def test_coefficients_are_under_the_modulus() -> None:
    words = random_words(0)
    words[0, -1] = MODULUS - 1
    assert np.array_equal(words_from_bytes(words_to_bytes(words), 1, "test"), words)
    words[0, -1] = MODULUS
    with pytest.raises(MalformedMessage, match="not under the modulus"):
        words_from_bytes(words_to_bytes(words), 1, "test")


def test_sums_are_those_of_integers_modulo_q() -> None:
    summands = [random_words(seed) for seed in range(5)]
    expected = [sum(int(words[0, index]) for words in summands) % MODULUS for index in range(WORDS)]
    assert add(summands)[0].tolist() == expected


def test_the_largest_sum_does_not_overflow() -> None:
    largest = np.full((1, WORDS), MODULUS - 1, np.uint64)
    assert (add([largest] * LARGEST_SUM) == MODULUS - LARGEST_SUM).all()
    with pytest.raises(UsageError, match="256 contributions at most, not 257"):
        add([largest] * (LARGEST_SUM + 1))


def test_the_noise_stays_under_half_a_unit_by_the_stated_probability() -> None:
    half_a_unit = UNIT * SCALE / 2
    exponent = half_a_unit**2 / (2 * LARGEST_SUM * DEGREE / 2 * (10.5 + 0.25))
    assert half_a_unit == 2**15
    assert log2(2 * exp(-exponent)) < -136


def test_slots_of_the_largest_values_stay_under_half_the_modulus() -> None:
    assert 2**0.5 * LARGEST * SCALE < 2**54 < MODULUS / 2 - LARGEST_SUM * UNIT * SCALE


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-LARGEST, LARGEST), max_size=20))
def test_values_come_back_from_slots_within_half_a_unit(values: list[float]) -> None:
    array = np.array(values)
    recovered = from_slots(to_slots(array), len(array), 1, "test")
    assert np.abs(recovered - array).max(initial=0) <= UNIT / 2


@pytest.mark.parametrize("count", [0, 1, DEGREE - 1, DEGREE, 2 * DEGREE - 1])
def test_slots_have_room_for_the_values_and_the_counter(count: int) -> None:
    slots = to_slots(np.ones(count))
    assert slots.shape == (ciphertexts_for(count), DEGREE)
    assert slots.reshape(-1)[count] == UNIT
    assert not slots.reshape(-1)[count + 1 :].any()
    assert slots.size - DEGREE < count + 1 <= slots.size


def test_noise_under_half_a_unit_is_rounded_away() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 100)
    slots = to_slots(values)
    noise = np.random.default_rng(1).uniform(-0.499, 0.499, slots.shape) * UNIT
    assert np.array_equal(from_slots(slots + noise, 100, 1, "test"), from_slots(slots, 100, 1, "test"))


@pytest.mark.parametrize(
    ("index", "value", "reason"),
    [(0, LARGEST + 1, "beyond"), (0, np.nan, "beyond"), (100, 2 * UNIT, "sum of 2"), (101, UNIT, "padding")],
)
def test_slots_that_no_client_filled_are_refused(index: int, value: float, reason: str) -> None:
    slots = to_slots(np.ones(100))
    slots[0, index] = value
    with pytest.raises(MalformedMessage, match=reason):
        from_slots(slots, 100, 1, "test")


@pytest.mark.parametrize("contributions", [0, -1, LARGEST_SUM + 1])
def test_messages_of_impossible_sums_are_refused(contributions: int) -> None:
    layout = stand_in().layout
    counters = {
        spec.name: torch.ones(spec.shape, dtype=spec.dtype) for spec in layout if not spec.dtype.is_floating_point
    }
    payload = CkksMessage(random_words(0), contributions, counters).to_bytes()
    with pytest.raises(MalformedMessage, match="number of contributions"):
        CkksMessage.from_bytes(payload, layout, "test")


def test_the_server_adds_without_any_key_or_library(without_tenseal: None) -> None:
    layout = stand_in().layout
    counters = {spec.name: spec for spec in layout if not spec.dtype.is_floating_point}
    uploads, summands = {}, []
    for number in range(3):
        counts = {name: torch.full(spec.shape, number, dtype=spec.dtype) for name, spec in counters.items()}
        summands.append(random_words(number))
        uploads[client_name(number)] = CkksMessage(summands[-1], 1, counts).to_bytes()
    context = RoundContext(0, tuple(uploads), dict.fromkeys(uploads, 1), torch_generator("test"))
    payload = CkksServer(layout).combine(uploads, b"", context, lambda sender, weights: weights)
    message = CkksMessage.from_bytes(payload, layout, "test")
    assert np.array_equal(message.words, add(summands))
    assert message.contributions == 3
    assert all((tensor == 2).all() for tensor in message.counters.values())


@pytest.fixture
def without_tenseal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tenseal", "tenseal.sealapi"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_tenseal_one_line_says_what_to_install(without_tenseal: None) -> None:
    assert "CKKS" in (DEFENSES.get("ckks").__doc__ or "")
    with pytest.raises(UsageError, match=r"pip install 'keyhole\[ckks\]'") as caught:
        build_defense("ckks")
    assert "\n" not in str(caught.value)
