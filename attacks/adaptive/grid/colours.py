"""Which channel of one set of pixels goes with which of another: what a strided layer leaves open and pictures tell.

A picture's channels change little from one pixel to the next, so that the channels of neighbouring sets are put together
in the way that leaves the least difference between neighbours.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from attacks.adaptive.grid.template import ConvolutionTemplate, Floats, Integers

_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def channel_orders(images: Floats, template: ConvolutionTemplate) -> Integers:
    """[pixels, channels], at each pixel the channel that belongs to each of the first set's.

    Args:
        images: [N, channels, height, width], the channels of each of `template.connected` in an order of its own.
        template: the layer that reads them.
    """
    count, channels = images.shape[:2]
    flat = images.reshape(count, channels, -1)
    orders = np.tile(np.arange(channels), (template.pixels, 1))
    if channels == 1:
        return orders
    sets = np.full(template.pixels, -1)
    for number, pixels in enumerate(template.connected):
        sets[pixels] = number
    pairs = _neighbours(template)
    done, left = {0}, set(range(1, len(template.connected)))
    while left:
        border = {number: _border(pairs, sets, number, done) for number in left}
        number = max(border, key=lambda each: border[each].shape[1])
        inner, outer = border[number]
        settled = np.take_along_axis(flat[:, :, outer], orders[outer].T[None], axis=1)
        costs = np.abs(flat[:, :, None, inner] - settled[:, None]).sum((0, 3))  # [theirs, settled]
        orders[template.connected[number]] = np.argsort(linear_sum_assignment(costs)[1])
        done.add(number)
        left.remove(number)
    return orders


def with_channels_in(images: Floats, orders: Integers) -> Floats:
    """Images [N, channels, height, width] with each pixel's channels in the order [pixels, channels]."""
    flat = images.reshape(*images.shape[:2], -1)
    return np.asarray(np.take_along_axis(flat, orders.T[None], axis=1).reshape(images.shape))


def _neighbours(template: ConvolutionTemplate) -> Integers:
    """[2, pairs] of pixels beside each other, each pair in both orders."""
    height, width = template.source
    grid = np.arange(height * width).reshape(height, width)
    found = []
    for down, right in _NEIGHBOURS:
        rows = slice(down, height), slice(0, height - down)
        columns = (
            (slice(right, width), slice(0, width - right))
            if right >= 0
            else (slice(0, width + right), slice(-right, width))
        )
        found.append(np.stack([grid[rows[0], columns[0]].ravel(), grid[rows[1], columns[1]].ravel()]))
    pairs = np.concatenate(found, axis=1)
    return np.concatenate([pairs, pairs[::-1]], axis=1)


def _border(pairs: Integers, sets: Integers, number: int, done: set[int]) -> Integers:
    """[2, pairs]: pixels of a set beside pixels of the settled ones."""
    chosen = (sets[pairs[0]] == number) & np.isin(sets[pairs[1]], list(done))
    return pairs[:, chosen]
