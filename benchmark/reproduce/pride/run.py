"""The reproduction from data to stored result: train, play the protocol, average soundly, attack, write."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import sklearn
from phe.paillier import PaillierPrivateKey

from benchmark.artefacts import code_digest, digest
from benchmark.provenance import hardware, library_versions, source_revision
from benchmark.reproduce.pride import adversaries, gallery, pictures, printed, scores
from benchmark.reproduce.pride.deviations import deviations
from benchmark.reproduce.pride.exchange import PRECISION_AS_CODED, PRECISION_MEANT, Cloud, Exchange, returned
from benchmark.reproduce.pride.key_lengths import measured_key_lengths
from benchmark.reproduce.pride.models import SOLVER, LinearModel, Trained, trained_once
from benchmark.reproduce.pride.parties import CLOUD, Division, divide
from benchmark.reproduce.pride.sound import SoundParties
from benchmark.store.pride import (
    AdversaryResult,
    ModelResult,
    PictureResult,
    PrideResult,
    PrideSetting,
    read_pride,
    write_pride,
)
from benchmark.store.rows import Manifest
from defenses.paillier.keys import generate_keypair
from federation.datasets import Dataset
from federation.errors import DataError
from federation.secret_root import SecretRoot
from federation.seeds import numpy_generator


class Progress(Protocol):
    """Told of what is being done."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many jobs begins."""
        ...

    def done(self, label: str) -> None:
        """A job of the stage ended."""
        ...


@dataclass(frozen=True)
class Options:
    """What decides the result, with the dataset.

    Attributes:
        seed: divides the points among the parties; keys never come from it.
        key_bits: length of the Paillier modulus; 2,048 at least.
    """

    seed: int = 0
    key_bits: int = 2048


def reproduce(directory: Path, dataset: Dataset, options: Options, *, progress: Progress) -> PrideResult:
    """Compute all three columns and what each adversary recovers, and write them to `directory`.

    A finished result of the same data, options and code is returned as it stands; else trained models that are kept in
    `directory` are used again, and the rest is computed.

    Raises:
        UsageError: for a key length that protects nothing.
        DataError: for a dataset that is too small for six parties.
    """
    inputs = digest(dataset.sha256, vars(options), SOLVER, sklearn.__version__, _code())
    finished = _finished(directory, inputs)
    if finished is not None:
        return finished
    started = time.perf_counter()
    private_key = generate_keypair(options.key_bits, SecretRoot.fresh().reader())
    division = divide(dataset, options.seed)
    baseline, trained = _trainings(division, directory / "models", progress)
    models = [one.model for one in trained]
    coded = _play(models, private_key, PRECISION_AS_CODED, progress)
    meant = _play(models, private_key, PRECISION_MEANT, progress)
    rows = [
        *printed.printed_results(),
        *scores.alone(trained, baseline, division),
        *scores.as_coded(coded, "coded", trained, division),
        *scores.as_coded(meant, "coded-1e-7", trained, division),
        *_sound(trained, division, private_key, progress),
    ]
    found = _adversaries(meant, models, private_key, progress)
    shown = [
        *_updates(directory, meant, division, models[CLOUD], private_key, progress),
        *_weight_images(directory, division, models, progress),
    ]
    slices = scores.over_slices(models[CLOUD], division)
    lengths = measured_key_lengths(numpy_generator("pride key lengths", options.seed))
    result = PrideResult(
        manifest=_manifest(dataset, options, inputs),
        setting=_setting(dataset, division, options),
        models=rows,
        slices=slices,
        adversaries=[*found, *gallery.measured(shown)],
        pictures=shown,
        key_lengths=lengths,
        printed_seconds_per_weight=printed.cryptography_seconds_per_weight(),
        deviations=deviations(rows, slices, models[CLOUD], lengths),
        seconds=time.perf_counter() - started,
    )
    write_pride(directory, result)
    return result


def _code() -> str:
    return code_digest("federation", "attacks", "defenses", "benchmark")


def _finished(directory: Path, inputs: str) -> PrideResult | None:
    """The result that stands in `directory`, if it is whole and of these inputs."""
    try:
        result = read_pride(directory)
    except DataError:
        return None
    whole = all((directory / name).is_file() for one in result.pictures for name in (one.original, one.shown))
    return result if whole and result.manifest.config.get("inputs") == inputs else None


def _trainings(division: Division, folder: Path, progress: Progress) -> tuple[Trained, list[Trained]]:
    """The baseline, and the parties' models in order."""
    progress.begin("training", len(division.parties) + 1)
    trained = []
    for party in division.parties:
        trained.append(trained_once(party.training, folder))
        progress.done(party.name)
    baseline = trained_once(division.centralised, folder)
    progress.done("centralised")
    return baseline, trained


def _play(
    models: Sequence[LinearModel], private_key: PaillierPrivateKey, precision: float, progress: Progress
) -> Exchange:
    """The paper's protocol between the cloud and each party, and among all."""
    progress.begin(f"protocol as coded, precision={precision:g}", 2 * len(models))
    cloud = Cloud(models[CLOUD], private_key, precision)
    broadcast, seconds = cloud.broadcast()
    progress.done("the cloud encrypted")
    uploads, pairs = [], []
    for number, model in enumerate(models[1:], start=1):
        uploads.append(returned(model, broadcast, private_key.public_key))
        progress.done(f"party {number} added")
        pairs.append(cloud.pair(uploads[-1]))
        progress.done(f"cloud + party {number} decrypted")
    six = cloud.six(uploads)
    progress.done("six parties decrypted")
    return Exchange(precision, broadcast, seconds, tuple(uploads), tuple(pairs), six)


def _sound(
    trained: Sequence[Trained], division: Division, private_key: PaillierPrivateKey, progress: Progress
) -> Iterator[ModelResult]:
    """FedAvg of the cloud with each party, and of all."""
    groups = {f"cloud + party {number}": [CLOUD, number] for number in range(1, len(trained))}
    groups["six parties"] = list(range(len(trained)))
    progress.begin("sound averages", len(groups))
    parties = SoundParties(private_key)
    for name, members in groups.items():
        chosen = [trained[number] for number in members]
        sizes = [len(division.parties[number].training) for number in members]
        yield scores.sound(name, parties.average([one.model for one in chosen], sizes), chosen, division)
        progress.done(name)


def _adversaries(
    exchange: Exchange, models: Sequence[LinearModel], private_key: PaillierPrivateKey, progress: Progress
) -> list[AdversaryResult]:
    progress.begin("adversaries", adversaries.COUNT)
    found = []
    for label, rows in adversaries.measured(exchange, models, private_key):
        found += rows
        progress.done(label)
    return found


def _updates(
    directory: Path,
    exchange: Exchange,
    division: Division,
    model: LinearModel,
    private_key: PaillierPrivateKey,
    progress: Progress,
) -> list[PictureResult]:
    """One image of each class of party 1, as seen in its update: from the rows alone, and by eq. 2.2."""
    party = division.parties[1]
    images = list(pictures.first_of_each_class(party.training))
    progress.begin("one-image updates", len(images))
    updates = pictures.OneImageUpdates(model, exchange.broadcast, exchange.precision, private_key.public_key)
    stored = []
    for image, label in images:
        by_rows, by_ratio = updates.seen(image, label)
        stored.append(gallery.stored(directory, "one-image update, rows alone", party.name, by_rows))
        stored.append(gallery.stored(directory, "one-image update, eq. 2.2", party.name, by_ratio))
        progress.done(f"digit {label}")
    return stored


def _weight_images(
    directory: Path, division: Division, models: Sequence[LinearModel], progress: Progress
) -> list[PictureResult]:
    progress.begin("weight images", len(models))
    stored = []
    for party, model in zip(division.parties, models, strict=True):
        rows = pictures.weight_images(model, party)
        stored += [gallery.stored(directory, "weight image", party.name, one) for one in rows]
        progress.done(party.name)
    return stored


def _setting(dataset: Dataset, division: Division, options: Options) -> PrideSetting:
    return PrideSetting(
        dataset=dataset.name,
        provenance=dataset.provenance,
        scale=division.scale,
        classes=list(dataset.classes),
        sizes=[len(party.training) for party in division.parties],
        slices=[len(party.own_test) for party in division.parties],
        centralised=len(division.centralised),
        test=len(division.test),
        key_bits=options.key_bits,
        seed=options.seed,
    )


def _manifest(dataset: Dataset, options: Options, inputs: str) -> Manifest:
    commit, dirty = source_revision()
    return Manifest(
        name="pride",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        preset="",
        config={"dataset": dataset.name, "seed": options.seed, "key_bits": options.key_bits, "inputs": inputs},
        versions={**library_versions(), "scikit-learn": sklearn.__version__},
        git_commit=commit,
        git_dirty=dirty,
        hardware=hardware(),
        datasets={dataset.name: dataset.sha256},
        lpips_trunk=None,
    )
