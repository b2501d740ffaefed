"""The data sets that Keyhole trains on and attacks, by name."""

from __future__ import annotations

import os
from pathlib import Path

from federation.datasets import cifar10, imagefolder, mnist, mnist5k, photos32  # noqa: F401  (importing registers them)
from federation.datasets.base import (
    DATASETS,
    SPLITS,
    DataRequest,
    Dataset,
    LabelledImages,
    assemble_dataset,
    find_source,
)

DATA_DIRECTORY_VARIABLE = "KEYHOLE_DATA_DIR"


def load_dataset(specification: str, *, data_directory: Path | None = None, download: bool = False) -> Dataset:
    """Load the dataset that `specification` names: a registered name, or `imagefolder:PATH[?size=N]`.

    Args:
        specification: such as "mnist5k" or "imagefolder:photos?size=32".
        data_directory: where sets that are not embedded are looked for; where None, what KEYHOLE_DATA_DIR says.
        download: fetch a missing set into the data directory.

    Raises:
        UsageError: for a specification that names no dataset.
        DataError: where the data are missing or malformed.
    """
    source, argument = find_source(specification)
    if data_directory is None and (configured := os.environ.get(DATA_DIRECTORY_VARIABLE)):
        data_directory = Path(configured)
    return source.load(DataRequest(argument, data_directory, download))


__all__ = [
    "DATASETS",
    "DATA_DIRECTORY_VARIABLE",
    "SPLITS",
    "DataRequest",
    "Dataset",
    "LabelledImages",
    "assemble_dataset",
    "load_dataset",
]
