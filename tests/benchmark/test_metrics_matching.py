"""The one-to-one matching against every assignment there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.metrics.matching import match
from benchmark.metrics.pixel import pairwise_squared_distances
from federation.errors import DataError


def random_images(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 3, 3), generator=generator, dtype=torch.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**31))
def test_total_error_is_the_least_of_all_assignments(truth_count: int, guess_count: int, seed: int) -> None:
    truths, guesses = random_images(seed, truth_count), random_images(seed + 1, guess_count)
    matches = match(truths, guesses)
    pairs = min(truth_count, guess_count)
    assert len(matches) == pairs
    assert [pair.truth for pair in matches] == sorted({pair.truth for pair in matches})
    assert len({pair.guess for pair in matches}) == pairs

    costs = pairwise_squared_distances(truths, guesses)
    if truth_count <= guess_count:
        every = (zip(range(pairs), chosen, strict=True) for chosen in itertools.permutations(range(guess_count), pairs))
    else:
        every = (zip(chosen, range(pairs), strict=True) for chosen in itertools.permutations(range(truth_count), pairs))
    least = min(sum(costs[i, j].item() for i, j in assignment) for assignment in every)
    assert sum(costs[i, j].item() for i, j in matches) == least


def test_finds_a_planted_shuffle() -> None:
    truths = random_images(5, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(6))
    assert [
        truth for truth, guess in sorted(match(truths, truths[order]), key=lambda pair: pair.guess)
    ] == order.tolist()


def test_two_truths_never_share_one_good_guess() -> None:
    truths = torch.tensor([100, 110], dtype=torch.uint8).reshape(2, 1, 1, 1)
    guesses = torch.tensor([105, 250], dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert match(truths, guesses) == [(0, 0), (1, 1)]


def test_images_of_other_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="equal sizes"):
        match(random_images(0, 2), random_images(0, 2)[..., :2])
