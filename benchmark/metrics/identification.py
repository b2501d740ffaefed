"""Identification: can the victim's image be told from others of its kind by what the attack returned?

The measure does not care how pleasing a reconstruction is, only whether its nearest image by MSE, among the true one
and 999 others of the same split, is the true one. The true image is the one the victim really used, after its secret
crop and brightness jitter, and the others are processed in the same way. A guess that ignores the victim scores
1 / gallery size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.metrics.pixel import pairwise_squared_distances
from federation.errors import UsageError

GALLERY_SIZE = 1000


@dataclass(frozen=True)
class Gallery:
    """Images to choose among, and which of them are the victims.

    Attributes:
        images: uint8 [G, C, H, W], the victims among them.
        truths: int64 [n], the row of each victim in `images`, in the victims' order.
    """

    images: Tensor
    truths: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def chance(self) -> float:
        """Share of victims that a guess without any knowledge of them identifies."""
        return 1 / len(self)


def draw_gallery(split_size: int, victims: Tensor, generator: torch.Generator, size: int = GALLERY_SIZE) -> Tensor:
    """Draw which images of a split make up the gallery.

    Args:
        split_size: images in the split.
        victims: int64 [n], distinct positions of the victims in the split.
        generator: seeded source of the draw.
        size: images in the gallery, victims included; the whole split where that is smaller.

    Returns:
        int64 [min(size, split_size)] distinct positions, the victims first and in their order: victim i is row i.

    Raises:
        UsageError: where victims repeat, lie outside the split or outnumber the gallery.
    """
    if len(victims) > size:
        raise UsageError(f"{len(victims)} victims do not fit a gallery of {size}; draw one gallery per {size} victims")
    if len(victims.unique()) != len(victims):
        raise UsageError("the victims of a gallery must be distinct images of the split")
    if len(victims) and not 0 <= int(victims.min()) <= int(victims.max()) < split_size:
        raise UsageError(f"victims must be positions in a split of {split_size} images, 0 to {split_size - 1}")
    order = torch.randperm(split_size, generator=generator)
    others = order[~torch.isin(order, victims)]
    return torch.cat([victims, others[: size - len(victims)]])


def identified(reconstructions: Tensor, truth_indices: Tensor, gallery: Tensor) -> Tensor:
    """Whether each reconstruction is nearer to its true image than to every other image of the gallery.

    A tie counts against the attack, so that a constant guess gains nothing; copies of the true image in the gallery
    are no rivals, as to find them is to find it.

    Args:
        reconstructions: uint8 [N, C, H, W].
        truth_indices: int64 [N], the gallery's row of each reconstruction's true image.
        gallery: uint8 [G, C, H, W].

    Returns:
        bool [N].

    Raises:
        UsageError: where the indices do not fit; DataError: where the images do not.
    """
    if truth_indices.shape != reconstructions.shape[:1]:
        raise UsageError(f"{len(truth_indices)} true images are named for {len(reconstructions)} reconstructions")
    if len(truth_indices) and not 0 <= int(truth_indices.min()) <= int(truth_indices.max()) < len(gallery):
        raise UsageError(f"true images must be rows of the gallery, 0 to {len(gallery) - 1}")
    distances = pairwise_squared_distances(reconstructions, gallery)
    to_truth = distances.gather(1, truth_indices[:, None])
    copies_of_truth = pairwise_squared_distances(gallery[truth_indices], gallery) == 0
    rivals = distances.masked_fill(copies_of_truth, torch.inf)
    return (to_truth < rivals).all(1)
