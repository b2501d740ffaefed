"""Undefended updates of single images: what the conformance suite of attacks tries them on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.audit.chosen import CLIENTS, ChosenFederation
from benchmark.metrics import pixel
from defenses.base import Defense
from defenses.registry import DEFENSES, build_defense
from federation.datasets import load_dataset
from federation.errors import MissingExtra
from federation.messages import Transcript
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import Auxiliary, Observation, PlainModel, Position, TrainingFacts
from federation.training import cross_entropy_gradients
from federation.weights import Kind, Weights, weights_of

VICTIMS = 4
RATE = 0.1


@dataclass(frozen=True)
class Images:
    """What was private (uint8 [V, C, H, W] and int64 [V]), and what is public."""

    private: Tensor
    labels: Tensor
    auxiliary: Auxiliary

    @property
    def public_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the public ones."""
        pixels = self.auxiliary.pixels
        return tuple(pixels.mean((0, 2, 3)).tolist()), tuple(pixels.std((0, 2, 3)).tolist())


@dataclass(frozen=True)
class Updates:
    """Undefended updates to try attacks on: one image, one step each.

    Attributes:
        network: what they are updates of.
        root: where the keys of leaky twins come from.
    """

    network: Network
    root: SecretRoot

    @cached_property
    def images(self) -> Images:
        """Digits at the size that the network takes: those to reconstruct, and public ones."""
        return self._drawn(0)

    @cached_property
    def other_images(self) -> Images:
        """As many other digits."""
        return self._drawn(VICTIMS)

    def _drawn(self, first: int) -> Images:
        dataset, rows = load_dataset("mnist5k"), slice(first, first + VICTIMS)
        size = self.network.image_shape

        def resized(pixels: Tensor) -> Tensor:
            small = F.interpolate(pixels, size[1:], mode="bilinear", antialias=True)
            return small.clamp(0, 1).expand(-1, size[0], -1, -1).contiguous()

        private, public = dataset.victims, dataset.auxiliary
        return Images(
            pixel.to_eight_bit(resized(private.pixels()[rows])),
            private.labels[rows],
            Auxiliary(pixel.to_eight_bit(resized(public.pixels())).float() / 255, public.labels),
        )

    @cached_property
    def plain(self) -> list[Observation]:
        """One observation a victim, under no defense."""
        return self.under(build_defense("plain"))

    @cached_property
    def of_other_images(self) -> list[Observation]:
        """One observation each of the other images, under no defense."""
        return self.under(build_defense("plain"), self.other_images)

    @cached_property
    def of_noise(self) -> list[Observation]:
        """One observation a victim, of updates that have nothing to do with any image."""
        return [with_noise(observation, index) for index, observation in enumerate(self.plain)]

    @cached_property
    def of_nothing(self) -> list[Observation]:
        """One observation a victim, of updates that change nothing."""
        return [with_update(observation, lambda tensor: torch.zeros_like(tensor)) for observation in self.plain]

    @cached_property
    def leaky_twins(self) -> dict[str, list[Observation]]:
        """The same through the leaky twin of every registered defense that can be built here and concerns it, by name."""
        twins = {}
        for name in DEFENSES.names():
            with contextlib.suppress(MissingExtra):
                twin = build_defense(name).leaky_twin()
                if self.concerns(twin):
                    twins[name] = self.under(twin)
        return twins

    def concerns(self, defense: Defense) -> bool:
        """Whether a defense sends what is tried here: any does."""
        return True

    def under(self, defense: Defense, images: Images | None = None) -> list[Observation]:
        """One observation a victim, of its image or of those given, by the server and under a defense."""
        shown = images or self.images
        federation = ChosenFederation(defense, self.network, self.root, counts=dict.fromkeys(CLIENTS, 1))
        return [self._observation(defense, federation, shown, index) for index in range(VICTIMS)]

    def _observation(self, defense: Defense, federation: ChosenFederation, images: Images, index: int) -> Observation:
        """What the server observes of a round from the network's own weights, with all that an adaptive one may have."""
        opening = federation.start(weights_of(self.network.build()))
        step = self._step(images, index)
        record = federation.play(0, {CLIENTS[0]: step, CLIENTS[1]: lambda recovered: recovered})
        mean, deviation = images.public_moments
        return Observation(
            round=0,
            transcript=Transcript([*opening, *record.transcript]),
            held={},
            view=federation.view(record, Position.SERVER),
            scheme=defense.scheme(),
            facts=TrainingFacts(RATE, batch_size=1, epochs=1, steps=1, sample_counts=federation.counts),
            network=self.network,
            mean=mean,
            deviation=deviation,
            auxiliary=images.auxiliary,
        )

    def _step(self, images: Images, index: int) -> Callable[[Weights], Weights]:
        """One SGD step on a victim's image."""
        public = images.auxiliary.pixels
        channels = (1, -1, 1, 1)
        mean, deviation = public.mean((0, 2, 3)).view(channels), public.std((0, 2, 3)).view(channels)
        inputs = (images.private[index : index + 1].float() / 255 - mean) / deviation

        def step(weights: Weights) -> Weights:
            model = self.network.build()
            model.load_state_dict(weights)
            gradients = cross_entropy_gradients(model, inputs, images.labels[index : index + 1])
            return {
                name: tensor - RATE * gradients[name] if name in gradients else tensor
                for name, tensor in weights.items()
            }

        return step


def small_network() -> Network:
    """DLG's network on 14 x 14 pixels: what a check runs on unless told otherwise."""
    return Network(lambda: build_model("lenet-zhu", (1, 14, 14), 10, seed=0), (1, 14, 14), 10)


def with_noise(observation: Observation, index: int) -> Observation:
    """The observation with an update of Gaussian noise in place of the true one, of the same norm tensor by tensor."""
    generator = torch_generator("conformance noise", index)

    def noise(update: Tensor) -> Tensor:
        drawn = torch.randn(update.shape, generator=generator)
        return drawn * update.norm() / drawn.norm()

    return with_update(observation, noise)


def with_update(observation: Observation, change: Callable[[Tensor], Tensor]) -> Observation:
    """The observation with the victim's update of every parameter changed."""
    view = observation.view
    assert isinstance(view, PlainModel), "a leaky twin's updates can be evaluated"
    parameters = {spec.name for spec in observation.network.layout if spec.kind is Kind.PARAMETER}
    before, after = view.before, view.after[CLIENTS[0]]
    changed = {
        name: before[name] + change(tensor - before[name]) if name in parameters else tensor
        for name, tensor in after.items()
    }
    return replace(observation, view=replace(view, after={**view.after, CLIENTS[0]: changed}))
