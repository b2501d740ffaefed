"""Which reconstruction stands for which true image: one to one, never each truth with its own best."""

from __future__ import annotations

from typing import NamedTuple

from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmark.metrics.pixel import pairwise_squared_distances


class Match(NamedTuple):
    """Row numbers of a true image and of the reconstruction that was matched to it."""

    truth: int
    guess: int


def match(truths: Tensor, guesses: Tensor) -> list[Match]:
    """Match images one to one so that the total squared error is least (Hungarian algorithm; Kuhn 1955).

    Args:
        truths: uint8 [n, C, H, W].
        guesses: uint8 [m, C, H, W]; m may differ from n, then the |m - n| images that fit worst stay unmatched.

    Returns:
        min(m, n) matches, by rising truth.

    Raises:
        DataError: unless both are 8-bit images of one size.
    """
    costs = pairwise_squared_distances(truths, guesses)
    rows, columns = linear_sum_assignment(costs.numpy())
    return [Match(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
