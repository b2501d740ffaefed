"""Encrypted inference with a trained network: figures 4.2 and 4.3 counted over test images, and figure 4.6."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from benchmark.artefacts import digest
from benchmark.metrics.image_files import read_image, write_image
from benchmark.metrics.pixel import to_eight_bit
from benchmark.observations import ObservedRounds
from benchmark.store.gusain import EncryptedExample, EncryptedVictim, InferenceRefusal, InferenceRow
from benchmark.training_plan import TrainingPlan
from defenses.keynet.image_key import ImageKeyPolicy
from defenses.keynet.inference import KeyedNetwork, decrypt_outputs, encrypt_images, encrypted_examples
from defenses.keynet.inference_keys import InferenceKeys, draw_inference_keys
from defenses.keynet.pixel_keys import PixelKeyPolicy
from federation.datasets import LabelledImages
from federation.errors import DataError, UsageError
from federation.files import write_text
from federation.normalisation import Normalisation
from federation.threat import AGGREGATE, PlainModel, parse_adversary
from federation.toeplitz import ToeplitzNetwork, toeplitz_of
from federation.weights import Weights

COUNT = 200
"""Test images that are classified both ways: the first ones, in the order of the test split."""


@dataclass(frozen=True)
class KeyChoice:
    """Keys to run the network under.

    Attributes:
        slug: for names of files.
        words: for people.
        image, maps: what is drawn for the image, and for every other space.
    """

    slug: str
    words: str
    image: ImageKeyPolicy
    maps: PixelKeyPolicy


_PERMUTATIONS = PixelKeyPolicy(gain_range=1)

CHOICES = (
    KeyChoice("permutations", "permutations", ImageKeyPolicy(gain_range=1, offset_range=0), _PERMUTATIONS),
    KeyChoice("gains", "gains up to 2", ImageKeyPolicy(gain_range=2, offset_range=0), PixelKeyPolicy(gain_range=2)),
    KeyChoice(
        "mixed-image",
        "image: 4 permutations mixed, gains up to 2, offsets up to 1; else permutations",
        ImageKeyPolicy(gain_range=2, alpha=4, offset_range=1),
        _PERMUTATIONS,
    ),
)


SHOWN = CHOICES[-1]
"""Under which the attacked images are shown in keyed form."""


@dataclass(frozen=True)
class InferenceFindings:
    """What one choice of keys gave: figures, or why the network cannot be run under such keys."""

    outcome: InferenceRow | InferenceRefusal
    examples: tuple[EncryptedExample, ...] = ()
    victims: tuple[EncryptedVictim, ...] = ()

    @property
    def pictures(self) -> list[str]:
        """The PNGs that it names, relative to the reproduction's folder."""
        shown: list[EncryptedExample | EncryptedVictim] = [*self.examples, *self.victims]
        return [name for one in shown for name in (one.original, one.shown)]


def measure_once(plan: TrainingPlan, choice: KeyChoice, out: Path, victims: Sequence[str]) -> InferenceFindings:
    """`measure`, or what it gave where the same was measured before and its pictures are still there."""
    address = digest("inference", plan.identifier, asdict(choice), victims, plan.workspace.code.cells)
    file = plan.workspace.artefacts / "inference" / f"{address}.json"
    if file.is_file():
        found = _read(file)
        if all((out / name).is_file() for name in found.pictures):
            return found
    findings = measure(plan, choice, out, victims)
    write_text(file, json.dumps(asdict(findings)))
    return findings


def _read(file: Path) -> InferenceFindings:
    try:
        return TypeAdapter(InferenceFindings).validate_json(file.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise DataError(f"{file}: not readable findings ({problem}); remove it to have them made anew") from error


def measure(plan: TrainingPlan, choice: KeyChoice, out: Path, victims: Sequence[str]) -> InferenceFindings:
    """Run a training's last model on keyed test images and compare.

    Args:
        plan: a finished training in clear whose last round was kept.
        choice: which keys; drawn from the run's secret root.
        out: the reproduction's folder; pictures go to `inference/TASK/` in it.
        victims: PNGs of attacked images, relative to `out`, to be shown in keyed form too.

    Raises:
        DataError: where a file of the run is missing or damaged.
    """
    model = plan.network.build().eval()
    model.load_state_dict(last_weights(plan))
    try:
        subject = _Subject.under(plan, choice, model)
    except UsageError as refusal:
        return InferenceFindings(InferenceRefusal(choice.words, str(refusal)))
    pictures = _Pictures(out, f"inference/{plan.task.replace('/', '-')}", choice)
    test = plan.workspace.dataset(plan.task).test
    return InferenceFindings(
        _row(choice, subject.scores(test.select(torch.arange(min(COUNT, len(test)))))),
        tuple(pictures.examples(subject, test)),
        tuple(pictures.victims(subject, victims)),
    )


def last_weights(plan: TrainingPlan) -> Weights:
    """The model that the last round of a training in clear released."""
    victims = plan.victims.real_round
    assert victims is not None, "every scale has them"
    rounds = ObservedRounds(plan, parse_adversary("aggregate/oblivious"), victims, plan.algorithm.rounds - 1)
    view = rounds[0].view
    assert isinstance(view, PlainModel), "nothing is hidden"
    return dict(view.after[AGGREGATE])


@dataclass(frozen=True)
class _Scores:
    """Class scores of some images, float64 [N, classes], their labels, and what the runs took."""

    labels: Tensor
    plain: Tensor
    opened: Tensor
    wrong: Tensor
    plain_entries: int
    keyed_entries: int
    seconds_plain: float
    seconds_keyed: float


@dataclass(frozen=True)
class _Subject:
    """A trained network, plain and keyed, with the keys and those of somebody else."""

    model: nn.Module
    network: ToeplitzNetwork
    keyed: KeyedNetwork
    keys: InferenceKeys
    others: InferenceKeys
    normalisation: Normalisation

    @classmethod
    def under(cls, plan: TrainingPlan, choice: KeyChoice, model: nn.Module) -> _Subject:
        """Key the network; raises UsageError where it cannot be."""
        network = toeplitz_of(plan.network)
        root = plan.workspace.root.derive("encrypted inference", plan.task, choice.slug)
        keys, others = (
            draw_inference_keys(network, root.derive(owner), choice.image, choice.maps)
            for owner in ("the clients", "somebody else")
        )
        dataset = plan.workspace.dataset(plan.task)
        return cls(
            model,
            network,
            KeyedNetwork.of(network, model.state_dict(), keys.spaces),
            keys,
            others,
            Normalisation(dataset.mean, dataset.deviation),
        )

    def scores(self, images: LabelledImages) -> _Scores:
        """Classify images in every way."""
        pixels = self.normalisation.apply(images.pixels())
        start = time.perf_counter()
        with torch.no_grad():
            plain = self.model(pixels).double()
        between = time.perf_counter()
        opened = self._through(self.keys, pixels)
        end = time.perf_counter()
        return _Scores(
            labels=images.labels,
            plain=plain,
            opened=opened,
            wrong=self._through(self.others, pixels),
            plain_entries=sum(step.layout.entries for step in self.network.linear),
            keyed_entries=self.keyed.entries,
            seconds_plain=between - start,
            seconds_keyed=end - between,
        )

    def _through(self, sender: InferenceKeys, pixels: Tensor) -> Tensor:
        """The keyed network's scores of images that are keyed by `sender`, opened with the right key."""
        return decrypt_outputs(self.keyed.run(encrypt_images(pixels, sender.image)), self.keys.outputs(self.network))

    def shown(self, images: Tensor) -> Tensor:
        """Images, uint8 [N, C, H, W], in keyed form as pictures of the same shape and type."""
        pixels = self.normalisation.apply(images.float() / 255)
        return to_eight_bit(encrypted_examples(self.model, self.network, self.keys.spaces, pixels).encrypted)


def _row(choice: KeyChoice, scores: _Scores) -> InferenceRow:
    def share(one: Tensor, other: Tensor) -> float:
        return float((one == other).double().mean())

    plain, opened, wrong = (each.argmax(1) for each in (scores.plain, scores.opened, scores.wrong))
    count = len(scores.labels)
    return InferenceRow(
        keys=choice.words,
        images=count,
        plain_accuracy=share(plain, scores.labels),
        encrypted_accuracy=share(opened, scores.labels),
        agreement=share(plain, opened),
        largest_difference=float((scores.plain - scores.opened).abs().max()),
        largest_score=float(scores.plain.abs().max()),
        wrong_key_agreement=share(plain, wrong),
        wrong_key_difference=float((scores.plain - scores.wrong).abs().max()),
        plain_entries=scores.plain_entries,
        keyed_entries=scores.keyed_entries,
        seconds_plain=scores.seconds_plain / count,
        seconds_keyed=scores.seconds_keyed / count,
    )


@dataclass(frozen=True)
class _Pictures:
    """Writes pictures below `out`/`folder`."""

    out: Path
    folder: str
    choice: KeyChoice

    def examples(self, subject: _Subject, test: LabelledImages) -> Iterator[EncryptedExample]:
        """The first test image of each class."""
        first = [int((test.labels == label).nonzero()[0, 0]) for label in test.labels.unique()]
        chosen = test.select(torch.tensor(first))
        scores = subject.scores(chosen)
        classes = torch.stack([each.argmax(1) for each in (scores.plain, scores.opened, scores.wrong)], 1).tolist()
        for image, shown, label, (plain, opened, wrong) in zip(
            chosen.images, subject.shown(chosen.images), chosen.labels.tolist(), classes, strict=True
        ):
            original = self._written(f"class-{label}", image)
            yield EncryptedExample(
                self.choice.words, label, plain, opened, wrong, original, self._keyed(f"class-{label}", shown)
            )

    def victims(self, subject: _Subject, names: Sequence[str]) -> Iterator[EncryptedVictim]:
        """The attacked images that stand under these names."""
        if not names:
            return
        images = torch.stack([read_image(self.out / name) for name in names])
        for name, shown in zip(names, subject.shown(images), strict=True):
            stem = Path(name).with_suffix("")
            yield EncryptedVictim(self.choice.words, name, self._keyed(f"{stem.parent.parent.name}-{stem.name}", shown))

    def _keyed(self, stem: str, image: Tensor) -> str:
        return self._written(f"{stem}-{self.choice.slug}", image)

    def _written(self, stem: str, image: Tensor) -> str:
        name = f"{self.folder}/{stem}.png"
        write_image(self.out / name, image)
        return name
