"""Several local steps of a client, simulated inside the attack (Geiping et al. 2020, section on federated averaging)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from attacks.engine.gradients import SingleGradient
from federation.errors import UsageError

LaterEpochs: TypeAlias = Literal["same order", "all images"]
"""What the steps after the first epoch read in the simulation; see `simulated_batches`."""


def simulated_batches(images: int, batch_size: int, steps: int, later_epochs: LaterEpochs) -> tuple[slice, ...]:
    """Which of the attacker's images each local step reads.

    Clients shuffle anew in every epoch, and nobody else learns how. The order of the first epoch can be called the order
    of the attacker's images, which have none of their own; what the later ones read is not known. Two assumptions are on
    offer: that they keep the order ("same order"), or that each of their steps takes the mean gradient of all images,
    which is what such a step takes on average ("all images"). Where a batch holds all images both are exact.

    Args:
        images: that the client trains on.
        batch_size: images a step; the last batch of an epoch may be smaller.
        steps: over all epochs; the last epoch may be cut short.
        later_epochs: the assumption about the epochs after the first.

    Raises:
        UsageError: for a count under 1.
    """
    if min(images, batch_size, steps) < 1:
        raise UsageError(f"{images} images, {batch_size} a batch and {steps} steps: each must be at least 1")
    first = [slice(start, min(start + batch_size, images)) for start in range(0, images, batch_size)]
    later = first if later_epochs == "same order" else [slice(0, images)] * len(first)
    epochs = [first, *[later] * (steps // len(first))]
    return tuple(batch for epoch in epochs for batch in epoch)[:steps]


class LocalSteps:
    """Plain SGD on the mean cross-entropy of one batch after the other, differentiable in images and labels.

    Args:
        step: a single step of the client at the weights at the start of the round.
        batches: the images that each step reads, such as `simulated_batches` gives.
        rate: the client's learning rate.

    Attributes:
        steps: how many local steps are simulated; each takes memory.

    Raises:
        UsageError: without a step.
    """

    def __init__(self, step: SingleGradient, batches: Sequence[slice], rate: float) -> None:
        if not batches:
            raise UsageError("local training of no steps has no update")
        self.steps = len(batches)
        self._step, self._batches, self._rate = step, tuple(batches), rate

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean gradient over the steps, which is (before - after) / (rate * steps): [T, *parameter shape] by name.

        Args:
            images: [T, m, C, H, W], normalised.
            labels: soft, [T, m, K].
        """
        first, *later = self._batches
        # the first step is taken from weights that all trials share, which is cheaper
        total = self._step(images[:, first], labels[:, first])
        for batch in later:
            weights = {name: self._step.weights[name] - self._rate * moved for name, moved in total.items()}
            gradient = self._step.at(weights, images[:, batch], labels[:, batch])
            total = {name: moved + gradient[name] for name, moved in total.items()}
        return {name: moved / self.steps for name, moved in total.items()}
