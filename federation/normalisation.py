"""Pixels to the values that networks see, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from federation.errors import UsageError


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation that the client's pixels in [0, 1] were normalised by."""

    mean: Sequence[float]
    deviation: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.deviation) or not self.mean or min(self.deviation) <= 0:
            raise UsageError(
                f"normalisation needs a mean and a positive deviation a channel, got {self.mean} and {self.deviation}"
            )

    def apply(self, pixels: Tensor) -> Tensor:
        """Pixels [..., C, H, W] in [0, 1] to the network's input space."""
        mean, deviation = self._columns(pixels)
        return (pixels - mean) / deviation

    def invert(self, images: Tensor) -> Tensor:
        """Network inputs [..., C, H, W] to pixels, clipped to [0, 1]."""
        mean, deviation = self._columns(images)
        return (images * deviation + mean).clamp(0, 1)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (like.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.deviation))
        return mean, deviation
