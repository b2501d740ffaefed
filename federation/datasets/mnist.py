"""`mnist`: all 70,000 handwritten digits (LeCun et al. 1998), 28x28, grey."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from federation.datasets.base import LabelledImages, dataset
from federation.datasets.idx import read_idx
from federation.datasets.official import OfficialDataset, OfficialSets
from federation.datasets.parquet import encoding_of, find_parquet, read_parquet_images
from federation.vision import datasets

SIZE = 28
COUNTS = (60_000, 10_000)
DIGITS = tuple(str(digit) for digit in range(10))
_FOLDER = re.compile(r"mnist([-_].*)?", re.IGNORECASE)


def read_idx_layout(directory: Path) -> OfficialSets | None:
    """torchvision's layout: the four IDX files, unpacked or gzipped, in MNIST/raw, raw or the directory itself."""
    for place in (directory / "MNIST" / "raw", directory / "raw", directory):
        training, test = _idx_files(place, "train"), _idx_files(place, "t10k")
        if training and test:
            return OfficialSets(_read_pair(*training, COUNTS[0]), _read_pair(*test, COUNTS[1]), treatment="")
    return None


def _idx_files(place: Path, prefix: str) -> tuple[Path, Path] | None:
    """The image file and the label file of one official set in `place`, where both are there."""
    found = [
        next((path for suffix in ("", ".gz") if (path := place / f"{prefix}-{kind}-ubyte{suffix}").is_file()), None)
        for kind in ("images-idx3", "labels-idx1")
    ]
    images, labels = found
    return (images, labels) if images and labels else None


def _read_pair(images: Path, labels: Path, count: int) -> LabelledImages:
    pixels: Tensor = read_idx(images, (count, SIZE, SIZE))
    return LabelledImages(pixels.unsqueeze(1), read_idx(labels, (count,)).long())


def read_parquet_layout(directory: Path) -> OfficialSets | None:
    """The Hugging Face layout, in the directory or a folder of it called mnist."""
    files = find_parquet(directory, _FOLDER)
    if files is None:
        return None
    training = read_parquet_images(files.training, "L", SIZE)
    return OfficialSets(training, read_parquet_images(files.test, "L", SIZE), encoding_of(files.training[0]))


MNIST = OfficialDataset(
    name="mnist",
    source="MNIST (LeCun et al. 1998)",
    classes=DIGITS,
    counts=COUNTS,
    auxiliary=8_000,
    victims=2_000,
    readers=(read_idx_layout, read_parquet_layout),
    layouts="MNIST/raw/train-images-idx3-ubyte[.gz] and its companions, or mnist/train*.parquet and test*.parquet",
    torchvision_class=datasets.MNIST,
)
dataset(MNIST.name)(MNIST.load)
