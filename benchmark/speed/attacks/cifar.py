"""Cosine's quality on CIFAR-10 with an untrained LeNet-Zhu, one raw image an update: Geiping et al. 2020, Table 1.

Beside the published figure stands the published loop, run here on some of the same images from the same starting points.
The weight of the total variation, which decides several dB, was tuned on images that are not measured.
"""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor, nn

from attacks.base import Budget
from attacks.cosine import Cosine
from benchmark.metrics import pixel
from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.attacks.published import published_cosine
from benchmark.speed.attacks.single_images import SingleImages, generator_of, single_images
from benchmark.speed.measure import Stage, quiet
from federation.datasets import load_dataset
from federation.errors import DataError
from federation.models import build_model
from federation.models.base import ImageShape

SEED = 11
ITERATIONS = PAPER_ITERATIONS = 4800
"""Of ours, and of the paper's: half as many cost a decibel."""

PUBLISHED_MEAN, PUBLISHED_DEVIATION = 18.00, 3.33
"""Decibels over images of CIFAR-10's validation set (Geiping 2020, Table 1: LeNet (Zhu), untrained)."""

TUNED = Cosine(total_variation=0.01, rate=0.1, decay=0.1)
TUNED_ON = "tuned on the first 16 images of CIFAR-10's auxiliary split"

CIFAR, EMBEDDED = "cifar10", "photos32"
REQUIRED, AIM = 18.0, 19.0

PAPER_VARIATION = 0.01
"""The paper's weight for this network."""


def measure(
    progress: Stage = quiet,
    *,
    images: int = 100,
    peer_images: int = 10,
    iterations: int = ITERATIONS,
    peer_iterations: int = PAPER_ITERATIONS,
) -> CaseResult:
    """Reconstruct images by the batched attack, and the first few of them by the published loop as well.

    Args:
        progress: told of each call of ours, and of each image of the peer.
        images: how many; where CIFAR-10 is not to be had, of photos32, and nothing is compared with the paper then.
        peer_images: how many of them the published loop reconstructs too, at 10 to 20 seconds each; 2 or more.
        iterations, peer_iterations: of each image, ours and the published loop's.
    """
    dataset, provenance = _dataset()
    work = single_images(dataset, _untrained, images)
    peers = min(peer_images, len(work.pixels))
    stage = f"cosine on {dataset}"
    progress(stage, 0, 1 + peers)
    found = TUNED.reconstruct(work.history, work.victims, generator=generator_of(SEED), budget=Budget(iterations))
    progress(stage, 1, 1 + peers)
    ours = _psnr(work, torch.cat([item.images for item in found]))
    theirs = torch.empty(peers, dtype=torch.float64)
    starts = generator_of(SEED)  # one image after another, as ours are drawn
    for place in range(peers):
        theirs[place] = _psnr(work, _published(work, place, peer_iterations, starts), place)
        progress(stage, 2 + place, 1 + peers)
    return CaseResult(
        "cosine on CIFAR-10",
        (
            _quality(ours, dataset),
            *_against_published(ours[:peers], theirs),
            _labels(work, [item.labels for item in found]),
        ),
        (
            provenance,
            f"LeNet-Zhu, untrained, weights from U(-0.5, 0.5); one raw image an update, the first {len(ours)} of the "
            f"victims' split; labels read from the update (iDLG); one start each",
            f"ours: {iterations} iterations, rate {TUNED.rate}, decay {TUNED.decay}, "
            f"total variation {TUNED.total_variation}, {TUNED_ON}",
            f"the published loop: {peer_iterations} iterations, rate 0.1, decay 0.1, "
            f"total variation {PAPER_VARIATION}, from the same starting points",
        ),
    )


def _dataset() -> tuple[str, str]:
    """CIFAR-10 where its files are, else photos32; and where the images come from."""
    try:
        return CIFAR, load_dataset(CIFAR).provenance
    except DataError:
        embedded = load_dataset(EMBEDDED).provenance
        return EMBEDDED, f"no CIFAR-10 in KEYHOLE_DATA_DIR: {embedded} Not comparable with the paper."


def _untrained(image_shape: ImageShape, class_count: int) -> nn.Module:
    return build_model("lenet-zhu", image_shape, class_count, seed=0)


def _published(work: SingleImages, place: int, iterations: int, starts: torch.Generator) -> Tensor:
    """The published loop on the image at a place, with its true label: [1, C, H, W]."""
    return published_cosine(
        work.model,
        work.updates[place],
        work.labels[place],
        normalisation=work.normalisation,
        iterations=iterations,
        total_variation=PAPER_VARIATION,
        start=torch.randn(1, *work.pixels.shape[1:], generator=starts),
    )


def _psnr(work: SingleImages, images: Tensor, first: int = 0) -> Tensor:
    """PSNR of reconstructions as they would be stored, [n] in dB, of the victims from `first` on."""
    truth = pixel.to_eight_bit(work.pixels[first : first + len(images)])
    return pixel.psnr(truth, pixel.to_eight_bit(images)).double()


def _quality(ours: Tensor, dataset: str) -> Figure:
    detail = f"standard deviation {float(ours.std()):.2f} dB over {len(ours)} images of {dataset}"
    if dataset != CIFAR:
        return Figure("cosine, mean PSNR", float(ours.mean()), "dB", detail=detail)
    published = f"published {PUBLISHED_MEAN:.2f} +- {PUBLISHED_DEVIATION:.2f} dB on the original images"
    return Figure("cosine, mean PSNR", float(ours.mean()), "dB", REQUIRED, AIM, detail=f"{detail}; {published}")


def _against_published(ours: Tensor, theirs: Tensor) -> tuple[Figure, Figure]:
    """Mean difference on the same images, and the upper end of its t interval: below 0, ours would be worse."""
    low, high = stats.ttest_rel(ours.numpy(), theirs.numpy()).confidence_interval(0.95)
    detail = f"over {len(ours)} images: {float(ours.mean()):.2f} dB against {float(theirs.mean()):.2f} dB"
    difference = float((ours - theirs).mean())
    interval = f"95% interval [{low:+.2f}, {high:+.2f}] dB {detail}"
    return (
        Figure("cosine over the published loop, same images", difference, "dB", detail=interval),
        Figure("the same, upper end of the interval (under 0: worse)", float(high), "dB", required=0.0),
    )


def _labels(work: SingleImages, labels: list[Tensor | None]) -> Figure:
    right = [one is not None and int(one[0]) == int(truth) for one, truth in zip(labels, work.labels, strict=True)]
    return Figure("labels read from the update", 100 * sum(right) / len(right), "%", required=100.0)
