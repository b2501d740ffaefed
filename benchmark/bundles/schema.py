"""The JSON of a bundle: everything but tensors, which it refers to by their names in the pool."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import pydantic

from benchmark.validation import StrictModel
from federation.threat import Oracle, TrainingFacts, Victim

FORMAT: Literal[1] = 1
"""Raised whenever a bundle that was written before can no longer be read."""

Names: TypeAlias = dict[str, str]
"""Tensors' names in the pool by their own."""


class EnvelopeRecord(StrictModel):
    """One envelope; its payload as named tensors where it is in their canonical form, else as bytes."""

    round: int = pydantic.Field(ge=0)
    phase: str
    sender: str
    receiver: str
    payload: Names | str


class PlainModelRecord(StrictModel):
    """See `federation.threat.PlainModel`."""

    kind: Literal["plain model"] = "plain model"
    before: Names
    after: dict[str, Names]
    hidden_by: tuple[str, ...]


class MatrixRecord(StrictModel):
    """A sparse matrix by rows (CSR)."""

    shape: tuple[int, int]
    data: str
    indices: str
    indptr: str


class SparseLayersRecord(StrictModel):
    """See `federation.threat.SparseLayers`."""

    kind: Literal["sparse layers"] = "sparse layers"
    before: dict[str, MatrixRecord]
    after: dict[str, dict[str, MatrixRecord]]
    hidden_by: tuple[str, ...]


class CiphertextRecord(StrictModel):
    """See `federation.threat.Ciphertext`."""

    kind: Literal["ciphertext"] = "ciphertext"
    scheme: str
    byte_count: int


class NothingRecord(StrictModel):
    """See `federation.threat.Nothing`."""

    kind: Literal["nothing"] = "nothing"
    reason: str


ViewRecord: TypeAlias = Annotated[
    PlainModelRecord | SparseLayersRecord | CiphertextRecord | NothingRecord, pydantic.Field(discriminator="kind")
]


class ObservationRecord(StrictModel):
    """See `federation.threat.Observation`; the network and the auxiliary images are the task's."""

    round: int = pydantic.Field(ge=0)
    transcript: tuple[EnvelopeRecord, ...]
    held: Names
    view: ViewRecord
    scheme: dict[str, dict[str, Any]]
    facts: TrainingFacts
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    has_auxiliary: bool
    oracles: dict[Oracle, str]
    own_updates: dict[str, Names]


class Suggested(StrictModel):
    """The budget with which an attack is tried unless another is asked for."""

    evaluations: int = pydantic.Field(ge=1)
    restarts: int = pydantic.Field(1, ge=1)


class BundleRecord(StrictModel):
    """A whole bundle.

    Attributes:
        format: of this file.
        title: one line for listings.
        task: whose network and data they are.
        dataset: SHA-256 of the task's data, from which auxiliary images, floors and gallery come.
        defense, adversary: as tables name them.
        split: the private split that the victims' images are from.
        budget: see `Suggested`.
        image_shape, class_count: of the network.
        victims: what to reconstruct.
        observations: the history.
        files: SHA-256 of the files beside this one.
    """

    format: Literal[1] = FORMAT
    title: str
    task: str
    dataset: str
    defense: str
    adversary: str
    split: Literal["victims", "training"]
    budget: Suggested
    image_shape: tuple[int, int, int]
    class_count: int = pydantic.Field(ge=1)
    victims: tuple[Victim, ...] = pydantic.Field(min_length=1)
    observations: tuple[ObservationRecord, ...] = pydantic.Field(min_length=1)
    files: dict[str, str]
