"""Private images: the secret crop and jitter that they get, and the secret choice of victims.

Both derive from the run's secret root, not from its seed, so that neither looking an image up in a public data set nor
replaying the run's public randomness tells an attacker what the victims are.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from federation.datasets import LabelledImages
from federation.secret_root import SecretRoot

LARGEST_CROP = 0.1
"""Share of height and width that a crop may lose at most."""

BRIGHTNESS = 0.15
"""Brightness is scaled by a factor in 1 -+ this."""


def secretly_jittered(images: LabelledImages, root: SecretRoot) -> LabelledImages:
    """Each image cropped, resized back and scaled in brightness by secret amounts; 8-bit in, 8-bit out.

    Args:
        images: one split.
        root: the secret root of this split.
    """
    count = len(images)
    draws = np.frombuffer(root.stream(8 * 4 * count), dtype=">u8").astype(np.float64).reshape(4, count) / 2**64
    keep, across, down, light = torch.from_numpy(draws).float()
    scale = 1 - LARGEST_CROP * keep
    # affine_grid maps output coordinates in [-1, 1] to input coordinates: zoom, then a shift that stays inside
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2] = (1 - scale) * (2 * across - 1)
    theta[:, 1, 2] = (1 - scale) * (2 * down - 1)
    pixels = images.pixels()
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    cropped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    factor = (1 + BRIGHTNESS * (2 * light - 1)).view(-1, 1, 1, 1)
    return LabelledImages((cropped * factor).clamp(0, 1).mul(255).round().to(torch.uint8), images.labels)


def chosen_in_secret(candidates: Tensor, count: int, root: SecretRoot) -> Tensor:
    """`count` of the candidates (int64 [n]) without repetition, in an order and choice that only the root decides."""
    return candidates[_secret_order(len(candidates), root)[:count]]


def _secret_order(count: int, root: SecretRoot) -> Tensor:
    return torch.from_numpy(np.argsort(np.frombuffer(root.stream(8 * count), dtype=">u8"), kind="stable"))
