"""Updates of single images, as an attack observes them and as its peer is given them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from federation.datasets import load_dataset
from federation.messages import Transcript
from federation.network import Network
from federation.normalisation import Normalisation
from federation.threat import Observation, PlainModel, TrainingFacts, Victim
from federation.training import cross_entropy_gradients
from federation.weights import weights_of

SENDER = "client-0"
RATE = 1.0
"""Of the clients' single step, so that rounding to new weights costs the gradient as little as it can."""


@dataclass(frozen=True)
class SingleImages:
    """N victims, each one image of a data set's private split, and what their clients send after one step.

    Attributes:
        dataset: its name.
        network: the architecture.
        model: at the weights that every client started from.
        pixels: float [N, C, H, W] in [0, 1].
        labels: [N].
        normalisation: of the pixels.
        updates: the gradient of each image, by parameter name, as it follows from the weights sent.
        history: what is observed, one observation a victim.
    """

    dataset: str
    network: Network
    model: nn.Module
    pixels: Tensor
    labels: Tensor
    normalisation: Normalisation
    updates: tuple[dict[str, Tensor], ...]
    history: tuple[Observation, ...]

    @property
    def victims(self) -> list[Victim]:
        """All of them, as an attack is handed them."""
        return [Victim(f"victim-{index}", index, SENDER, 1) for index in range(len(self.pixels))]

    def squared_errors(self, images: Tensor) -> Tensor:
        """Mean squared error of each reconstruction, of images [N, C, H, W] in [0, 1]: [N]."""
        return (images - self.pixels[: len(images)]).square().flatten(1).mean(1)


def single_images(
    dataset: str, build: Callable[[tuple[int, int, int], int], nn.Module], count: int, *, normalised: bool = True
) -> SingleImages:
    """The first `count` victims of a data set, and one step of each at the weights that `build` returns.

    Args:
        dataset: name of the data set.
        build: (image shape, classes) -> the model, with its weights.
        count: how many.
        normalised: by the channels' statistics; else pixels are taken as they are, as Zhu et al. (2019) do.
    """
    images = load_dataset(dataset)
    shape, classes = images.image_shape, images.class_count
    model, network = build(shape, classes), Network(lambda: build(shape, classes), shape, classes)
    plain = Normalisation((0.0,) * shape[0], (1.0,) * shape[0])
    normalisation = Normalisation(images.mean, images.deviation) if normalised else plain
    chosen = images.victims.select(range(min(count, len(images.victims))))
    pixels = chosen.pixels()
    before = weights_of(model)
    updates, history = [], []
    for image, label in zip(normalisation.apply(pixels), chosen.labels, strict=True):
        gradient = cross_entropy_gradients(model, image[None], label[None])
        after = {name: value - RATE * gradient[name] for name, value in before.items()}
        updates.append({name: (before[name] - after[name]) / RATE for name in before})
        history.append(
            Observation(
                round=0,
                transcript=Transcript(),
                held={},
                view=PlainModel(before, {SENDER: after}),
                scheme={},
                facts=TrainingFacts(RATE, 1, 1, 1, {SENDER: 1}),
                network=network,
                mean=tuple(normalisation.mean),
                deviation=tuple(normalisation.deviation),
            )
        )
    return SingleImages(dataset, network, model, pixels, chosen.labels, normalisation, tuple(updates), tuple(history))


def mean_psnr(squared_errors: Tensor) -> float:
    """Of mean squared errors [N], in dB, capped at 60."""
    return float((-10 * squared_errors.log10()).clamp(max=60).mean())


def generator_of(seed: int) -> torch.Generator:
    """A new generator; ours and the peer's draw the same starting points from equal seeds."""
    return torch.Generator().manual_seed(seed)
