"""The result of reproducing Gusain (2021): `result.json` beside the harness's runs, one a network, and pictures.

Accuracies, errors, seconds and reconstructions stand in the runs (`benchmark.store.read_run` of `NetworkResult.folder`);
this document says which of their rows are which figure of the paper, and holds what no run has: encrypted inference.
The row classes are the schema; what is read back is checked against them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmark.store.documents import Deviation, check_inside, read_document, write_document
from benchmark.store.rows import Manifest
from federation.errors import DataError

COMMAND = "keyhole reproduce gusain"

NetworkName = Literal["lenet", "mobilenet"]
"""LeNet on MNIST and MobileNetV2 on CIFAR-10, or what stands in for them at a smaller scale."""
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)

AlgorithmName = Literal["fedavg", "fedpaq"]

Scale = Literal["quick", "reduced", "full"]
"""Embedded data in minutes; the real sets, cut down to a CPU; everything at the paper's size."""
SCALES: tuple[Scale, ...] = get_args(Scale)


@dataclass(frozen=True)
class TableEntry:
    """One entry of Table 4.1: what the paper prints, and which training rows are ours.

    All eight are in every result, whichever networks were run.
    """

    network: NetworkName
    algorithm: AlgorithmName
    encrypted: bool
    printed: float
    """Validation accuracy in the paper, 0..1."""
    defense: str
    """Ours: `trainings.defense` in the network's run, where `trainings.algorithm` begins with `algorithm`."""


@dataclass(frozen=True)
class Reader:
    """Who looks at what was shared, as `cells.position` and `cells.knowledge`, and what that is in the paper's terms."""

    position: str
    knowledge: str
    title: str
    """In a few words, such as "with the key"."""
    meaning: str
    """A sentence."""


@dataclass(frozen=True)
class InferenceRow:
    """Figures 4.2 and 4.3 counted: test images through the plain network, and keyed through the keyed one."""

    keys: str
    """What kind of keys, in words."""
    images: int
    plain_accuracy: float
    encrypted_accuracy: float
    """Of keyed images through the keyed network, its results opened with their key."""
    agreement: float
    """Share of images that get the same class both ways."""
    largest_difference: float
    """Largest absolute difference of the opened results from the plain network's, in its class scores."""
    largest_score: float
    """Largest absolute class score of the plain network, to compare it with."""
    wrong_key_agreement: float
    """As `agreement`, where the images were keyed under another set of keys of the same kind."""
    wrong_key_difference: float
    """As `largest_difference`, likewise."""
    plain_entries: int
    """Entries of the network's matrices as they are, and keyed."""
    keyed_entries: int
    seconds_plain: float
    """One image through the plain network (PyTorch, float32), and through the keyed one (sparse, float64)."""
    seconds_keyed: float


@dataclass(frozen=True)
class InferenceRefusal:
    """Keys that the network cannot be run under, with the reason in one line."""

    keys: str
    reason: str


@dataclass(frozen=True)
class EncryptedExample:
    """A test image beside its keyed form: figures 4.2 and 4.3."""

    keys: str
    label: int
    plain_class: int
    encrypted_class: int
    wrong_key_class: int
    """What the keyed network says of the image keyed under other keys."""
    original: str
    """PNG, relative to the result's folder."""
    shown: str
    """PNG of the keyed image, stretched to the range of pixels."""


@dataclass(frozen=True)
class EncryptedVictim:
    """An attacked image beside its keyed form: figure 4.6."""

    keys: str
    original: str
    """PNG, relative to the result's folder; `images.original` of the run with the run's folder in front."""
    shown: str


@dataclass(frozen=True)
class NetworkResult:
    """One network: its run, what was done differently from the paper, and encrypted inference."""

    network: NetworkName
    title: str
    """As the paper has it, such as "LeNet on MNIST"."""
    folder: str
    """The harness's run, relative to the result's folder."""
    task: str
    setting: str
    """What was trained on which data, in a few words for captions."""
    departures: list[str]
    """Where it is smaller than the paper's, or otherwise; a sentence each."""
    training: str
    """Rounds, batches, rates, who has which data: a sentence."""
    budget: str
    """The attacks' budgets: a sentence."""
    victims: str
    """Which images are attacked: a sentence."""
    inference: list[InferenceRow]
    refusals: list[InferenceRefusal]
    examples: list[EncryptedExample]
    encrypted_victims: list[EncryptedVictim]


@dataclass(frozen=True)
class GusainResult:
    """All that the command measured, or where it stands."""

    manifest: Manifest
    scale: Scale
    label: str
    """The scale in a sentence, for every caption."""
    seeds: list[int]
    entries: list[TableEntry]
    readers: list[Reader]
    networks: list[NetworkResult]
    deviations: list[Deviation]
    seconds: float
    """Wall-clock time of the command, without what an earlier, interrupted one had finished."""

    def find(self, network: NetworkName) -> NetworkResult | None:
        """The result of a network, None where it was not run."""
        return next((one for one in self.networks if one.network == network), None)


def write_gusain(directory: Path, result: GusainResult) -> Path:
    """Write `result.json`; raises DataError where a number is not finite."""
    return write_document(directory, result)


def read_gusain(directory: Path) -> GusainResult:
    """Read what `write_gusain` wrote.

    Raises:
        DataError: missing or malformed, of another evaluator version, or naming a file outside the folder.
    """
    result = read_document(directory, GusainResult, COMMAND)
    for entry in result.entries:
        _check_share(directory, f"printed accuracy of {entry.network}, {entry.algorithm}", entry.printed)
    for one in result.networks:
        for row in one.inference:
            for name in ("plain_accuracy", "encrypted_accuracy", "agreement", "wrong_key_agreement"):
                _check_share(directory, f"{name} of {one.network} under {row.keys}", getattr(row, name))
            if not all(map(math.isfinite, (row.largest_difference, row.largest_score, row.wrong_key_difference))):
                raise DataError(f"{directory}: a difference of {one.network} under {row.keys} is not finite")
        pictures: list[EncryptedExample | EncryptedVictim] = [*one.examples, *one.encrypted_victims]
        check_inside(directory, [one.folder, *(name for item in pictures for name in (item.original, item.shown))])
    return result


def _check_share(directory: Path, what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise DataError(f"{directory}: the {what} is {value}; it must be in [0, 1]")
