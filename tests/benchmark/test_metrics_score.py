"""Scores of a batch: each column agrees with its metric, matching is applied, and nothing can be gained by omission."""

from __future__ import annotations

import pytest
import torch

from benchmark.metrics import pixel
from benchmark.metrics.identification import Gallery, draw_gallery
from benchmark.metrics.perceptual import Perceptual, Unavailable, load_st_lpips
from benchmark.metrics.score import score_batch
from federation.errors import DataError, UsageError

NONE = Unavailable("left out in this test")


def random_images(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)


def noisy(images: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return pixel.to_eight_bit(images / 255 + 0.1 * noise)


@pytest.fixture(scope="module")
def shift_tolerant() -> Perceptual:
    return load_st_lpips()


def test_every_column_agrees_with_its_metric_after_matching(shift_tolerant: Perceptual) -> None:
    truth = random_images(0, 5)
    order = torch.tensor([3, 0, 4, 2, 1])
    guess = noisy(truth, 1)[order]
    split = torch.cat([truth, random_images(2, 60)])
    gallery = Gallery(split[draw_gallery(65, torch.arange(5), torch.Generator().manual_seed(3), 50)], torch.arange(5))
    scores = score_batch(truth, guess, lpips=NONE, st_lpips=shift_tolerant, gallery=gallery)
    aligned = noisy(truth, 1)
    assert [score.truth_index for score in scores] == [0, 1, 2, 3, 4]
    assert [order[score.guess_index].item() for score in scores] == [0, 1, 2, 3, 4]
    assert [score.mse for score in scores] == pixel.mse(truth, aligned).tolist()
    assert [score.psnr for score in scores] == pixel.psnr(truth, aligned).tolist()
    assert [score.ssim for score in scores] == pixel.ssim(truth, aligned).tolist()
    assert [score.lpips for score in scores] == [None] * 5
    assert [score.st_lpips for score in scores] == shift_tolerant.distances(truth, aligned)
    assert [score.identified for score in scores] == [True] * 5


def test_without_a_gallery_identification_is_empty() -> None:
    truth = random_images(0, 2)
    assert [s.identified for s in score_batch(truth, truth, lpips=NONE, st_lpips=NONE)] == [None, None]


def test_a_truth_left_out_is_scored_against_grey_and_never_identified() -> None:
    truth = random_images(0, 3)
    truth[1] = 128  # even where grey is exactly right
    gallery = Gallery(torch.cat([truth, random_images(4, 20)]), torch.arange(3))
    scores = score_batch(truth, truth[[2, 0]], lpips=NONE, st_lpips=NONE, gallery=gallery)
    assert [score.guess_index for score in scores] == [1, None, 0]
    assert [score.identified for score in scores] == [True, False, True]
    nothing = score_batch(truth, truth[:0], lpips=NONE, st_lpips=NONE, gallery=gallery)
    grey = torch.full_like(truth, 128)
    assert [score.mse for score in nothing] == pixel.mse(truth, grey).tolist()
    assert [score.guess_index for score in nothing] == [None] * 3
    assert [score.identified for score in nothing] == [False] * 3


def test_more_reconstructions_than_images_are_refused() -> None:
    """Matching would otherwise pick the best of many guesses with the truth in hand."""
    truth = random_images(0, 2)
    with pytest.raises(UsageError, match="3 reconstructions were returned for 2 images"):
        score_batch(truth, random_images(1, 3), lpips=NONE, st_lpips=NONE)


def test_images_that_cannot_be_compared_are_refused() -> None:
    truth = random_images(0, 2)
    with pytest.raises(DataError, match="equal sizes"):
        score_batch(truth, truth[..., :15], lpips=NONE, st_lpips=NONE)
    with pytest.raises(DataError, match="must be uint8"):
        score_batch(truth, truth.float() / 255, lpips=NONE, st_lpips=NONE)


def test_an_empty_batch_has_no_scores() -> None:
    assert score_batch(random_images(0, 0), random_images(0, 0), lpips=NONE, st_lpips=NONE) == []
