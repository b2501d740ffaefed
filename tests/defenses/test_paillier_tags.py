"""Tags: where they lie, that honest sums pass, and that any other sum is refused and its cause named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from defenses.paillier.codec import DEFAULT_FRACTION_BITS, PackedFixedPoint
from defenses.paillier.message import Occasion
from defenses.paillier.tags import TAG_BITS, ContributionTags, TagDigits, ciphertexts_for, with_tags, without_tags
from federation.errors import MalformedMessage

BITS = DEFAULT_FRACTION_BITS
TAGS = ContributionTags(b"secret of the tags" * 2, TagDigits(BITS))
COHORT = tuple(f"client-{index}" for index in range(6))
OCCASION = Occasion(3, COHORT, (3, 11, -4))
COUNT = 8


def sums(present: list[int], count: int = COUNT, occasion: Occasion = OCCASION) -> NDArray[np.int64]:
    """Tags of a sum in which contribution k counts `present[k]` times."""
    due = np.stack([TAGS.of(client, occasion, count) for client in occasion.cohort])
    return np.array(present) @ due


@given(hnp.arrays(np.int64, st.integers(0, 40), elements=st.integers(-9, 9)), st.integers(2, 12))
def test_tags_lie_behind_the_values_of_each_ciphertext(values: NDArray[np.int64], slots: int) -> None:
    count = ciphertexts_for(len(values), slots)
    tags = np.arange(100, 100 + count)
    laid_out = with_tags(values, tags, slots)
    expected: list[int] = []
    for ciphertext in range(count):
        own = values[ciphertext * (slots - 1) : (ciphertext + 1) * (slots - 1)].tolist()
        expected += [*own, *[0] * (slots - 1 - len(own)), 100 + ciphertext]
    assert laid_out.tolist() == expected
    again, found = without_tags(laid_out, len(values), slots)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(found, tags)


def test_padding_before_the_last_tag_must_be_zero() -> None:
    laid_out = with_tags(np.arange(1, 6), np.array([7, 7]), 4)
    laid_out[-2] = 1
    with pytest.raises(MalformedMessage, match="padding after the 5 packed values"):
        without_tags(laid_out, 5, 4)


@pytest.mark.parametrize("key_bits", [2048, 3072])
def test_a_tagged_value_of_six_clients_takes_less_than_7_9_bytes(key_bits: int) -> None:
    slots = PackedFixedPoint(key_bits, clients=6).values_per_ciphertext
    values = 2_240_000
    assert ciphertexts_for(values, slots) * 2 * key_bits / 8 / values <= 7.9


def test_tags_fill_their_range_evenly() -> None:
    tags = TAGS.of("client-0", OCCASION, 20_000)
    half = 1 << BITS
    assert -half <= tags.min() < -0.999 * half
    assert 0.999 * half < tags.max() < half
    counts = np.histogram(tags, bins=16, range=(-half, half))[0]
    assert abs(counts - 1250).max() < 6 * 1250**0.5


@pytest.mark.parametrize(
    "change", [{"round": 4}, {"cohort": COHORT[:5]}, {"cohort": COHORT[::-1]}, {"exponents": (3, 11, -3)}]
)
def test_tags_depend_on_everything_that_the_sum_is_of(change: dict[str, object]) -> None:
    other = dataclasses.replace(OCCASION, **change)  # type: ignore[arg-type]
    assert not (TAGS.of("client-0", OCCASION, COUNT) == TAGS.of("client-0", other, COUNT)).any()
    assert not (TAGS.of("client-0", OCCASION, COUNT) == TAGS.of("client-1", OCCASION, COUNT)).any()
    foreign = ContributionTags(b"another secret of tags" * 2, TagDigits(BITS))
    assert not (TAGS.of("client-0", OCCASION, COUNT) == foreign.of("client-0", OCCASION, COUNT)).any()


def test_the_clients_make_the_same_tags() -> None:
    again = ContributionTags(b"secret of the tags" * 2, TagDigits(BITS))
    np.testing.assert_array_equal(TAGS.of("client-2", OCCASION, COUNT), again.of("client-2", OCCASION, COUNT))


@pytest.mark.parametrize("clients", [1, 2, 6, 100])
def test_an_honest_sum_passes(clients: int) -> None:
    occasion = Occasion(0, tuple(f"client-{index}" for index in range(clients)), (0,))
    TAGS.check(sums([1] * clients, COUNT, occasion), occasion, "global message")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=6, max_size=6), st.integers(1, 100))
def test_contributions_that_are_missing_are_named(present: list[int], count: int) -> None:
    assume(sum(present) < 6)
    with pytest.raises(MalformedMessage) as caught:
        TAGS.check(sums(present, count), OCCASION, "global message")
    missing = [client for client, there in zip(COHORT, present, strict=True) if not there]
    assert str(caught.value).endswith(f"missing or replaced: {', '.join(missing)}")
    assert f"round 3's contributions ({count} of {count} ciphertexts" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("absent", [[0], [57], list(range(99)), list(range(100))])
def test_in_a_large_cohort_one_missing_or_one_alone_is_named(absent: list[int]) -> None:
    occasion = Occasion(0, tuple(f"client-{index}" for index in range(100)), (0,))
    present = [int(index not in absent) for index in range(100)]
    with pytest.raises(MalformedMessage) as caught:
        TAGS.check(sums(present, COUNT, occasion), occasion, "global message")
    assert str(caught.value).endswith(", ".join(f"client-{index}" for index in absent))


@pytest.mark.parametrize("present", [[2, 1, 1, 1, 1, 1], [2, 0, 1, 1, 1, 1], [6, 0, 0, 0, 0, 0], [1, -1, 1, 1, 1, 1]])
def test_contributions_counted_twice_are_refused(present: list[int]) -> None:
    with pytest.raises(MalformedMessage, match="counted twice; which cannot be told"):
        TAGS.check(sums(present), OCCASION, "global message")


@given(st.integers(0, COUNT - 1), st.integers(-(2**30), 2**30).filter(bool))
def test_one_wrong_tag_refuses_the_message(place: int, error: int) -> None:
    found = sums([1] * 6)
    found[place] += error
    with pytest.raises(MalformedMessage, match=f"1 of {COUNT} ciphertexts have a wrong tag"):
        TAGS.check(found, OCCASION, "global message")


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 15, 127, 128, 2**24, 2**27])
def test_a_tag_of_small_digits_is_as_long_as_one_of_fixed_point(levels: int) -> None:
    digits = TagDigits.within(levels)
    assert 2**digits.bits <= levels < 2 ** (digits.bits + 1)
    assert (digits.bits + 1) * (digits.count - 1) < TAG_BITS <= (digits.bits + 1) * digits.count
    tags = ContributionTags(b"secret of the tags" * 2, digits).of("client-0", OCCASION, 500)
    assert tags.shape == (500 * digits.count,)
    assert tags.min() >= -(2**digits.bits)
    assert tags.max() < 2**digits.bits
    assert len(np.unique(tags.reshape(500, -1), axis=0)) == 500


def test_fixed_point_has_tags_of_one_digit() -> None:
    assert TagDigits.within(2**DEFAULT_FRACTION_BITS) == TagDigits(DEFAULT_FRACTION_BITS)


@given(
    hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(-9, 9)),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_tags_of_several_digits_are_taken_out_as_they_were_put_in(
    values: NDArray[np.int64], digits: int, room: int
) -> None:
    slots = digits + room
    count = ciphertexts_for(len(values), slots, digits)
    tags = np.arange(count * digits) + 100
    laid_out = with_tags(values, tags, slots, digits)
    assert laid_out.size == count * slots
    for ciphertext, row in enumerate(laid_out.reshape(count, slots).tolist()):
        own = values[ciphertext * room : (ciphertext + 1) * room].tolist()
        assert row[:room] == own + [0] * (room - len(own))
        assert row[room:] == [100 + ciphertext * digits + digit for digit in range(digits)]
    again, found = without_tags(laid_out, len(values), slots, digits)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(found, tags)


@pytest.mark.parametrize("levels", [1, 15])
def test_one_wrong_digit_refuses_a_message_and_names_who_is_missing(levels: int) -> None:
    digits = TagDigits.within(levels)
    tags = ContributionTags(b"secret of the tags" * 2, digits)
    due = np.stack([tags.of(client, OCCASION, COUNT) for client in COHORT])
    tags.check(due.sum(axis=0), OCCASION, "global message")
    found = due.sum(axis=0)
    found[3 * digits.count + 1] += 1
    with pytest.raises(MalformedMessage, match=f"1 of {COUNT} ciphertexts have a wrong tag"):
        tags.check(found, OCCASION, "global message")
    with pytest.raises(MalformedMessage, match=f"{COUNT} of {COUNT} .*: missing or replaced: client-4$"):
        tags.check(due.sum(axis=0) - due[4], OCCASION, "global message")
