"""Public images as the attacker expects the private ones: normalised, with small crops and changes of brightness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from federation.normalisation import Normalisation
from federation.threat import Auxiliary

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

ENOUGH = 3000
"""Images from which further varied copies add nothing to means and correlations of pixels."""

_ZOOM, _BRIGHTNESS = 0.1, 0.15
"""Share of the sides that a copy may lose, and change of its brightness, at most."""


@dataclass(frozen=True, eq=False)
class PublicImages:
    """Flattened images in the network's input space.

    Attributes:
        pixels: [M, P], normalised.
        labels: [M].
        black: [P], what a pixel of value 0 is there.
    """

    pixels: Floats
    labels: Integers
    black: Floats

    @classmethod
    def of(cls, auxiliary: Auxiliary, normalisation: Normalisation, generator: torch.Generator) -> PublicImages:
        """The auxiliary images, and varied copies of them where they are few; at least one of each."""
        images = auxiliary.pixels
        copies = max(1, ENOUGH // len(images))
        every = torch.cat([images, *(varied(images, generator) for _ in range(copies))])
        black = normalisation.apply(torch.zeros_like(images[:1]))
        return cls(
            normalisation.apply(every).flatten(1).double().numpy(),
            auxiliary.labels.repeat(copies + 1).numpy(),
            black.flatten().double().numpy(),
        )


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] in [0, 1] cropped a little, scaled back to its size, and brighter or darker."""
    zoom, across, down, light = torch.rand(4, len(images), generator=generator)
    scale = 1 - _ZOOM * zoom
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, 0, 2], affine[:, 1, 2] = ((1 - scale) * (2 * shift - 1) for shift in (across, down))
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return (cropped * (1 + _BRIGHTNESS * (2 * light - 1)).view(-1, 1, 1, 1)).clamp(0, 1)
