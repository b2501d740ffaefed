"""Which class is which, where a key permutes them: the order in which pixels can be matched best."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import linear_sum_assignment

from attacks.adaptive.statistics.columns import ColumnStatistics
from attacks.adaptive.statistics.public import Floats, Integers

_PIXELS = 250
"""Pixels, the brightest, on which orders are compared."""


def find_class_order(leaks: ColumnStatistics, public: ColumnStatistics, starts: int, seed: int) -> Integers:
    """[K], which public class each class of the leaks is.

    From several random orders: classes and brightest pixels are assigned in turn until neither changes, then classes are
    exchanged in pairs for as long as pixels then match better.
    """
    ours, theirs = leaks.brightest(_PIXELS), public.brightest(_PIXELS)
    classes = len(ours.by_class)
    shared = ours.distances(theirs, None)
    pairs = np.array([[ours.of_class(k, theirs, other) for other in range(classes)] for k in range(classes)])
    draw = np.random.default_rng(seed)
    found = [_improved(shared, pairs, draw.permutation(classes)) for _ in range(starts)]
    return min(found, key=lambda pair: pair[0])[1]


def order_by_means(placed: Floats, labels: Integers, public: Floats, public_labels: Integers) -> Integers:
    """[K], which public class each class is, by the mean images of placed pixels [N, P]."""
    classes = int(public_labels.max()) + 1
    means = np.stack([public[public_labels == number].mean(0) for number in range(classes)])
    costs = np.zeros((classes, classes))
    for number in np.unique(labels):
        members = placed[labels == number]
        costs[number] = len(members) * np.square(members.mean(0) - means).sum(1)
    return np.asarray(linear_sum_assignment(costs)[1])


def _improved(shared: Floats, pairs: Floats, order: Integers) -> tuple[float, Integers]:
    """The cost of the best order that leads on from one, and that order."""
    classes = np.arange(len(order))

    def matched(order: Integers) -> tuple[float, tuple[Integers, Integers]]:
        cost = shared + pairs[classes, order].sum(0)
        places = linear_sum_assignment(cost)
        return float(cost[places].sum()), places

    cost, places = matched(order)
    while True:
        other = linear_sum_assignment(pairs[:, :, places[0], places[1]].sum(2))[1]
        least, moved = matched(other)
        if least >= cost:
            break
        cost, order, places = least, other, moved
    improving = True
    while improving:
        improving = False
        for one, other_one in itertools.combinations(range(len(order)), 2):
            exchanged = order.copy()
            exchanged[[one, other_one]] = order[[other_one, one]]
            least = matched(exchanged)[0]
            if least < cost:
                cost, order, improving = least, exchanged, True
    return cost, order
