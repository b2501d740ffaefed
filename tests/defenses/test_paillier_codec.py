"""Packed fixed point against an oracle that packs value by value with Python's own integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defenses.paillier.codec import LARGEST_EXPONENT, SMALLEST_EXPONENT, PackedFixedPoint, power_of_two_exponent
from federation.errors import MalformedMessage, TrainingError, UsageError

CODEC = PackedFixedPoint(modulus_bits=2048, clients=6)


def pack_one_by_one(codec: PackedFixedPoint, integers: NDArray[np.int64]) -> list[int]:
    plaintexts = [0] * math.ceil(len(integers) / codec.values_per_ciphertext)
    for index, integer in enumerate(integers):
        plaintext, slot = divmod(index, codec.values_per_ciphertext)
        plaintexts[plaintext] += int(integer) << (slot * codec.slot_bits)
    return plaintexts


def unpack_one_by_one(codec: PackedFixedPoint, plaintexts: list[int], count: int) -> list[int]:
    integers = []
    half, whole = 1 << (codec.slot_bits - 1), 1 << codec.slot_bits
    for plaintext in plaintexts:
        rest = int(plaintext)
        for _ in range(codec.values_per_ciphertext):
            digit = (rest + half) % whole - half
            integers.append(digit)
            rest = (rest - digit) // whole
        assert rest == 0
    return integers[:count]


@st.composite
def codecs(draw: st.DrawFn) -> PackedFixedPoint:
    clients = draw(st.sampled_from([1, 2, 3, 6, 7, 8, 100, 1023]))
    fraction_bits = draw(st.integers(0, 43))
    modulus_bits = draw(st.sampled_from([128, 512, 1024, 2048, 3072]))
    return PackedFixedPoint(modulus_bits, clients, fraction_bits)


@st.composite
def messages(draw: st.DrawFn) -> tuple[PackedFixedPoint, NDArray[np.int64]]:
    codec = draw(codecs())
    bound = codec.largest_value
    elements = st.one_of(st.sampled_from([-bound, -1, 0, 1, bound]), st.integers(-bound, bound))
    shape = st.integers(0, 3 * codec.values_per_ciphertext).map(lambda count: min(count, 200))
    return codec, draw(hnp.arrays(np.int64, shape, elements=elements))


@settings(max_examples=150, deadline=None)
@given(messages())
def test_packing_equals_packing_one_by_one(message: tuple[PackedFixedPoint, NDArray[np.int64]]) -> None:
    codec, integers = message
    plaintexts = codec.pack(integers)
    assert plaintexts == pack_one_by_one(codec, integers)
    assert len(plaintexts) == codec.ciphertexts_for(len(integers))
    assert all(2 * abs(plaintext) < 1 << (codec.modulus_bits - 1) for plaintext in plaintexts)
    np.testing.assert_array_equal(codec.unpack(plaintexts, len(integers)), integers)


@settings(max_examples=100, deadline=None)
@given(messages(), st.data())
def test_sums_unpack_exactly(message: tuple[PackedFixedPoint, NDArray[np.int64]], data: st.DataObject) -> None:
    codec, integers = message
    if codec.clients < 10:
        factors = data.draw(st.lists(st.integers(-1, 1), min_size=codec.clients, max_size=codec.clients))
    else:
        factors = [data.draw(st.integers(-1, 1))] * codec.clients
    summed = [sum(column) for column in zip(*(codec.pack(integers * factor) for factor in factors), strict=True)]
    unpacked = codec.unpack([mpz(plaintext) for plaintext in summed], len(integers))
    np.testing.assert_array_equal(unpacked, integers * sum(factors))
    assert unpacked.tolist() == unpack_one_by_one(codec, summed, len(integers))


@pytest.mark.parametrize("modulus_bits", [128, 512, 2048])
@pytest.mark.parametrize("clients", [1, 2, 6, 100])
@pytest.mark.parametrize("sign", [-1, 1])
def test_full_plaintexts_at_the_bound_do_not_wrap(modulus_bits: int, clients: int, sign: int) -> None:
    codec = PackedFixedPoint(modulus_bits, clients)
    integers = np.full(codec.values_per_ciphertext, sign * codec.largest_value)
    (plaintext,) = codec.pack(integers)
    assert abs(clients * plaintext) < 1 << (modulus_bits - 2)  # n / 2 is at least 2^(bits - 2)
    np.testing.assert_array_equal(codec.unpack([clients * plaintext], len(integers)), clients * integers)


def test_the_layout_has_the_published_numbers() -> None:
    assert (CODEC.slot_bits, CODEC.values_per_ciphertext) == (31, 66)
    assert CODEC.bytes_per_value == pytest.approx(7.76, abs=0.005)
    assert PackedFixedPoint(3072, 6).values_per_ciphertext == 99
    assert CODEC.stated_error(3) == 6 * 2.0**-25


def test_levels_of_a_quantiser_take_narrower_slots() -> None:
    levels = PackedFixedPoint(2048, clients=6, fraction_bits=4)
    assert levels.slot_bits == 8  # sums within +-96
    assert levels.values_per_ciphertext == 255


@given(st.floats(0, 2.0**LARGEST_EXPONENT))
def test_the_exponent_is_the_smallest_that_bounds(magnitude: float) -> None:
    exponent = power_of_two_exponent(magnitude)
    assert magnitude <= 2.0**exponent
    assert exponent == SMALLEST_EXPONENT or magnitude > 2.0 ** (exponent - 1)


def test_exponents_of_plain_magnitudes() -> None:
    assert [power_of_two_exponent(x) for x in (8.0, 8.000001, 0.5, 1.0, 1500.0, 0.0)] == [3, 4, -1, 0, 11, -126]


@pytest.mark.parametrize("magnitude", [math.nan, math.inf, -1.0, 2.0**129])
def test_no_bound_on_what_is_not_a_magnitude(magnitude: float) -> None:
    with pytest.raises(TrainingError, match="largest magnitude"):
        power_of_two_exponent(magnitude)


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-1, 1)),
    st.integers(-30, 30),
    st.integers(0, 45),
    st.integers(1, 6),
)
def test_rounding_stays_within_the_stated_error(
    values: NDArray[np.float64], exponent: int, fraction_bits: int, clients: int
) -> None:
    codec = PackedFixedPoint(2048, clients, fraction_bits)
    scaled = np.ldexp(values, exponent)
    exponents = np.full(len(values), exponent)
    returned = codec.dequantise(clients * codec.quantise(scaled, exponents), exponents)
    assert np.abs(returned - clients * scaled).max() <= codec.stated_error(exponent) * (1 + 1e-9)


def test_every_tensor_has_its_own_scale() -> None:
    exponents = np.array([3, 11, -4])
    values = np.array([-8.0, 1999.0, 2.0**-30])
    integers = CODEC.quantise(values, exponents)
    assert integers.tolist() == [-(2**27), 1999 * 2**16, 2]
    np.testing.assert_array_equal(CODEC.dequantise(integers, exponents), [-8.0, 1999.0, 2.0**-30])


def test_numbers_on_the_grid_come_back_exactly() -> None:
    weights = np.random.default_rng(0).normal(0, 0.05, 500).astype(np.float32)
    on_grid = np.rint(weights * 2.0**24) / 2.0**24
    np.testing.assert_array_equal(CODEC.dequantise(CODEC.quantise(on_grid, 3), 3), on_grid)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    with pytest.raises(TrainingError, match=f"value 2 is {bad}"):
        CODEC.quantise(np.array([0.0, 1.0, bad, 0.5]), np.zeros(4, int))


@pytest.mark.parametrize("over", [math.nextafter(8, 9), -math.nextafter(8, 9), 1e308])
def test_what_is_over_its_bound_is_refused_and_the_worst_named(over: float) -> None:
    with pytest.raises(TrainingError, match=r"value 3 is .* bound of \+-2\^3"):
        CODEC.quantise(np.array([9.0, -8.0, 0.0, 1.5 * over]), np.array([4, 3, 3, 3]))
    with pytest.raises(TrainingError, match="value 0 is"):
        CODEC.quantise(np.array([over]), np.array([3]))


@pytest.mark.parametrize("exponents", [np.array([0.5]), np.array([129]), np.array([-127]), 1000])
def test_exponents_that_are_none_are_refused(exponents: object) -> None:
    with pytest.raises(UsageError, match="exponents of bounds"):
        CODEC.quantise(np.array([0.0]), exponents)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="exponents of bounds"):
        CODEC.dequantise(np.array([0]), exponents)  # type: ignore[arg-type]


@pytest.mark.parametrize("integer", [2**27 + 1, -(2**27) - 1, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
def test_integers_that_would_spill_are_refused(integer: int) -> None:
    with pytest.raises(UsageError, match="pack takes integers within"):
        CODEC.pack(np.array([0, integer]))


@pytest.mark.parametrize("integers", [np.zeros(3), np.zeros((2, 2), np.int64), np.zeros(3, np.int32)])
def test_other_arrays_are_refused(integers: NDArray[np.int64]) -> None:
    with pytest.raises(UsageError, match="vector of int64"):
        CODEC.pack(integers)


@pytest.mark.parametrize(
    ("bits", "clients", "fraction_bits"),
    [(2048, 0, 27), (2048, 6, -1), (2048, 2, 53), (2048, 2**27, 27), (128, 1, 200)],
)
def test_layouts_that_cannot_be_are_refused(bits: int, clients: int, fraction_bits: int) -> None:
    with pytest.raises(UsageError, match="packing for"):
        PackedFixedPoint(bits, clients, fraction_bits)


def test_a_slot_wider_than_the_modulus_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        PackedFixedPoint(32, 100, 40)


@pytest.mark.parametrize("count", [0, 66, 133])
def test_another_number_of_plaintexts_is_refused(count: int) -> None:
    plaintexts = CODEC.pack(np.zeros(100, np.int64))
    with pytest.raises(MalformedMessage, match="2 packed plaintexts"):
        CODEC.unpack(plaintexts, count)


def test_a_plaintext_out_of_range_is_refused() -> None:
    for plaintext in (mpz(1) << 66 * 31, -(mpz(1) << 66 * 31)):
        with pytest.raises(MalformedMessage, match="packed plaintext 1 is outside"):
            CODEC.unpack([mpz(0), plaintext], 70)


@pytest.mark.parametrize("excess", [6 * 2**27 + 1, -6 * 2**27 - 1])
def test_a_slot_over_the_sum_of_all_clients_is_refused(excess: int) -> None:
    with pytest.raises(MalformedMessage, match=f"packed value 4 is {excess}"):
        CODEC.unpack([mpz(excess) << 4 * 31], 10)
    assert CODEC.unpack([mpz(6 * 2**27) << 4 * 31], 10)[4] == 6 * 2**27


def test_padding_that_is_not_zero_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="padding"):
        CODEC.unpack([mpz(1) << 65 * 31], 65)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 140), st.lists(st.tuples(st.integers(0, 139), st.integers(-2, 2), st.integers(-2, 2)), max_size=5)
)
def test_slots_are_refused_exactly_where_they_cannot_be_a_sum(count: int, changes: list[tuple[int, int, int]]) -> None:
    slots = np.zeros(CODEC.ciphertexts_for(count) * 66, np.int64)
    for position, multiple, offset in changes:  # at and around zero, half the bound and the bound
        slots[position % len(slots)] = multiple * CODEC.largest_sum // 2 + offset
    plaintexts = [mpz(plaintext) for plaintext in pack_one_by_one(CODEC, slots)]
    if np.abs(slots).max() > CODEC.largest_sum or slots[count:].any():
        with pytest.raises(MalformedMessage, match=r"packed value|padding"):
            CODEC.unpack(plaintexts, count)
    else:
        np.testing.assert_array_equal(CODEC.unpack(plaintexts, count), slots[:count])
