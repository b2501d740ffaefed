"""Images that are sent to be classified: what the conformance suite tries those attacks on that read no updates."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch

from attacks.base import Attack, Need
from benchmark.audit.chosen import CLIENTS
from benchmark.conformance.updates import Images, Updates
from defenses.base import Defense
from defenses.inference import Inference
from defenses.registry import build_defense
from federation.messages import Transcript
from federation.network import Network
from federation.normalisation import Normalisation
from federation.secret_root import SecretRoot
from federation.threat import KeyedImage, Observation, TrainingFacts
from federation.weights import weights_of

IN_FORCE = "keynet-toeplitz"
"""The defense under which an attack meets what it must not open."""


class ImagesToClassify(Updates):
    """In place of an update of an image, the image itself, on its way to be classified by the network."""

    def concerns(self, defense: Defense) -> bool:
        """Whether it sends images."""
        return defense.inference is not None

    @cached_property
    def of_noise(self) -> list[Observation]:
        """Images under one key beside a network under another."""
        others = ImagesToClassify(self.network, self.root.derive("somebody else")).under(build_defense(IN_FORCE))
        seen = zip(self.under(build_defense(IN_FORCE)), others, strict=True)
        return [replace(one, view=replace(_view(one), layers=_view(other).layers)) for one, other in seen]

    @cached_property
    def of_nothing(self) -> list[Observation]:
        """Images of one value."""
        seen = self.under(build_defense(IN_FORCE))
        return [replace(one, view=replace(_view(one), image=torch.zeros_like(_view(one).image))) for one in seen]

    def under(self, defense: Defense, images: Images | None = None) -> list[Observation]:
        """One observation an image, of those that are private or of those given, by the server and under a defense."""
        inference = defense.inference
        assert inference is not None, "a defense that sends images"
        return self._observed(defense, inference, images or self.images)

    def _observed(self, defense: Defense, inference: Inference, images: Images) -> list[Observation]:
        owner = inference.owner(self.network, weights_of(self.network.build()), self.root.derive("owner of images"))
        layers = inference.read_network(owner.network(), self.network)
        mean, deviation = images.public_moments
        inputs = Normalisation(mean, deviation).apply(images.private.float() / 255)
        return [
            Observation(
                round=0,
                transcript=Transcript(),
                held={},
                view=KeyedImage(
                    layers,
                    inference.read_image(owner.image(image, eight_bit=False), self.network),
                    inference.hidden_by,
                ),
                scheme=defense.scheme(),
                facts=TrainingFacts(0.1, batch_size=1, epochs=1, steps=1, sample_counts=dict.fromkeys(CLIENTS, 1)),
                network=self.network,
                mean=mean,
                deviation=deviation,
                auxiliary=images.auxiliary,
            )
            for image in inputs
        ]


def updates_for(attack: Attack, network: Network, root: SecretRoot) -> Updates:
    """What an attack is tried on: updates, or images where it reads these."""
    return (ImagesToClassify if Need.KEYED_IMAGES in attack.needs else Updates)(network, root)


def _view(observation: Observation) -> KeyedImage:
    assert isinstance(observation.view, KeyedImage), "images alone are observed here"
    return observation.view
