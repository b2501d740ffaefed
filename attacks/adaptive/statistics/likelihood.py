"""Places refined by prediction: a pixel belongs where what its neighbours foretell, leak by leak, is most like it.

Under a Gaussian with the public images' mean and covariance, whose inverse is L, pixel k given all others has the mean
x_k - (L (x - mean))_k / L_kk and the variance 1 / L_kk. With the leaks placed as they are, every pixel is compared with
every such prediction in all leaks, and assigned anew (a pseudo-likelihood, Besag 1975). That sees images one by one where
correlations see their average, and it depends on neighbours alone, so that a shift or a crop of all images matters little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from attacks.adaptive.statistics.public import Floats, Integers, PublicImages

RIDGES = (5.0, 2.0, 1.0, 0.3, 0.1, 0.03)
"""Variance added to every pixel, in units of the pixels' mean variance: many are misplaced at first."""

_STEPS = 6
_SETTLED = 0.002


@dataclass(frozen=True, eq=False)
class Placement:
    """Keyed pixels in places.

    Attributes:
        places: [P], the pixel that each keyed one is.
        gains: [P], its gain.
    """

    places: Integers
    gains: Floats

    def placed(self, leaks: Floats) -> Floats:
        """Keyed images [N, P] as images, normalised."""
        images = np.empty_like(leaks)
        images[:, self.places] = leaks / self.gains
        return images


@dataclass(frozen=True, eq=False)
class Model:
    """The Gaussian, at one ridge.

    Attributes:
        mean: [P].
        precision: [P, P], L.
    """

    mean: Floats
    precision: Floats

    @classmethod
    def of(cls, public: PublicImages, ridges: Sequence[float] = RIDGES) -> list[Model]:
        """One a ridge."""
        mean, covariance = public.pixels.mean(0), np.cov(public.pixels, rowvar=False)
        unit = np.trace(covariance) / len(mean)
        return [cls(mean, np.linalg.inv(covariance + ridge * unit * np.eye(len(mean)))) for ridge in ridges]

    def predicted(self, images: Floats) -> Floats:
        """[N, P], each pixel from all others of its image."""
        away = images - self.mean
        return np.asarray(images - away @ self.precision / np.diag(self.precision))


@dataclass(frozen=True, eq=False)
class Refinement:
    """What does not change while places are refined.

    Attributes:
        leaks: [N, P], keyed images.
        models: one a ridge, from the largest.
        lower, upper: [P], bounds of the gains.
        sizes: [P], root mean squares of the public pixels: a gain that its bounds leave open is the ratio of sizes.
    """

    leaks: Floats
    models: Sequence[Model]
    lower: Floats
    upper: Floats
    sizes: Floats

    def gains(self, places: Integers) -> Floats:
        """[P], of the keyed pixels if they are in these places."""
        return np.asarray(np.clip(self._sizes_of_leaks / self.sizes[places], self.lower, self.upper))

    def refine(self, places: Integers) -> Placement:
        """The placement that leads on from one."""
        placement = Placement(places, self.gains(places))
        for model in self.models:
            for _ in range(_STEPS):
                refined = self._step(placement, model)
                moved = float(np.mean(refined.places != placement.places))
                placement = refined
                if moved < _SETTLED:
                    break
        return placement

    def predictability(self, placement: Placement) -> float:
        """Share of the placed pixels' variance that their neighbours foretell; negative where they foretell nothing."""
        images = placement.placed(self.leaks)
        left = np.square(images - self.models[-1].predicted(images)).sum()
        total = np.square(images - images.mean(0)).sum()
        return float(1 - left / total) if total > 0 else 0.0

    @property
    def _sizes_of_leaks(self) -> Floats:
        return np.asarray(np.sqrt(np.square(self.leaks).mean(0)) + 1e-12)

    def _step(self, placement: Placement, model: Model) -> Placement:
        predicted = model.predicted(placement.placed(self.leaks))
        ratios = self._sizes_of_leaks[:, None] / self.sizes
        factors = 1 / np.clip(ratios, self.lower[:, None], self.upper[:, None])
        costs = factors**2 * np.square(self.leaks).sum(0)[:, None] + np.square(predicted).sum(0)
        costs -= 2 * factors * (self.leaks.T @ predicted)
        places = linear_sum_assignment(costs * np.diag(model.precision))[1]
        return replace(placement, places=places, gains=self.gains(places))
