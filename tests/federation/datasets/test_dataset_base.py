"""Labelled images and the facts that a dataset computes about itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.datasets import DATA_DIRECTORY_VARIABLE, SPLITS, LabelledImages, assemble_dataset, load_dataset
from federation.datasets.base import channel_statistics
from federation.errors import DataError, UsageError


def some_images(count: int, seed: int = 0, shape: tuple[int, int, int] = (3, 4, 5), classes: int = 2) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count) % classes)


def some_splits() -> dict[str, LabelledImages]:
    return {split: some_images(6, seed) for seed, split in enumerate(SPLITS)}


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "N, C, H, W"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "one an image"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "int64"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, -1]), "-1"),
    ],
)
def test_malformed_images_are_refused(images, labels, reason):
    with pytest.raises(DataError, match=reason):
        LabelledImages(images, labels)


def test_pixels_span_zero_to_one():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    pixels = LabelledImages(images, torch.zeros(1, dtype=torch.int64)).pixels()
    assert pixels.dtype == torch.float32
    assert torch.equal((pixels * 255).round().to(torch.uint8), images)
    assert (pixels.min(), pixels.max()) == (0, 1)


def test_select_keeps_the_order_asked_for():
    whole = some_images(5)
    part = whole.select([4, 0])
    assert len(part) == 2
    assert torch.equal(part.images[0], whole.images[4])
    assert part.labels.tolist() == [whole.labels[4], whole.labels[0]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 9))
def test_channel_statistics_agree_with_numpy(seed, channels, count):
    images = some_images(count, seed, (channels, 3, 3)).images
    mean, deviation = channel_statistics(images)
    values = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(deviation, values.std(axis=(0, 2, 3)), rtol=1e-9, atol=1e-12)


def test_the_digest_depends_on_every_split_and_on_pixels_and_labels():
    splits = some_splits()
    digests = {assemble_dataset("set", ["a", "b"], splits, "Made up.").sha256}
    for split in SPLITS:
        altered = splits[split].images.clone()
        altered[-1, -1, -1, -1] ^= 1
        flipped = splits[split].labels.clone()
        flipped[-1] ^= 1
        for changed in (
            LabelledImages(altered, splits[split].labels),
            LabelledImages(splits[split].images, flipped),
        ):
            digests.add(assemble_dataset("set", ["a", "b"], {**splits, split: changed}, "Made up.").sha256)
    swapped = {**splits, "victims": splits["test"], "test": splits["victims"]}
    digests.add(assemble_dataset("set", ["a", "b"], swapped, "Made up.").sha256)
    assert len(digests) == 1 + 2 * len(SPLITS) + 1
    assert assemble_dataset("other", ["a", "b"], some_splits(), "Else.").sha256 in digests


def test_an_assembled_set_knows_its_shape_and_classes():
    assembled = assemble_dataset("set", ["a", "b"], some_splits(), "Made up.")
    assert assembled.image_shape == (3, 4, 5)
    assert assembled.class_count == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        assembled.name = "other"


@pytest.mark.parametrize(
    ("split", "part", "reason"),
    [
        ("victims", some_images(0), "victims split of set is empty"),
        ("test", some_images(3, shape=(3, 4, 4)), "not \\[3, 4, 5\\]"),
        ("auxiliary", some_images(3, classes=3), "label 2 but only 2 classes"),
        ("training", LabelledImages(torch.full((2, 3, 4, 5), 7, dtype=torch.uint8), torch.tensor([0, 1])), "channel 0"),
    ],
)
def test_inconsistent_splits_are_refused(split, part, reason):
    with pytest.raises(DataError, match=reason):
        assemble_dataset("set", ["a", "b"], {**some_splits(), split: part}, "Made up.")


@pytest.mark.parametrize(
    ("specification", "reason"),
    [
        ("mnist5", "did you mean mnist5k"),
        ("mnist5k:here", "takes nothing after its name"),
        ("imagefolder", "imagefolder:PATH"),
        ("imagefolder:", "imagefolder:PATH"),
    ],
)
def test_specifications_that_name_no_dataset(specification, reason):
    with pytest.raises(UsageError, match=reason):
        load_dataset(specification)


def test_the_given_directory_goes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_DIRECTORY_VARIABLE, "/from/the/environment")
    with pytest.raises(DataError, match="/from/the/environment"):
        load_dataset("mnist")
    with pytest.raises(DataError, match=tmp_path.name):
        load_dataset("mnist", data_directory=Path(tmp_path))
