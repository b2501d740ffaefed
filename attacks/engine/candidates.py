"""What a trial optimises: normalised images and, where the label is unknown, label logits, laid out as one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The free variables of one trial as a vector of length D: m*C*H*W image values, then m*K logits where joint.

    Args:
        shape: (m, C, H, W).
        classes: K.
        joint_labels: whether label logits are optimised beside the images.
    """

    shape: tuple[int, int, int, int]
    classes: int
    joint_labels: bool

    @property
    def image_values(self) -> int:
        """m*C*H*W."""
        return math.prod(self.shape)

    def draw(self, trials: int, generator: torch.Generator) -> Tensor:
        """Starting points [T, D] ~ N(0, 1), as both papers start; trial by trial, so that a trial's draw does not
        depend on how many follow it."""
        length = self.image_values + (self.shape[0] * self.classes if self.joint_labels else 0)
        draws = [torch.randn(length, generator=generator, device=generator.device) for _ in range(trials)]
        return torch.stack(draws)

    def images(self, point: Tensor) -> Tensor:
        """The images [T, m, C, H, W] in a point [T, D]."""
        return point[:, : self.image_values].unflatten(1, self.shape)

    def labels(self, point: Tensor) -> Tensor:
        """The soft labels [T, m, K] in a point [T, D] with label logits."""
        return point[:, self.image_values :].unflatten(1, (self.shape[0], self.classes)).softmax(-1)

    def with_images(self, point: Tensor, images: Tensor) -> Tensor:
        """The point [T, D] with its images replaced by `images` [T, m, C, H, W]."""
        flat = images.flatten(1)
        return torch.cat([flat, point[:, self.image_values :]], dim=1) if self.joint_labels else flat
