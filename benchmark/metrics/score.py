"""The scores of one batch of reconstructions, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.metrics import pixel
from benchmark.metrics.floors import grey_images
from benchmark.metrics.identification import Gallery, identified
from benchmark.metrics.matching import match
from benchmark.metrics.perceptual import PerceptualMetric
from federation.errors import UsageError


@dataclass(frozen=True)
class ImageScore:
    """How well one true image was reconstructed.

    Attributes:
        truth_index: the true image's row in its batch.
        guess_index: the row of the reconstruction that was matched to it; None where the attack left it out.
        mse: mean squared error on the [0, 1] scale.
        psnr: decibels, data range 1, at most 60.
        ssim: in [-1, 1].
        lpips: 0 or more, or None where the metric is unavailable.
        st_lpips: likewise.
        identified: whether the guess is nearest to its own truth in the gallery; None without a gallery.
    """

    truth_index: int
    guess_index: int | None
    mse: float
    psnr: float
    ssim: float
    lpips: float | None
    st_lpips: float | None
    identified: bool | None


def score_batch(
    truth: Tensor,
    guess: Tensor,
    *,
    lpips: PerceptualMetric,
    st_lpips: PerceptualMetric,
    gallery: Gallery | None = None,
) -> list[ImageScore]:
    """Match reconstructions to true images one to one and score each true image.

    A true image for which no reconstruction is left is scored against uniform grey and counts as not identified, so an
    attack cannot raise its average by leaving images out.

    Args:
        truth: uint8 [n, C, H, W].
        guess: uint8 [m, C, H, W], m at most n.
        gallery: the true images among others, its `truths` naming a row for each of the n; None skips identification.

    Returns:
        n scores, by rising truth_index.

    Raises:
        UsageError: where there are more reconstructions than true images: to choose among them would take the truth.
        DataError: where images are not 8-bit, differ in size or are too small for SSIM.
    """
    if len(guess) > len(truth):
        raise UsageError(
            f"{len(guess)} reconstructions were returned for {len(truth)} images; an attack picks its own best for each"
        )
    partners: list[int | None] = [None] * len(truth)
    for truth_index, guess_index in match(truth, guess):
        partners[truth_index] = guess_index
    aligned = grey_images(len(truth), truth.shape[1:])
    for truth_index, partner in enumerate(partners):
        if partner is not None:
            aligned[truth_index] = guess[partner]
    return score_aligned(truth, aligned, partners, lpips=lpips, st_lpips=st_lpips, gallery=gallery)


def score_aligned(
    truth: Tensor,
    guess: Tensor,
    partners: list[int | None],
    *,
    lpips: PerceptualMetric,
    st_lpips: PerceptualMetric,
    gallery: Gallery | None = None,
) -> list[ImageScore]:
    """Score each true image against the guess in the same row; arguments and errors as `score_batch`.

    Args:
        partners: which reconstruction each row of `guess` is, or None where the row stands in for a missing one.
    """
    hits: list[bool | None] = [None] * len(truth)
    if gallery is not None:
        present = torch.tensor([partner is not None for partner in partners], dtype=torch.bool)
        hits = (identified(guess, gallery.truths, gallery.images) & present).tolist()
    columns = zip(
        partners,
        pixel.mse(truth, guess).tolist(),
        pixel.psnr(truth, guess).tolist(),
        pixel.ssim(truth, guess).tolist(),
        lpips.distances(truth, guess),
        st_lpips.distances(truth, guess),
        hits,
        strict=True,
    )
    return [ImageScore(index, *row) for index, row in enumerate(columns)]
