"""What can be said of one pixel without knowing its place: how often it is lit, its mean and spread, by class too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.adaptive.statistics.public import Floats, Integers

_LIT = 2e-3
"""Distance from a pixel's lowest value, in units of its root mean square, from which it counts as lit."""

_DOUBTS = 2.0
"""Images of a class that outweigh the mean over all classes."""


@dataclass(frozen=True, eq=False)
class ColumnStatistics:
    """Statistics of the columns of a matrix [N, P].

    Attributes:
        shared: [P, F], over all rows.
        by_class: [K, P, G], over the rows of each class, drawn towards those over all rows where they are few.
    """

    shared: Floats
    by_class: Floats

    @classmethod
    def of(cls, values: Floats, labels: Integers, classes: int, *, scaled: bool) -> ColumnStatistics:
        """The statistics; `scaled`: columns have unknown factors, so that their sizes say nothing."""
        sizes = np.sqrt(np.square(values).mean(0)) + 1e-12
        lit = (values - values.min(0)) / sizes > _LIT
        seen = values / sizes if scaled else values
        shared = [lit.mean(0), seen.mean(0)] + ([] if scaled else [seen.std(0)])
        members = (labels[:, None] == np.arange(classes)).astype(np.float64)
        count = members.sum(0)[:, None]
        weight = count / (count + _DOUBTS)
        means = [
            weight * (members.T @ part) / np.maximum(count, 1) + (1 - weight) * part.mean(0)
            for part in (lit.astype(np.float64), seen)
        ]
        return cls(np.stack(shared, axis=1), np.stack(means, axis=2) * np.sqrt(0.5))

    def distances(self, public: ColumnStatistics, order: Integers | None) -> Floats:
        """[P, P], squared distances from a public pixel's statistics, in units of how these differ.

        Args:
            public: of the public images.
            order: [K], which public class each class here is; None to leave the classes out.
        """
        cost = squared_distances(self.shared, public.shared, public.shared.std(0))
        if order is not None:
            for number, other in enumerate(order):
                cost += self.of_class(number, public, int(other))
        return cost

    def of_class(self, number: int, public: ColumnStatistics, other: int) -> Floats:
        """[P, P], squared distances if class `number` here is the public class `other`."""
        return squared_distances(self.by_class[number], public.by_class[other], public.by_class.std(1).mean(0))

    def brightest(self, count: int) -> ColumnStatistics:
        """Those of the columns of the largest means, so many."""
        chosen = np.argsort(-self.shared[:, 1], kind="stable")[:count]
        return ColumnStatistics(self.shared[chosen], self.by_class[:, chosen])


def squared_distances(ours: Floats, theirs: Floats, units: Floats | float = 1.0) -> Floats:
    """[P, Q], squared distances between the rows of [P, F] and [Q, F], every feature in its unit."""
    unit = np.maximum(units, 1e-6)
    ours, theirs = ours / unit, theirs / unit
    return np.asarray(np.square(ours).sum(1)[:, None] + np.square(theirs).sum(1) - 2 * ours @ theirs.T)
