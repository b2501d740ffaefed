"""The result of reproducing PriDe (Pavlak 2018): one file `result.json` beside the images that it names.

The row classes are the schema; what is read back is checked against them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmark.store.documents import FILE, Deviation, check_inside, read_document, write_document
from benchmark.store.rows import Manifest
from federation.errors import DataError

COMMAND = "keyhole reproduce pride"

Column = Literal["printed", "coded", "coded-1e-7", "sound"]
"""As the paper prints it; as its code computes it, with `precision=7`; the same with the precision that was meant;
and done soundly."""
COLUMNS: tuple[Column, ...] = get_args(Column)

Unit = Literal["share", "bits", "dB", "error"]
PictureKind = Literal["one-image update, rows alone", "one-image update, eq. 2.2", "weight image"]


@dataclass(frozen=True)
class Times:
    """Seconds; None where the paper prints none or the step does not occur.

    `sequence` is the sum of all steps of all parties, `parallel` the longest path where parties work side by side.
    """

    train: float | None = None
    encrypt: float | None = None
    aggregate: float | None = None
    decrypt: float | None = None
    sequence: float | None = None
    parallel: float | None = None


@dataclass(frozen=True)
class ModelResult:
    """One model of one column."""

    model: str
    """ "centralised", "party 0" .. "party 5", "cloud + party 1" .. "cloud + party 5", "six parties"."""
    column: Column
    accuracy: float
    """On the test images that the column uses, 0..1."""
    tested_on: int | None
    """How many test images those are."""
    accuracy_on_all: float | None
    """On all test images, whatever the column uses; None where that is not known."""
    confusion: list[int]
    """Test images by true class (rows) and predicted class (columns), row-major; empty where none is known."""
    times: Times
    bytes_up: int | None
    """Bytes that one party sends, None where nothing is sent or known."""
    note: str
    """What has to be known to read the row; "" for nothing."""


@dataclass(frozen=True)
class SliceResult:
    """Accuracy of one model on one run of consecutive test images."""

    model: str
    start: int
    count: int
    accuracy: float


@dataclass(frozen=True)
class AdversaryResult:
    """What one adversary recovers, by one measure."""

    adversary: str
    holds: str
    """What it has beyond the protocol's public description."""
    target: str
    """What it is after, and from which message."""
    measure: str
    value: float
    unit: Unit
    cases: int
    """How many weights, rounds or images the value is over."""
    note: str


@dataclass(frozen=True)
class PictureResult:
    """A picture that was read from weights, stored as PNG beside what it is compared with."""

    kind: PictureKind
    party: str
    label: int
    """Class of the image, or the class whose row of weights is shown."""
    original: str
    """PNG relative to the folder; for a weight image the training image that comes nearest."""
    shown: str
    """PNG of what was recovered."""
    psnr: float
    """Of `shown` as stored against `original` for an update; of the best rescaling of the weight image for the other."""
    reference_psnr: float | None
    """For a weight image: the same of the party's mean image against its own nearest training image."""


@dataclass(frozen=True)
class KeyLength:
    """What one weight costs with `phe` under a key of some length: encrypt, add, divide by 2, decrypt; processor time."""

    bits: int
    seconds_per_weight: float


@dataclass(frozen=True)
class PrideSetting:
    """What was divided among whom."""

    dataset: str
    provenance: str
    scale: int
    """The paper's sizes were divided by this; 1 is full size."""
    classes: list[str]
    sizes: list[int]
    """Training images of party 0 (the cloud) to 5."""
    slices: list[int]
    """Test images in each party's own slice."""
    centralised: int
    test: int
    """Test images in all, which the sound column uses."""
    key_bits: int
    seed: int

    @property
    def label(self) -> str:
        """The data in a few words, as every caption states it."""
        if self.scale == 1:
            return f"{self.dataset} at the paper's sizes"
        return f"{self.dataset}, the paper's sizes divided by {self.scale}"

    @property
    def source(self) -> str:
        """The same with where the images come from, for figures that may stand alone."""
        return f"{self.label}. {self.provenance}"


@dataclass(frozen=True)
class PrideResult:
    """All that the command measured."""

    manifest: Manifest
    setting: PrideSetting
    models: list[ModelResult]
    slices: list[SliceResult]
    adversaries: list[AdversaryResult]
    pictures: list[PictureResult]
    key_lengths: list[KeyLength]
    printed_seconds_per_weight: list[float]
    """Least and most of what the printed times leave for encryption and decryption, a weight."""
    deviations: list[Deviation]
    seconds: float
    """Wall-clock time of the run, without what an earlier, interrupted run had finished."""

    def find(self, model: str, column: Column) -> ModelResult | None:
        """The row of a model in a column, None where there is none."""
        return next((row for row in self.models if (row.model, row.column) == (model, column)), None)

    @property
    def model_names(self) -> list[str]:
        """The models in their order."""
        return list(dict.fromkeys(row.model for row in self.models))


def write_pride(directory: Path, result: PrideResult) -> Path:
    """Write `result.json`; raises DataError where a number is not finite, since JSON has no word for it."""
    return write_document(directory, result)


def read_pride(directory: Path) -> PrideResult:
    """Read what `write_pride` wrote.

    Raises:
        DataError: missing or malformed, of another evaluator version, or naming an image outside the folder.
    """
    result = read_document(directory, PrideResult, COMMAND)
    _check(result, directory / FILE)
    check_inside(directory, [name for picture in result.pictures for name in (picture.original, picture.shown)])
    return result


def _check(result: PrideResult, path: Path) -> None:
    cells = len(result.setting.classes) ** 2
    for row in result.models:
        if row.confusion and len(row.confusion) != cells:
            raise DataError(
                f"{path}: the confusion matrix of {row.model} has {len(row.confusion)} entries, not {cells}"
            )
        if not 0 <= row.accuracy <= 1:
            raise DataError(f"{path}: the accuracy of {row.model} is {row.accuracy}; it must be in [0, 1]")
    values = [row.value for row in result.adversaries] + [picture.psnr for picture in result.pictures]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{path}: a measured value is not finite")
