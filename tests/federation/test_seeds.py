"""Named streams of randomness: reproducible, and apart from each other."""

from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.seeds import numpy_generator, seed_for, torch_generator

parts = st.lists(st.one_of(st.integers(-5, 5), st.text(alphabet="ab'1,( ", max_size=4)), min_size=1, max_size=3)


@given(parts, parts)
def test_other_parts_give_another_seed(one: list[int | str], other: list[int | str]) -> None:
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (seed_for(*one) == seed_for(*other)) == same
    assert 0 <= seed_for(*one) < 2**63


def test_seeds_do_not_change_between_versions() -> None:
    digest = hashlib.sha256(b"('batches', 3)").digest()
    assert seed_for("batches", 3) == int.from_bytes(digest[:8], "big") // 2


def test_generators_follow_the_seed() -> None:
    one, again, other = (torch_generator("a", number) for number in (1, 1, 2))
    draws = [torch.rand(4, generator=generator) for generator in (one, again, other)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
    assert one.initial_seed() == seed_for("a", 1)
    assert numpy_generator("a", 1).random() == numpy_generator("a", 1).random()
