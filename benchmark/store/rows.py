"""The columns of the three result tables and of the manifest: the one place that names them.

The Parquet schema is derived from the row classes. Every field is filled in every row unless its type allows None; a
figure that does not apply to a row (bytes of a reference without federation, say) is 0. A column that may be empty is read
as empty from an older table that lacks it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyarrow as pa

EVALUATOR_VERSION = "1"
"""Raised by hand whenever the meaning of a stored number changes; rows of different versions are never mixed."""

UNDEFENDED = "plain"
"""The name of the defense that does nothing; attacks are calibrated on it."""

Outcome = Literal["measured", "ciphertext", "not applicable", "not evaluated", "crashed"]
Role = Literal["attack", "positive control"]
VictimKind = Literal["real-round", "probe", "keyed-image"]

OF_UPDATES: tuple[VictimKind, ...] = ("real-round", "probe")
"""The kinds of victim that are updates of a federation; a keyed image is none."""

ROUNDS_SO_FAR = "rounds so far"
"""Ends the regime of a cell whose attack saw the observed rounds of all snapshots up to its own."""

SCORED: tuple[Outcome, ...] = ("measured", "ciphertext")
"""Outcomes whose cells have image rows; under "ciphertext" these score the prior guess, by the earned shortcut."""


@dataclass(frozen=True)
class TrainingRow:
    """One training: a task under an algorithm, a defense and a seed, or a reference without federation."""

    training: str
    """Hash of the full configuration and of the code that ran it."""
    task: str
    algorithm: str
    defense: str
    """The defense stack, stages joined by "+"; "" for a reference."""
    seed: int
    reference: str
    """"" for a federated training, else "centralised" or "local-only"."""
    rounds: int
    clients: int
    accuracy: float
    """Final accuracy on the test split, 0..1."""
    accuracy_by_round: list[float]
    """Index 0 is before training."""
    confusion: list[int]
    """Test images by true class (rows) and predicted class (columns), row-major, `class_count` squared entries."""
    class_count: int
    correct: bytes
    """`numpy.packbits` of whether each test image is classified correctly, in the order of the test split."""
    test_count: int
    bytes_up: int
    """Bytes from one client in one round."""
    bytes_down: int
    key_bytes: int
    plain_share: float
    """Share of the shared numbers that cross the wire in clear, 0..1."""
    seconds_keys: float | None
    """Key handling in one round: keys made, issued and taken, the first ones shared out over the rounds. None in tables
    from before it was measured."""
    seconds_train: float
    seconds_protect: float
    seconds_aggregate: float
    seconds_recover: float
    peak_memory_bytes: int
    aggregation_error: float
    """Largest absolute difference of the recovered aggregate from the plain weighted mean."""
    stated_error: float
    """The largest such difference that the defense allows itself."""
    key_holders: str
    collusion_bound: str
    dataset: str
    provenance: str
    """Where the data come from, for captions."""
    classes: list[str]


@dataclass(frozen=True)
class CellRow:
    """One attack by one adversary on one snapshot of one training, whatever became of it."""

    cell: str
    """Hash of the full configuration and of the code that ran it."""
    training: str
    task: str
    algorithm: str
    defense: str
    position: str
    knowledge: str
    attack: str
    snapshot: int
    """Rounds of training before the attacked message."""
    regime: str
    """ "real-round", the local training of a probe, e.g. "probe b1 s1 e1", or "keyed-image", with " 8-bit" where images
    were pictures on their way; see also `ROUNDS_SO_FAR`."""
    victim_kind: VictimKind
    seed: int
    outcome: Outcome
    detail: str
    """Reason or message where the outcome is not "measured"."""
    oracles: str
    """Privileges given to the attack, comma-separated; "" for none."""
    control: str
    """Cell that is the positive control of this one; "" for none."""
    role: Role
    objective: float | None
    """Mean of the attack's own final objective."""
    evaluations: int
    seconds: float
    findings: str
    """JSON object, name to number."""
    lpips_reason: str
    """Why LPIPS is empty; "" where it is filled."""


@dataclass(frozen=True)
class ImageRow:
    """One reconstructed image of a scored cell beside its truth. PSNR in dB at data range 1, capped at 60."""

    cell: str
    victim: str
    image: int
    """Index of the image within its victim."""
    pairing: str
    """Names the true image and its victim alike under every defense and attack, so that comparisons can pair."""
    mse: float
    psnr: float
    ssim: float
    lpips: float | None
    st_lpips: float | None
    identified: bool
    """Whether the true image is the nearest by MSE in a gallery of `gallery` images."""
    gallery: int
    floor_grey: float
    """PSNR of uniform grey on this image; likewise the next three guesses."""
    floor_mean: float
    floor_class_mean: float | None
    floor_random: float
    gain: float
    """`psnr` less the highest floor."""
    label_true: int
    label_guess: int | None
    original: str
    """PNG, relative to the run's folder; "" where the images are not kept."""
    reconstruction: str


@dataclass(frozen=True)
class Manifest:
    """What the rows of a run were computed with. `config` holds what decides the results and nothing else."""

    name: str
    created: str
    preset: str
    config: dict[str, Any]
    versions: dict[str, str]
    git_commit: str
    git_dirty: bool
    hardware: dict[str, Any]
    """`cpu`, `cores`, `memory`; where another device computed, `device` and its `gpu`."""
    datasets: dict[str, str]
    """Name to SHA-256."""
    lpips_trunk: str | None
    """SHA-256 of AlexNet's trunk, or None where LPIPS was not computed."""
    evaluator_version: str = EVALUATOR_VERSION
    tables: dict[str, str] = field(default_factory=dict)
    """Table to SHA-256 of its file, filled in on writing."""


TRAINING_KEY = ("task", "algorithm", "defense", "reference", "seed")
CELL_KEY = (
    *("task", "algorithm", "victim_kind", "position", "knowledge", "oracles"),
    *("defense", "attack", "snapshot", "regime", "role", "seed"),
)
"""What tells one training, or one cell, from every other of its run, and finds it again in another run."""

ROWS: dict[str, type] = {"trainings": TrainingRow, "cells": CellRow, "images": ImageRow}
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}


def schema(row: type) -> pa.Schema:
    """The Arrow schema of a row dataclass: `X | None` may be null, everything else may not."""
    hints = typing.get_type_hints(row)
    return pa.schema([_arrow_field(item.name, hints[item.name]) for item in dataclasses.fields(row)])


def _arrow_field(name: str, hint: Any) -> pa.Field:
    nullable = typing.get_origin(hint) is types.UnionType
    if nullable:
        (hint,) = (option for option in get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is Literal:
        hint = str
    if typing.get_origin(hint) is list:
        return pa.field(name, pa.list_(_ARROW[get_args(hint)[0]]), nullable=nullable)
    return pa.field(name, _ARROW[hint], nullable=nullable)
