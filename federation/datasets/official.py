"""Sets that come with an official training and test set, in one of several layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.datasets.base import DataRequest, Dataset, LabelledImages, assemble_dataset
from federation.datasets.splits import divide_official
from federation.errors import DataError, UsageError


@dataclass(frozen=True)
class OfficialSets:
    """The two official sets as found, and what was done to the images on their way here (empty: nothing)."""

    training: LabelledImages
    test: LabelledImages
    treatment: str


@dataclass(frozen=True)
class OfficialDataset:
    """How an official set is found, checked and divided.

    Attributes:
        name: the registered name.
        source: name and reference, for the provenance.
        classes: the class names, in the order of the labels.
        counts: images in the official training and test set.
        auxiliary: images of the training set that become the auxiliary split.
        victims: images of the training set that become the victims split.
        readers: one for each layout, from a data directory; each returns None where its layout is not there.
        layouts: the layouts in words, for the message that none was found.
        torchvision_class: called with (directory, download=True) to fetch the set.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    counts: tuple[int, int]
    auxiliary: int
    victims: int
    readers: Sequence[Callable[[Path], OfficialSets | None]]
    layouts: str
    torchvision_class: Callable[..., Any]

    def load(self, request: DataRequest) -> Dataset:
        """Load the set from `request.directory`, downloading it first where it is missing and that was asked for.

        Raises:
            UsageError: where a download is asked for without a directory.
            DataError: where the set is missing, malformed or incomplete, or the download fails.
        """
        sets = self._read(request.directory)
        if sets is None and request.download:
            self._download(request.directory)
            sets = self._read(request.directory)
        if sets is None:
            raise DataError(self._missing(request.directory))
        counts = (len(sets.training), len(sets.test))
        if counts != self.counts:
            raise DataError(
                f"{self.name} in {request.directory} has {counts[0]} training and {counts[1]} test images; "
                f"it should have {self.counts[0]} and {self.counts[1]}"
            )
        splits = divide_official(sets.training, sets.test, auxiliary=self.auxiliary, victims=self.victims)
        provenance = ", ".join(filter(None, (f"{self.source}, official training and test sets", sets.treatment))) + "."
        return assemble_dataset(self.name, self.classes, splits, provenance)

    def _read(self, directory: Path | None) -> OfficialSets | None:
        if directory is None or not directory.is_dir():
            return None
        try:
            return next((sets for read in self.readers if (sets := read(directory)) is not None), None)
        except PermissionError as error:
            raise DataError(f"{error.filename} cannot be read; make it readable or give another --data-dir") from error

    def _download(self, directory: Path | None) -> None:
        if directory is None:
            raise UsageError(f"downloading {self.name} needs a folder to put it in: --data-dir or KEYHOLE_DATA_DIR")
        try:
            self.torchvision_class(directory, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.name} could not be downloaded into {directory}: {error}") from error

    def _missing(self, directory: Path | None) -> str:
        if directory is None:
            return (
                f"{self.name} needs a data directory: give one that holds {self.layouts} with --data-dir or "
                "KEYHOLE_DATA_DIR, or add --download to fetch it there"
            )
        return (
            f"{self.name} is not in {directory}: looked for {self.layouts}; "
            "give another folder with --data-dir or KEYHOLE_DATA_DIR, or add --download to fetch it there"
        )
