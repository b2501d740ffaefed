"""The referee of a bundle: scores what an attack returned, and where its search stood on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import Reconstruction, TracePoint
from benchmark.bundles.bundle import Bundle, BundleTruth, VictimTruth
from benchmark.metrics import pixel
from benchmark.metrics.floors import floors
from benchmark.metrics.identification import Gallery, draw_gallery
from benchmark.metrics.matching import match
from benchmark.metrics.perceptual import Unavailable
from benchmark.metrics.score import score_batch
from federation.seeds import torch_generator

_LEFT_OUT = Unavailable("left out: learnt metrics take longer than the attack")


@dataclass(frozen=True)
class ScoredImage:
    """One true image and what was made of it.

    Attributes:
        victim: whose it is.
        image: which of the victim's images.
        psnr: decibels.
        floor: the highest PSNR of a guess without any attack.
        identified: whether the reconstruction is nearest to its own truth in the gallery.
        truth, guess: uint8 [C, H, W]; `guess` is None where the attack left the image out.
    """

    victim: str
    image: int
    psnr: float
    floor: float
    identified: bool
    truth: Tensor
    guess: Tensor | None

    @property
    def gain(self) -> float:
        """Decibels over the floor."""
        return self.psnr - self.floor


@dataclass(frozen=True)
class TracedVictim:
    """The search for one victim: evaluations, the attack's own objective, and the mean PSNR of the images, point by point."""

    victim: str
    evaluations: tuple[int, ...]
    objective: tuple[float, ...]
    psnr: tuple[float, ...]


def score(bundle: Bundle, truth: BundleTruth, found: Sequence[Reconstruction]) -> list[ScoredImage]:
    """Every true image beside what it was matched with, one to one, victim by victim.

    Raises:
        DataError: for images of another size, or that are not in [0, 1].
        UsageError: for more images than a victim has.
    """
    rows = []
    for victim, true, item in zip(bundle.victims, truth.victims, found, strict=True):
        drawn = draw_gallery(len(truth.private), true.rows, torch_generator("gallery", bundle.task, victim.identifier))
        gallery = Gallery(truth.private.images[drawn], torch.arange(len(true.rows)))
        guess = pixel.to_eight_bit(item.images)
        scores = score_batch(true.images, guess, lpips=_LEFT_OUT, st_lpips=_LEFT_OUT, gallery=gallery)
        highest = _floor(bundle.task, victim.identifier, truth, true, item.labels)
        for index, one in enumerate(scores):
            rows.append(
                ScoredImage(
                    victim=victim.identifier,
                    image=index,
                    psnr=one.psnr,
                    floor=float(highest[index]),
                    identified=bool(one.identified),
                    truth=true.images[index],
                    guess=None if one.guess_index is None else guess[one.guess_index],
                )
            )
    return rows


def score_traces(bundle: Bundle, truth: BundleTruth, found: Sequence[Reconstruction]) -> list[TracedVictim]:
    """The traces of those victims that have one, scored.

    One that ends elsewhere than at what was returned is left out: its images stand in another frame, such as another
    pose, and their PSNR would mean nothing.
    """
    return [
        TracedVictim(
            victim.identifier,
            tuple(point.evaluations for point in item.trace),
            tuple(point.objective for point in item.trace),
            tuple(_quality(true, point) for point in item.trace),
        )
        for victim, true, item in zip(bundle.victims, truth.victims, found, strict=True)
        if item.trace and torch.equal(item.trace[-1].images, item.images)
    ]


def matched_psnr(truth: Tensor, guess: Tensor) -> Tensor:
    """PSNR of each true image against its match, one to one; uint8 [n, C, H, W] both, float64 [n]."""
    order = torch.tensor([guess_index for _, guess_index in match(truth, guess)])
    return pixel.psnr(truth, guess[order])


def _quality(true: VictimTruth, point: TracePoint) -> float:
    return float(matched_psnr(true.images, pixel.to_eight_bit(point.images)).mean())


def _floor(task: str, victim: str, truth: BundleTruth, true: VictimTruth, labels: Tensor | None) -> Tensor:
    """The highest PSNR of any guess for each image, float64 [m]; the class mean only where labels were recovered."""
    public, generator = truth.public, torch_generator("floor", task, victim)
    guesses = floors(public.images, public.labels, len(true.labels), labels, generator)
    return torch.stack([matched_psnr(true.images, images) for images in guesses.values()]).amax(0)
