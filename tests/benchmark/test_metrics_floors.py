"""Floor guesses against NumPy, by their defining properties, and against figures measured on real MNIST."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.metrics.floors import CLASS_MEAN, GREY, MEAN, RANDOM, floors
from benchmark.metrics.pixel import psnr
from federation.errors import DataError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def split() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (30, 3, 4, 5), generator=seeded(0), dtype=torch.uint8)
    return images, torch.arange(30) % 3


def test_each_guess_agrees_with_numpy(split: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = split
    guesses = floors(images, labels, 4, torch.tensor([2, 0, 1, 2]), seeded(1))
    assert set(guesses) == {GREY, MEAN, RANDOM, CLASS_MEAN}
    assert all(guess.shape == (4, 3, 4, 5) and guess.dtype == torch.uint8 for guess in guesses.values())
    assert (guesses[GREY] == 128).all()
    mean = images.numpy().mean(0, dtype=np.float64)
    for row, label in enumerate([2, 0, 1, 2]):
        class_mean = images.numpy()[labels.numpy() == label].mean(0, dtype=np.float64)
        assert np.abs(guesses[MEAN][row].numpy() - mean).max() <= 0.5 + 1e-9
        assert np.abs(guesses[CLASS_MEAN][row].numpy() - class_mean).max() <= 0.5 + 1e-9
        assert any(torch.equal(guesses[RANDOM][row], image) for image in images)


def test_without_labels_there_is_no_class_mean(split: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert set(floors(*split, 2, None, seeded(1))) == {GREY, MEAN, RANDOM}


def test_a_class_that_the_split_lacks_falls_back_to_the_mean(split: tuple[torch.Tensor, torch.Tensor]) -> None:
    guesses = floors(*split, 2, torch.tensor([9, 1]), seeded(1))
    assert torch.equal(guesses[CLASS_MEAN][0], guesses[MEAN][0])
    assert not torch.equal(guesses[CLASS_MEAN][1], guesses[MEAN][1])


def test_the_random_guess_follows_the_seed_and_varies(split: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, again, other = (floors(*split, 20, None, seeded(seed))[RANDOM] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=0)) > 5


def test_stored_and_floating_images_give_the_same(split: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = split
    stored = floors(images, labels, 3, torch.tensor([0, 1, 2]), seeded(3))
    floating = floors(images.float() / 255, labels, 3, torch.tensor([0, 1, 2]), seeded(3))
    assert all(torch.equal(stored[name], floating[name]) for name in stored)


def test_a_batch_of_none(split: tuple[torch.Tensor, torch.Tensor]) -> None:
    guesses = floors(*split, 0, None, seeded(1))
    assert all(guess.shape == (0, 3, 4, 5) for guess in guesses.values())


def test_inconsistent_splits_and_labels_are_refused(split: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = split
    with pytest.raises(DataError, match="must have images and a label each: 0"):
        floors(images[:0], labels[:0], 1, None, seeded(0))
    with pytest.raises(DataError, match="must have images and a label each: 30, 29"):
        floors(images, labels[:29], 1, None, seeded(0))
    with pytest.raises(DataError, match="3 victims need 3 labels"):
        floors(images, labels, 3, labels[:2], seeded(0))


def read_idx(name: str, header: int) -> torch.Tensor:
    """The bytes after the header of one of MNIST's files, compressed or not."""
    path = Path(os.environ["KEYHOLE_DATA_DIR"]) / "MNIST" / "raw" / name
    content = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{name}.gz").read_bytes())
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header)


@pytest.mark.real_data
@pytest.mark.skipif("KEYHOLE_DATA_DIR" not in os.environ, reason="KEYHOLE_DATA_DIR names no folder with MNIST")
def test_floors_of_real_mnist() -> None:
    """Measured before, mean PSNR of MNIST digits: grey 6.4, mean image 11.8, class mean 13.0 dB."""
    images = read_idx("train-images-idx3-ubyte", header=16).reshape(-1, 1, 28, 28)
    labels = read_idx("train-labels-idx1-ubyte", header=8)
    victims, victim_labels = images[:1000], labels[:1000].long()
    guesses = floors(images[10000:20000], labels[10000:20000].long(), 1000, victim_labels, seeded(0))
    measured = {name: psnr(victims, guess).mean().item() for name, guess in guesses.items()}
    assert measured[GREY] == pytest.approx(6.4, abs=0.1)
    assert measured[MEAN] == pytest.approx(11.8, abs=0.2)
    assert measured[CLASS_MEAN] == pytest.approx(13.0, abs=0.2)
    assert measured[RANDOM] < measured[MEAN]
