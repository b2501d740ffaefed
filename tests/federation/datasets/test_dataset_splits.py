"""The fixed division into splits: disjoint, covering, in proportion, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.datasets.base import SPLITS, LabelledImages
from federation.datasets.splits import divide, divide_official, share_out, stable_permutation, stratified_parts
from federation.errors import DataError


def numbered(count: int, classes: int, first: int = 0) -> LabelledImages:
    """Images that carry their own number in four bytes."""
    numbers = np.arange(first, first + count, dtype="<u4")
    images = torch.from_numpy(numbers.view(np.uint8).reshape(count, 1, 2, 2).copy())
    return LabelledImages(images, torch.arange(count) % classes)


def numbers_of(images: LabelledImages) -> set[int]:
    return set(images.images.numpy().reshape(-1, 4).copy().view("<u4").ravel().tolist())


def test_the_permutation_is_the_same_on_every_machine():
    assert stable_permutation(8, stream=0).tolist() == [7, 6, 2, 0, 5, 4, 3, 1]
    assert stable_permutation(8, stream=1).tolist() == [7, 5, 4, 6, 1, 3, 2, 0]


@given(st.integers(4, 3000), st.lists(st.floats(0.01, 1), min_size=1, max_size=4))
def test_shares_are_whole_and_nearest(count, shares):
    sizes = share_out(count, shares)
    exact = np.asarray(shares) / sum(shares) * count
    assert sum(sizes) == count
    assert min(sizes) >= 1
    if exact.min() >= 1:
        assert np.abs(np.asarray(sizes) - exact).max() < 1


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(DataError, match="at least 4"):
        share_out(3, [1, 1, 1, 1])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=400), st.data())
def test_parts_are_disjoint_covering_and_in_proportion(labels, data):
    labels = torch.tensor(labels)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=3)))
    sizes = np.diff([0, *cuts, len(labels)]).tolist()
    parts = stratified_parts(labels, sizes)
    assert [len(part) for part in parts] == sizes
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    classes, totals = labels.unique(return_counts=True)
    for part in parts:
        for label, total in zip(classes, totals, strict=True):
            proportional = float(total) * len(part) / len(labels)
            allowed = 1 + float(total) * len(classes) / len(labels)
            assert abs(int((labels[part] == label).sum()) - proportional) <= allowed + 1e-9


def test_sizes_must_add_up():
    with pytest.raises(DataError, match="5 images in all cannot be made of 4"):
        stratified_parts(torch.zeros(4, dtype=torch.int64), [2, 3])


def test_the_order_of_a_part_does_not_go_round_the_classes():
    labels = torch.arange(1000) % 10
    first, _ = stratified_parts(labels, [500, 500])
    complete = [len(set(stretch.tolist())) == 10 for stretch in labels[first].reshape(50, 10)]
    # Unshuffled, all 50 stretches hold every class; by chance each one does with probability 10!/10^10 = 0.0004.
    assert sum(complete) <= 2


def test_divided_sets_share_no_image_and_lose_none():
    splits = divide(numbered(500, 5))
    assert list(splits) == list(SPLITS)
    assert [len(splits[split]) for split in SPLITS] == [280, 60, 100, 60]
    assert set.union(*(numbers_of(part) for part in splits.values())) == set(range(500))
    assert torch.bincount(splits["victims"].labels).tolist() == [20] * 5


def test_an_official_test_set_stays_as_it_is():
    training, test = numbered(300, 3), numbered(60, 3, first=300)
    splits = divide_official(training, test, auxiliary=60, victims=30)
    assert splits["test"] is test
    taken = [numbers_of(splits[split]) for split in ("training", "auxiliary", "victims")]
    assert [len(part) for part in taken] == [210, 60, 30]
    assert set.union(*taken) == set(range(300))
