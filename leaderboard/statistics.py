"""Intervals by the two-way bootstrap over images and seeds, and what is concluded from them.

Scores of one experiment share two sources of chance: which images were attacked, and which seed trained the model.
Resampling only one of them makes intervals too narrow. Here both are drawn with replacement, and a score counts as
often as its image was drawn times as often as its seed was drawn (Owen 2007, "The pigeonhole bootstrap", Annals of
Applied Statistics 1(2)). Two sets of scores are compared under the same draws, so that what they share cancels out.

Simulated with 32 images under 3 seeds, image SD 4 dB and image-by-seed SD 2 dB: where a seed moves all its images by an SD
of up to 0.5 dB, a nominal 2.5% of false alarms is 0 to 3% (0.3% or less with a margin of 0.5 dB). By 1 dB it is 7% (2%
with the margin): three seeds cannot show how far seeds differ, so an effect of that size asks for more of them.
"""

from __future__ import annotations

import statistics as standard
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Resampled = Literal["images and seeds", "images only", "seeds only", "nothing"]

DRAWS = 2000
SEED = 20_240_229
LEVEL = 0.95
FEWEST_SEEDS = 3
"""Under three seeds their spread cannot be estimated: they are kept as they are and the interval is labelled so."""


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95% interval, in the unit of the scores.

    `low` and `high` are infinite where there was nothing to resample (`resampled` "nothing"). `deviation` is the
    standard deviation of the mean over the draws.
    """

    low: float
    high: float
    mean: float
    resampled: Resampled
    deviation: float
    images: int
    seeds: int

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Scores:
    """Scores of one kind: `values`, and the image and the seed of each; three sequences of one length."""

    values: npt.NDArray[np.float64]
    images: npt.NDArray[Any]
    seeds: npt.NDArray[Any]

    @classmethod
    def of(cls, values: Sequence[float] | Any, images: Sequence[Any] | Any, seeds: Sequence[Any] | Any) -> Scores:
        """Gather scores; a value that is not a number is left out (LPIPS may be empty).

        Raises:
            ValueError: the three differ in length.
        """
        numbers = np.asarray(values, dtype=np.float64)
        names, origins = np.asarray(images), np.asarray(seeds)
        if not len(numbers) == len(names) == len(origins):
            raise ValueError(f"{len(numbers)} scores with {len(names)} images and {len(origins)} seeds")
        kept = ~np.isnan(numbers)
        return cls(numbers[kept], names[kept], origins[kept])


def bootstrap_mean(scores: Scores) -> Interval:
    """The mean of the scores with its interval.

    Raises:
        ValueError: no score at all.
    """
    images, seeds = np.unique(scores.images), np.unique(scores.seeds)
    grid = _grid(scores, images, seeds)
    return _interval(_resample(grid, np.ones(len(images))), float(scores.values.mean()), len(images), len(seeds))


def paired_difference(first: Scores, second: Scores) -> Interval:
    """The mean of `first` less the mean of `second` with its interval, both under the same draws of images and seeds.

    Images and seeds that only one of the two has are drawn as well, so unpaired scores widen the interval.

    Raises:
        ValueError: one of the two is empty.
    """
    images = np.union1d(first.images, second.images)
    seeds = np.union1d(first.seeds, second.seeds)
    once = np.ones(len(images))
    draws = _resample(_grid(first, images, seeds), once) - _resample(_grid(second, images, seeds), once)
    return _interval(draws, float(first.values.mean() - second.values.mean()), len(images), len(seeds))


def accuracy_difference(first: Sequence[npt.NDArray[np.bool_]], second: Sequence[npt.NDArray[np.bool_]]) -> Interval:
    """Accuracy of `first` less that of `second`, paired by seed and test image.

    Args:
        first, second: for each seed, in the same order, whether each test image is classified correctly. Where all test
            splits have one length they are taken for the same images; otherwise only seeds are resampled.

    Raises:
        ValueError: no seed, or a different number of seeds.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"accuracies over {len(first)} and {len(second)} seeds cannot be paired")
    if len({len(bits) for bits in (*first, *second)}) == 1:
        differences = np.stack([a.astype(float) - b for a, b in zip(first, second, strict=True)], axis=1)
    else:
        differences = np.array([[a.mean() - b.mean() for a, b in zip(first, second, strict=True)]])
    # Test images with equal rows are drawn together: the same distribution, and thousands of them become a handful.
    rows, sizes = np.unique(differences, axis=0, return_counts=True)
    draws = _resample((rows, np.ones_like(rows)), sizes)
    return _interval(draws, float(differences.mean()), *differences.shape)


def clears_floor(gain: Interval) -> bool:
    """Whether the gain over the floor is above zero by more than chance."""
    return gain.low > 0


def minimum_detectable_effect(difference: Interval, margin: float, power: float = 0.8) -> float:
    """The true change that a test "the whole 95% interval lies beyond the margin" finds with the given power.

    Normal approximation: margin + (z of the level + z of the power) * standard deviation of the difference.
    """
    normal = standard.NormalDist()
    return margin + (normal.inv_cdf(0.5 + LEVEL / 2) + normal.inv_cdf(power)) * difference.deviation


_Grid = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _grid(scores: Scores, images: npt.NDArray[Any], seeds: npt.NDArray[Any]) -> _Grid:
    """Sums and counts of the scores, each of shape (images, seeds)."""
    if not len(scores.values):
        raise ValueError("no score to take a mean of")
    place = (np.searchsorted(images, scores.images), np.searchsorted(seeds, scores.seeds))
    sums, counts = np.zeros((len(images), len(seeds))), np.zeros((len(images), len(seeds)))
    np.add.at(sums, place, scores.values)
    np.add.at(counts, place, 1.0)
    return sums, counts


def _resample(grid: _Grid, sizes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Means of a grid under the same draws for every grid of one shape; `sizes` says how many images a row stands for.

    Returns shape (DRAWS,), not-a-number where a draw holds no score at all.
    """
    sums, counts = grid
    of_images, of_seeds = _weights(tuple(sizes.astype(int).tolist()), sums.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((of_images @ sums) * of_seeds).sum(axis=1) / ((of_images @ counts) * of_seeds).sum(axis=1)


@lru_cache(maxsize=8)
def _weights(sizes: tuple[int, ...], seeds: int) -> _Grid:
    """How often rows and seeds are drawn, shapes (DRAWS, rows) and (DRAWS, seeds); kept, for most grids are alike."""
    generator = np.random.default_rng(SEED)
    images = sum(sizes)
    of_images = generator.multinomial(images, np.array(sizes) / images, size=DRAWS).astype(float)
    of_seeds = np.ones((DRAWS, seeds))
    if seeds >= FEWEST_SEEDS:
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS).astype(float)
    return of_images, of_seeds


def _interval(draws: npt.NDArray[np.float64], mean: float, images: int, seeds: int) -> Interval:
    resampled = _resampled(images, seeds)
    usable = draws[np.isfinite(draws)]
    if resampled == "nothing" or not len(usable):
        return Interval(-np.inf, np.inf, mean, "nothing", np.inf, images, seeds)
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), mean, resampled, float(usable.std()), images, seeds)


def _resampled(images: int, seeds: int) -> Resampled:
    if seeds >= FEWEST_SEEDS:
        return "images and seeds" if images > 1 else "seeds only"
    return "images only" if images > 1 else "nothing"
