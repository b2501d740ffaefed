"""`match_pixels`: the key of an image's pixels from many keyed images and public ones.

    match_pixels(leaks, labels, auxiliary, *, normalisation, gain_range=1.0, classes_in_order=False, generator)
        -> PixelMatch(places, gains, predictability, class_order)

`leaks` is a tensor [N, P] of keyed, normalised, flattened images: gains[j] * x[places[j]] in column j. `labels` [N] are
class numbers (in any order unless `classes_in_order`) or None. `PixelMatch.images(leaks, normalisation, shape)` puts
keyed images in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.adaptive.statistics.black import gain_bounds
from attacks.adaptive.statistics.classes import find_class_order, order_by_means
from attacks.adaptive.statistics.columns import ColumnStatistics, squared_distances
from attacks.adaptive.statistics.likelihood import Model, Placement, Refinement
from attacks.adaptive.statistics.public import Floats, Integers, PublicImages
from federation.errors import UsageError
from federation.normalisation import Normalisation
from federation.threat import Auxiliary

_CORRELATION_STEPS = 8
_STARTS = 3
_WEIGHT_OF_STATISTICS = 0.3
"""Of a pixel's own statistics beside its correlations, both in units of their medians."""


@dataclass(frozen=True, eq=False)
class PixelMatch:
    """What was found of a pixel key.

    Attributes:
        places: int64 [P], which entry of the flattened image stands at each place of the keyed one.
        gains: float64 [P], the factor there.
        predictability: share of the placed pixels' variance that their neighbours foretell, up to 1; that of pixels
            that nothing relates to each other is negative, since their neighbours mislead.
        class_order: int64 [K], which class each of the leaks' class numbers is; None where there were no labels.
    """

    places: Tensor
    gains: Tensor
    predictability: float
    class_order: Tensor | None

    def images(self, leaks: Tensor, normalisation: Normalisation, shape: tuple[int, ...]) -> Tensor:
        """Keyed images [N, P] as pixels in [0, 1], [N, C, H, W]."""
        placed = torch.empty_like(leaks)
        placed[:, self.places] = leaks / self.gains.to(leaks.dtype)
        return normalisation.invert(placed.view(len(leaks), *shape))


def match_pixels(
    leaks: Tensor,
    labels: Tensor | None,
    auxiliary: Auxiliary,
    *,
    normalisation: Normalisation,
    gain_range: float = 1.0,
    classes_in_order: bool = False,
    generator: torch.Generator,
) -> PixelMatch:
    """Find permutation and gains of a key from keyed images.

    Pixels are first told by how often they are lit, their means and deviations, over all images and by class, then by
    their correlations with those placed before, and last by what their neighbours foretell, image by image.

    Args:
        leaks: [N, P], keyed images: gains[j] * x[places[j]] in column j, for normalised images x.
        labels: int64 [N], numbers of their classes, or None.
        auxiliary: public images of P pixels.
        normalisation: of the private images.
        gain_range: s; gains are known to lie on [1/s, s].
        classes_in_order: whether label k is the public class k; else classes are told by their pixels too.
        generator: of varied public images and of starts.

    Raises:
        UsageError: where sizes do not fit.
    """
    size = auxiliary.pixels[0].numel()
    if (
        leaks.dim() != 2
        or leaks.shape[1] != size
        or len(leaks) < 2
        or (labels is not None and len(labels) != len(leaks))
    ):
        raise UsageError(
            f"leaks are {tuple(leaks.shape)}; two or more of {size} pixels are due, with a label each or none"
        )
    public = PublicImages.of(auxiliary, normalisation, generator)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    keyed = leaks.double().numpy()
    lower, upper = gain_bounds(keyed, public, gain_range)
    numbers = None if labels is None else labels.numpy()
    found = match_columns(keyed, numbers, public, lower, upper, classes_in_order=classes_in_order, seed=seed)
    return PixelMatch(
        torch.from_numpy(found.places.astype(np.int64)),
        torch.from_numpy(found.gains),
        found.predictability,
        None if found.class_order is None else torch.from_numpy(found.class_order.astype(np.int64)),
    )


@dataclass(frozen=True, eq=False)
class PlacedColumns(Placement):
    """A placement with what it was found by; fields as in `PixelMatch`."""

    predictability: float
    class_order: Integers | None


def match_columns(
    keyed: Floats,
    labels: Integers | None,
    public: PublicImages,
    lower: Floats,
    upper: Floats,
    *,
    classes_in_order: bool = False,
    seed: int,
) -> PlacedColumns:
    """`match_pixels` on any values that public ones are like, such as features.

    Args:
        keyed: [N, P].
        labels: [N], or None.
        public: the public values.
        lower, upper: [P], bounds of each keyed column's gain.
        classes_in_order: as there.
        seed: of starts.
    """
    open_gains = bool(np.any(lower < upper))
    sizes = np.sqrt(np.square(public.pixels).mean(0)) + 1e-12
    refinement = Refinement(keyed, Model.of(public), lower, upper, sizes)
    matcher = _Matcher(keyed if open_gains else keyed / lower, public, scaled=open_gains)
    order = None
    if labels is not None:
        order = np.arange(matcher.classes) if classes_in_order else matcher.class_order(labels, seed)
    placement = _better(refinement, matcher.starts(labels, order))
    if labels is not None and not classes_in_order:
        again = order_by_means(placement.placed(keyed), labels, public.pixels, public.labels)
        if order is None or not np.array_equal(again, order):
            other = _better(refinement, matcher.starts(labels, again))
            if refinement.predictability(other) > refinement.predictability(placement):
                placement, order = other, again
    return PlacedColumns(placement.places, placement.gains, refinement.predictability(placement), order)


def _better(refinement: Refinement, starts: list[Integers]) -> Placement:
    """The refined start whose pixels foretell each other best."""
    return max((refinement.refine(start) for start in starts), key=refinement.predictability)


@dataclass(frozen=True, eq=False)
class _Matcher:
    """First placements, by statistics and by correlations.

    Attributes:
        leaks: [N, P], without gains where they are known.
        public: the public images.
        scaled: whether gains are unknown.
    """

    leaks: Floats
    public: PublicImages
    scaled: bool

    @property
    def classes(self) -> int:
        """How many classes the public images have."""
        return int(self.public.labels.max()) + 1

    def class_order(self, labels: Integers, seed: int) -> Integers:
        """[K], which public class each class of the leaks is, as far as their pixels' statistics tell."""
        return find_class_order(*self._statistics(labels), _STARTS, seed)

    def starts(self, labels: Integers | None, order: Integers | None) -> list[Integers]:
        """[P] each: by statistics alone, and by correlations from there on."""
        ours, theirs = self._statistics(np.zeros(len(self.leaks), np.int64) if labels is None else labels)
        statistics = ours.distances(theirs, order)
        first = linear_sum_assignment(statistics)[1]
        return [first, self._by_correlation(statistics, first)]

    def _statistics(self, labels: Integers) -> tuple[ColumnStatistics, ColumnStatistics]:
        ours = ColumnStatistics.of(self.leaks, labels, self.classes, scaled=self.scaled)
        theirs = ColumnStatistics.of(self.public.pixels, self.public.labels, self.classes, scaled=self.scaled)
        return ours, theirs

    def _by_correlation(self, statistics: Floats, places: Integers) -> Integers:
        """Pixels assigned by their correlations with all others as these are placed, over and over."""
        ours, theirs = correlations(self.leaks), correlations(self.public.pixels)
        varying = np.diag(ours) > 0.5
        for _ in range(_CORRELATION_STEPS):
            costs = squared_distances(ours[:, varying], theirs[:, places[varying]])
            moved = linear_sum_assignment(
                costs / np.median(costs) + _WEIGHT_OF_STATISTICS * statistics / np.median(statistics)
            )[1]
            if np.array_equal(moved, places):
                break
            places = moved
        return places


def correlations(values: Floats) -> Floats:
    """[P, P], of the columns of [N, P]; 0 for columns that do not vary."""
    away = values - values.mean(0)
    deviation = away.std(0)
    scaled = np.where(deviation > 1e-6, away / np.maximum(deviation, 1e-6), 0.0)
    return np.asarray(scaled.T @ scaled / len(values))
