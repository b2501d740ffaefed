"""QSGD's Elias coding: against a slow one on strings of bits, on any levels and on any bytes."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from federation import elias
from federation.errors import MalformedMessage
from federation.qsgd import LARGEST_LEVELS, QsgdConfig, quantise, to_bytes

sparse = hnp.arrays(np.int32, st.integers(0, 300), elements=st.sampled_from([0] * 20 + [1, -1, 2, -3]))
dense = hnp.arrays(np.int32, st.integers(0, 60), elements=st.integers(-LARGEST_LEVELS, LARGEST_LEVELS))


def omega(number: int) -> str:
    """Elias (1975): "0" last; before it, while the number is over 1, its digits, and on with their count less 1."""
    code = "0"
    while number > 1:
        code = f"{number:b}" + code
        number = len(f"{number:b}") - 1
    return code


def by_hand(levels: list[int]) -> bytes:
    """QSGD's Code_s, with the gap to one past the end behind the last level."""
    bits, last = "", -1
    for place, level in enumerate(levels):
        if level:
            bits += omega(place - last) + ("1" if level < 0 else "0") + omega(abs(level))
            last = place
    bits += omega(len(levels) - last)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_the_published_codes() -> None:
    """Elias omega, as tabulated for 1 to 17 and 100."""
    table = {1: "0", 2: "100", 3: "110", 4: "101000", 7: "101110", 8: "1110000", 15: "1111110", 16: "10100100000",
             17: "10100100010", 100: "1011011001000"}  # fmt: skip
    assert {number: omega(number) for number in table} == table


@settings(deadline=None)
@given(sparse | dense)
def test_streams_are_those_of_the_slow_coder_and_read_back(levels: NDArray[np.int32]) -> None:
    content = elias.encode(levels, LARGEST_LEVELS)
    assert content == by_hand(levels.tolist())
    np.testing.assert_array_equal(elias.decode(content, len(levels), LARGEST_LEVELS), levels)


@pytest.mark.parametrize("gap", [1, 2, 255, 256, 65_535, 1 << 20, (1 << 22) + 5])
def test_long_gaps(gap: int) -> None:
    levels = np.zeros(gap + 3, np.int32)
    levels[gap - 1], levels[gap] = -2, 7
    content = elias.encode(levels, 7)
    assert content == by_hand(levels.tolist())
    np.testing.assert_array_equal(elias.decode(content, len(levels), 7), levels)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=40), st.integers(0, 60), st.integers(1, 300))
def test_any_bytes_are_refused_or_the_one_stream_of_what_they_say(content: bytes, size: int, largest: int) -> None:
    try:
        levels = elias.decode(content, size, largest)
    except MalformedMessage:
        return
    assert np.abs(levels).max(initial=0) <= largest
    assert elias.encode(levels, largest) == content


@settings(deadline=None, max_examples=300)
@given(sparse, st.data())
def test_changed_streams_are_refused_or_other_levels(levels: NDArray[np.int32], data: st.DataObject) -> None:
    content = bytearray(elias.encode(levels, 3))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    try:
        changed = elias.decode(bytes(content), len(levels), 3)
    except MalformedMessage:
        return
    assert not np.array_equal(changed, levels)


@pytest.mark.parametrize(
    ("bits", "size", "message"),
    [
        ("", 0, "ends within a code"),
        ("11111111", 4, "ends within a code"),
        ("0" + "0" + omega(4) + omega(4), 4, "beyond the largest, 3"),
        (omega(6), 4, "beyond the 4 values"),
        ("0" + "0" + "0" + omega(5), 4, "beyond the 4 values"),
        (omega(5) + "1", 4, "filled with zeros"),
        (omega(5) + "0" * 8, 4, "behind its end"),
        ("1" * 64, 4, "ends within a code"),
        ("11" + "1111" + "1" * 16 + "1" * 40, 4, "ends within a code"),
    ],
)
def test_wrong_streams_are_refused_with_the_reason(bits: str, size: int, message: str) -> None:
    bits += "0" * (-len(bits) % 8)
    content = int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""
    with pytest.raises(MalformedMessage, match=message):
        elias.decode(content, size, 3)


def test_few_levels_of_the_two_norm_take_less_than_packed() -> None:
    """The paper's point: with one level and the 2-norm nearly all values are zero."""
    vector = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    sizes = {}
    for coding in ("packed", "elias"):
        config = QsgdConfig(levels=1, norm="l2", bucket=512, coding=coding)  # type: ignore[arg-type]
        sizes[coding] = len(to_bytes(quantise(vector, config, torch.Generator().manual_seed(1)), config))
    assert sizes["elias"] < sizes["packed"] / 2


def test_two_million_values_take_well_under_a_second() -> None:
    draws = np.random.default_rng(0)
    levels = draws.integers(-127, 128, 2_000_000).astype(np.int32)
    elias.decode(elias.encode(levels[:9], 127), 9, 127)  # compiled before it is timed
    start = time.process_time()
    content = elias.encode(levels, 127)
    assert elias.decode(content, len(levels), 127)[-1] == levels[-1]
    assert time.process_time() - start < 2
