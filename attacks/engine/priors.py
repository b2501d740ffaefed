"""What an attacker knows of images before it sees an update: terms to add, and the range to stay in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from federation.normalisation import Normalisation

Prior = Callable[[Tensor], Tensor]
"""Images [T, m, C, H, W] in the network's input space -> penalty [T], added to the objective."""

Constraint = Callable[[Tensor], Tensor]
"""Images [T, m, C, H, W] -> the nearest allowed ones."""


@dataclass(frozen=True)
class TotalVariation:
    """weight x (mean |horizontal difference| + mean |vertical difference|), as Geiping et al. 2020 weigh it."""

    weight: float

    def __call__(self, images: Tensor) -> Tensor:
        """Penalty [T] of images [T, m, C, H, W]."""
        horizontal = (images[..., :, 1:] - images[..., :, :-1]).abs().flatten(1).mean(1)
        vertical = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
        return self.weight * (horizontal + vertical)


@dataclass(frozen=True)
class BoxConstraint:
    """Projection onto the images whose pixels lie in [0, 1] once the normalisation is undone."""

    normalisation: Normalisation

    def __call__(self, images: Tensor) -> Tensor:
        """The nearest images [T, m, C, H, W] in range."""
        channels = (len(self.normalisation.mean), 1, 1)
        lowest = self.normalisation.apply(images.new_zeros(channels))
        highest = self.normalisation.apply(images.new_ones(channels))
        return images.clamp(lowest, highest)
