"""Bundles as folders: `bundle.json`, `observations.safetensors`, and `truth.safetensors` for the referee alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from attacks.base import Budget
from benchmark.bundles.bundle import Bundle, BundleTruth, Split, VictimTruth, network_of, private_split
from benchmark.bundles.coding import observation_of, record_of
from benchmark.bundles.pool import Pool
from benchmark.bundles.schema import FORMAT, BundleRecord, Suggested
from federation.datasets import Dataset, LabelledImages
from federation.errors import DataError
from federation.files import write_bytes, write_text
from federation.messages import tensors_to_bytes
from federation.tasks import find_task
from federation.threat import Auxiliary
from federation.weights import Weights

RECORD, OBSERVATIONS, TRUTH = "bundle.json", "observations.safetensors", "truth.safetensors"

_PRIVATE = "private.images"
"""The whole split, where it is not the data set's own but was cropped and jittered in secret."""


def save_bundle(directory: Path, bundle: Bundle, truth: BundleTruth, dataset: Dataset, split: Split) -> None:
    """Write a bundle; `bundle.json` goes last and says that the rest is whole."""
    pool = Pool()
    observations = tuple(record_of(observation, pool) for observation in bundle.history)
    contents = {
        OBSERVATIONS: tensors_to_bytes(dict(sorted(pool.tensors.items()))),
        TRUTH: tensors_to_bytes(_truth_tensors(truth, private_split(dataset, split))),
    }
    for name, content in contents.items():
        write_bytes(directory / name, content)
    network = bundle.history[0].network
    record = BundleRecord(
        title=bundle.title,
        task=bundle.task,
        dataset=dataset.sha256,
        defense=bundle.defense,
        adversary=bundle.adversary,
        split=split,
        budget=Suggested(evaluations=bundle.budget.evaluations, restarts=bundle.budget.restarts),
        image_shape=network.image_shape,
        class_count=network.class_count,
        victims=bundle.victims,
        observations=observations,
        files={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    )
    write_text(directory / RECORD, record.model_dump_json(indent=1) + "\n")


def read_record(directory: Path) -> BundleRecord:
    """The JSON of a bundle, checked.

    Raises:
        DataError: where it is missing, malformed, or of another format.
    """
    path = directory / RECORD
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{directory}: not a bundle ({error})") from error
    try:
        record = BundleRecord.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        hint = f"; this Keyhole reads format {FORMAT}" if place == "format" else ""
        raise DataError(f"{path}: not a bundle: {place}: {first['msg']}{hint}") from error
    return record


def load_bundle(
    directory: Path, data_directory: Path | None = None, download: bool = False
) -> tuple[Bundle, BundleTruth]:
    """Read what `save_bundle` wrote; the auxiliary images and a raw gallery come from the task's data.

    Args:
        directory: the bundle's folder.
        data_directory, download: as `load_dataset` takes them, for data sets that are not embedded.

    Raises:
        DataError: where it is missing, damaged or inconsistent, or the data is not what it was made with.
    """
    record = read_record(directory)
    dataset = find_task(record.task).load_data(data_directory, download)
    if dataset.sha256 != record.dataset:
        raise DataError(f"{directory}: made with other data than the {dataset.name} that stands here")
    try:
        if dataset.image_shape != record.image_shape or dataset.class_count != record.class_count:
            raise DataError(
                f"images {record.image_shape} in {record.class_count} classes are not those of {record.task}"
            )
        pool = Pool(_tensors(directory, OBSERVATIONS, record))
        network = network_of(record.task, record.image_shape, record.class_count)
        public = Auxiliary(dataset.auxiliary.pixels(), dataset.auxiliary.labels)
        history = tuple(observation_of(item, pool, network, public) for item in record.observations)
        truth = _truth_of(_tensors(directory, TRUTH, record), record, dataset)
        bundle = Bundle(
            title=record.title,
            task=record.task,
            defense=record.defense,
            adversary=record.adversary,
            history=history,
            victims=record.victims,
            budget=Budget(record.budget.evaluations, record.budget.restarts),
        )
        _check_victims(bundle)
    except DataError as error:
        raise DataError(f"{directory}: not a whole bundle: {error}") from error
    return bundle, truth


def _tensors(directory: Path, name: str, record: BundleRecord) -> Weights:
    try:
        content = (directory / name).read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != record.files.get(name):
        raise DataError(f"{name} is not the file that {RECORD} was written with")
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise DataError(f"{name} cannot be read ({error})") from error


def _truth_tensors(truth: BundleTruth, raw: LabelledImages) -> Weights:
    tensors: dict[str, Tensor] = {}
    for index, victim in enumerate(truth.victims):
        tensors |= {f"{index}.{name}": getattr(victim, name) for name in ("images", "labels", "rows")}
    if not torch.equal(truth.private.images, raw.images):
        tensors[_PRIVATE] = truth.private.images
    return tensors


def _truth_of(tensors: Mapping[str, Tensor], record: BundleRecord, dataset: Dataset) -> BundleTruth:
    raw = private_split(dataset, record.split)
    private = LabelledImages(tensors.get(_PRIVATE, raw.images), raw.labels)
    victims = []
    for index, victim in enumerate(record.victims):
        parts = [tensors.get(f"{index}.{name}") for name in ("images", "labels", "rows")]
        if any(part is None for part in parts):
            raise DataError(f"{TRUTH} lacks the truth of {victim.identifier}")
        images, labels, rows = (part for part in parts if part is not None)
        fits = rows.dtype == torch.int64 and rows.shape == (victim.image_count,) and len(rows.unique()) == len(rows)
        if not fits or not 0 <= int(rows.min()) <= int(rows.max()) < len(private):
            raise DataError(f"{TRUTH}: the rows of {victim.identifier} do not fit its {victim.image_count} images")
        if not torch.equal(private.images[rows], images) or not torch.equal(private.labels[rows], labels):
            raise DataError(f"{TRUTH}: the images of {victim.identifier} are not those of its split")
        victims.append(VictimTruth(images, labels, rows))
    return BundleTruth(tuple(victims), private, dataset.auxiliary)


def _check_victims(bundle: Bundle) -> None:
    if len({victim.identifier for victim in bundle.victims}) < len(bundle.victims):
        raise DataError("two victims have the same identifier")
    for victim in bundle.victims:
        if not 0 <= victim.observation < len(bundle.history):
            raise DataError(f"{victim.identifier} is in observation {victim.observation} of {len(bundle.history)}")
