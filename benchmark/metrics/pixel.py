"""Differences pixel by pixel between stored images: MSE, PSNR and SSIM.

Every metric acts on the 8-bit image that is stored beside a result, so that anyone can recompute it. `to_eight_bit`
makes that image once; from there on images are uint8 tensors [N, C, H, W].
"""

from __future__ import annotations

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from federation.errors import DataError

FULL_SCALE = 255
PSNR_CAP = 60.0
"""Decibels given to (nearly) identical images, so that one exact hit does not make an average infinite."""

SSIM_WINDOW = 11
"""Pixels across the Gaussian window: a radius of 3.5 sigma at sigma 1.5, as in Wang et al. 2004."""


def to_eight_bit(images: Tensor) -> Tensor:
    """Round images in [0, 1] to the 8-bit images that are stored and scored.

    Args:
        images: floating point [N, C, H, W]; values outside [0, 1] are clamped, the infinities too.

    Returns:
        uint8 [N, C, H, W].

    Raises:
        DataError: for another type or shape, or where a pixel is NaN.
    """
    if not images.is_floating_point() or images.ndim != 4:
        raise DataError(f"images must be floating point [N, C, H, W]; these are {images.dtype} {list(images.shape)}")
    nan_per_image = images.isnan().flatten(1).sum(1)
    if nan_per_image.any():
        first = int(nan_per_image.nonzero()[0])
        raise DataError(f"image {first} has {int(nan_per_image[first])} NaN pixels; a guess must be a number in [0, 1]")
    return images.detach().double().clamp(0, 1).mul(FULL_SCALE).round().to(torch.uint8).cpu()


def require_eight_bit(images: Tensor, name: str) -> None:
    """Raise DataError unless `images` is uint8 [N, C, H, W] without an empty axis, save N."""
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(f"{name} must be uint8 [N, C, H, W]; it is {images.dtype} {list(images.shape)}")


def require_pairs(first: Tensor, second: Tensor) -> None:
    """Raise DataError unless both are 8-bit images of one and the same shape."""
    require_eight_bit(first, "the first set of images")
    require_eight_bit(second, "the second set of images")
    if first.shape != second.shape:
        raise DataError(
            f"images can be compared at equal shapes only: {list(first.shape)} against {list(second.shape)}"
        )


def mse(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared error of each pair on the [0, 1] scale, float64 [N] (0 is identical, 1 is black against white)."""
    require_pairs(first, second)
    differences = first.to(torch.float64) - second.to(torch.float64)
    return differences.square().flatten(1).mean(1) / FULL_SCALE**2


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in decibels, data range 1, capped at `PSNR_CAP`; float64 [N]."""
    return (-10 * mse(first, second).log10()).clamp(max=PSNR_CAP)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair, float64 [N] in [-1, 1] (1 is identical); channels are averaged.

    Settings of Wang, Bovik, Sheikh and Simoncelli 2004 (Gaussian weights with sigma 1.5, population covariance,
    K1 0.01, K2 0.03), data range 255. The average leaves out a border of half a window, where the window would reach
    outside.

    Raises:
        DataError: where the images are smaller than the window (11 pixels), or as `mse`.
    """
    require_pairs(first, second)
    height, width = first.shape[2:]
    if min(height, width) < SSIM_WINDOW:
        raise DataError(f"SSIM needs at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels; these images have {height}x{width}")
    values = [
        structural_similarity(
            a, b, channel_axis=0, data_range=FULL_SCALE, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(first.numpy(), second.numpy(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def pairwise_squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distance of every image to every other in 8-bit steps, float64 [N, M].

    One matrix product. All sums are integers below 2^53, so the result is exact and equal distances compare equal.

    Raises:
        DataError: unless both are 8-bit images that agree in channels, height and width.
    """
    require_eight_bit(first, "the first set of images")
    require_eight_bit(second, "the second set of images")
    if first.shape[1:] != second.shape[1:]:
        raise DataError(
            f"images can be compared at equal sizes only: {list(first.shape[1:])} against {list(second.shape[1:])}"
        )
    rows, columns = first.flatten(1).to(torch.float64), second.flatten(1).to(torch.float64)
    return rows.square().sum(1)[:, None] - 2 * rows @ columns.T + columns.square().sum(1)[None, :]
