"""Floors: guesses made without reading any update, which a real attack has to beat.

A reconstruction that scores below the mean image of a public split shows nothing about the victim. Floors go through
the same matching and the same metrics as an attack; gain is over the highest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.metrics.pixel import require_eight_bit, to_eight_bit
from federation.errors import DataError

GREY = "grey"
MEAN = "mean"
CLASS_MEAN = "class-mean"
RANDOM = "random"


def grey_images(count: int, shape: torch.Size) -> Tensor:
    """Uniform mid-grey, uint8 [count, *shape]."""
    return to_eight_bit(torch.full((count, *shape), 0.5))


def floors(
    auxiliary_images: Tensor,
    auxiliary_labels: Tensor,
    count: int,
    labels: Tensor | None,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Guesses for a batch of victims, by name.

    Args:
        auxiliary_images: [A, C, H, W] of the public split, uint8 or floating point in [0, 1]; at least one.
        auxiliary_labels: int64 [A].
        count: victims in the batch.
        labels: int64 [count], the labels that an adversary has (given or recovered), or None where it has none.
        generator: seeded source of the random guess.

    Returns:
        uint8 [count, C, H, W] under "grey" (0.5 everywhere), "mean" (the mean auxiliary image), "random" (auxiliary
        images drawn with replacement) and, with labels, "class-mean" (the mean auxiliary image of each label; the mean
        of all for a class the split lacks).

    Raises:
        DataError: where the split is empty or labels and images differ in number.
    """
    images = to_eight_bit(auxiliary_images) if auxiliary_images.is_floating_point() else auxiliary_images
    require_eight_bit(images, "the auxiliary split")
    if len(images) == 0 or auxiliary_labels.shape != (len(images),):
        raise DataError(
            f"the auxiliary split must have images and a label each: {len(images)}, {len(auxiliary_labels)}"
        )
    if labels is not None and labels.shape != (count,):
        raise DataError(f"{count} victims need {count} labels, not {list(labels.shape)}")

    scaled = images.double() / 255
    mean = scaled.mean(0)
    drawn = torch.randint(len(images), (count,), generator=generator)
    guesses = {
        GREY: grey_images(count, images.shape[1:]),
        MEAN: to_eight_bit(mean.expand(count, *mean.shape)),
        RANDOM: images[drawn],
    }
    if labels is not None:
        known = set(auxiliary_labels.tolist())
        class_means = {label: scaled[auxiliary_labels == label].mean(0) for label in set(labels.tolist()) & known}
        rows = [class_means.get(label, mean) for label in labels.tolist()]
        guesses[CLASS_MEAN] = to_eight_bit(torch.stack(rows))
    return guesses
