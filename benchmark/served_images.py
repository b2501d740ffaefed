"""Keyed images: what a client sends to have images classified through the network of a checkpoint, kept and read again.

At a snapshot one client, the owner of the images, sends the server the network once and every image in an envelope of its
own. Its keys derive from the run's secret root and are nobody else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import scipy.sparse
from torch import Tensor

from benchmark.regimes import KeyedImageVictims
from benchmark.training_files import Truth, check_observed, snapshot_name
from benchmark.training_plan import TrainingPlan
from defenses.inference import IMAGE_PHASE, NETWORK_PHASE, Inference
from federation.errors import UsageError
from federation.files import write_text
from federation.messages import SERVER, Envelope, Transcript
from federation.normalisation import Normalisation
from federation.threat import KeyedImage, Nothing, View
from federation.weights import Weights


def keep_keyed_images(plan: TrainingPlan, victims: KeyedImageVictims, snapshot: int, weights: Weights) -> None:
    """Send the images of a snapshot and keep the envelopes and the truth, or why the defense sends none.

    Args:
        plan: the training.
        victims: how many images, and how they are stored.
        snapshot: the round.
        weights: the global weights that the owner of the images recovered in it.
    """
    private = plan.workspace.private(plan.task, "victims", raw=plan.victims.raw)
    rows = plan.keyed_image_indices(victims, snapshot)
    for index, row in enumerate(rows.split(1)):
        truth = Truth(private.images[row], private.labels[row], row, weights)
        truth.save(plan.directory / f"{snapshot_name(victims.kind, snapshot, index)}.truth")
    try:
        network, images = _sent(plan, victims, snapshot, weights, private.pixels()[rows])
    except UsageError as refusal:
        write_text(_refusal_file(plan, snapshot), str(refusal))
        return
    owner = plan.clients[0]
    Transcript([Envelope(snapshot, NETWORK_PHASE, owner, SERVER, network)]).save(
        plan.directory / f"{_network_name(snapshot)}.transcript"
    )
    for index, image in enumerate(images):
        envelopes = Transcript([Envelope(snapshot, IMAGE_PHASE, owner, SERVER, image)])
        envelopes.save(plan.directory / f"{snapshot_name(victims.kind, snapshot, index)}.transcript")


def _sent(
    plan: TrainingPlan, victims: KeyedImageVictims, snapshot: int, weights: Weights, pixels: Tensor
) -> tuple[bytes, list[bytes]]:
    """The messages of the network and of each image; raises UsageError where none are sent."""
    inference = plan.defense.inference
    if inference is None:
        raise UsageError(f"{plan.defense_spec.name} encrypts no images")
    owner = inference.owner(plan.network, weights, plan.inference_root(snapshot))
    dataset = plan.workspace.dataset(plan.task)
    inputs = Normalisation(dataset.mean, dataset.deviation).apply(pixels)
    return owner.network(), [owner.image(image, eight_bit=victims.eight_bit) for image in inputs]


@dataclass(frozen=True)
class ServedImages:
    """The images of one snapshot as they were sent.

    Attributes:
        plan: the training.
        snapshot: the round.
    """

    plan: TrainingPlan
    snapshot: int

    def transcript(self, name: str) -> Transcript:
        """The envelopes by which the image of this name is observed: the network's and its own; none were it was not sent."""
        if self._refusal is not None:
            return Transcript()
        return Transcript([*self._network, *Transcript.load(self.plan.directory / f"{name}.transcript")])

    def view(self, envelopes: Transcript) -> View:
        """What these envelopes amount to for whoever reads them and has no key."""
        if self._refusal is not None:
            return Nothing(self._refusal)
        images = envelopes.phase(IMAGE_PHASE)
        if not images or not envelopes.phase(NETWORK_PHASE):
            return Nothing("this position reads no images of others")
        image = self._inference.read_image(images[0].payload, self.plan.network)
        return KeyedImage(self._layers, image, self._inference.hidden_by)

    def score_key_claims(self, claims: Mapping[str, Tensor]) -> Mapping[str, float]:
        """See `Defense.score_key_claims`, of the keys of these images."""
        return self._inference.score_key_claims(claims, self.plan.network, self.plan.inference_root(self.snapshot))

    @property
    def _inference(self) -> Inference:
        inference = self.plan.defense.inference
        assert inference is not None, "images were sent"
        return inference

    @cached_property
    def _refusal(self) -> str | None:
        check_observed(self.plan.directory, _network_name(self.snapshot))
        file = _refusal_file(self.plan, self.snapshot)
        return file.read_text(encoding="utf-8") if file.exists() else None

    @cached_property
    def _network(self) -> Transcript:
        return Transcript.load(self.plan.directory / f"{_network_name(self.snapshot)}.transcript")

    @cached_property
    def _layers(self) -> Mapping[str, scipy.sparse.csr_array]:
        return self._inference.read_network(self._network[0].payload, self.plan.network)


def _network_name(snapshot: int) -> str:
    return snapshot_name("served-network", snapshot)


def _refusal_file(plan: TrainingPlan, snapshot: int) -> Path:
    return plan.directory / f"{_network_name(snapshot)}.refused"
