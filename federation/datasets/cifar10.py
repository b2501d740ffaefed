"""`cifar10`: 60,000 colour photographs in ten classes (Krizhevsky 2009), 32x32.

The Python version of the set, torchvision's layout, is pickled. torchvision refuses every file whose MD5 digest is not
the published one before it unpickles any. To make another file with a given digest (a second preimage) is out of reach
even for MD5, so that no bytes but the publisher's are unpickled; everything else is read without pickle.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch

from federation.datasets.base import LabelledImages, dataset
from federation.datasets.official import OfficialDataset, OfficialSets
from federation.datasets.parquet import encoding_of, find_parquet, read_parquet_images
from federation.errors import DataError
from federation.vision import datasets

SIZE = 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FOLDER = re.compile(r"cifar-?10([-_].*)?", re.IGNORECASE)


def read_torchvision_layout(directory: Path) -> OfficialSets | None:
    """torchvision's layout: the folder cifar-10-batches-py, whose files torchvision checks by published digests."""
    if not (directory / datasets.CIFAR10.base_folder).is_dir():
        return None
    return OfficialSets(_read_batches(directory, train=True), _read_batches(directory, train=False), treatment="")


def _read_batches(directory: Path, *, train: bool) -> LabelledImages:
    try:
        with warnings.catch_warnings():
            # The files were pickled by NumPy 1 with a dtype argument that NumPy 2.4 deprecates.
            warnings.filterwarnings("ignore", message=".*align", category=Warning)
            batches = datasets.CIFAR10(directory, train=train)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{directory / datasets.CIFAR10.base_folder} is incomplete or differs from the published files; "
            "remove it and add --download to fetch it again"
        ) from error
    images = torch.from_numpy(batches.data).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(images, torch.tensor(batches.targets, dtype=torch.int64))


def read_parquet_layout(directory: Path) -> OfficialSets | None:
    """The Hugging Face layout, in the directory or a folder of it called cifar10, cifar10-jpeg and the like."""
    files = find_parquet(directory, _FOLDER)
    if files is None:
        return None
    training = read_parquet_images(files.training, "RGB", SIZE)
    return OfficialSets(training, read_parquet_images(files.test, "RGB", SIZE), encoding_of(files.training[0]))


CIFAR10 = OfficialDataset(
    name="cifar10",
    source="CIFAR-10 (Krizhevsky 2009)",
    classes=CLASSES,
    counts=(50_000, 10_000),
    auxiliary=8_000,
    victims=2_000,
    readers=(read_torchvision_layout, read_parquet_layout),
    layouts="cifar-10-batches-py, or cifar10*/train*.parquet and test*.parquet",
    torchvision_class=datasets.CIFAR10,
)
dataset(CIFAR10.name)(CIFAR10.load)
