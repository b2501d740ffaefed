"""Colours that a strided layer leaves apart are put together again: on real photographs, scrambled set by set."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.adaptive.grid.colours import channel_orders, with_channels_in
from attacks.adaptive.grid.template import ConvolutionTemplate
from federation.datasets import load_dataset


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1), (3, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_scrambled_photographs_are_sorted(stride: tuple[int, int], seed: int) -> None:
    template = ConvolutionTemplate.of((3, 32, 32), 4, (5, 5), stride=stride, padding=(2, 2))
    assert len(template.connected) == stride[0] * stride[1]
    photographs = load_dataset("photos32").victims.pixels()[:6].double().numpy()
    generator = np.random.default_rng(seed)
    orders = np.tile(np.arange(3), (template.pixels, 1))
    for pixels in template.connected[1:]:
        orders[pixels] = generator.permutation(3)
    scrambled = with_channels_in(photographs, orders)
    found = with_channels_in(scrambled, channel_orders(scrambled, template))
    assert np.array_equal(found, photographs)


def test_one_channel_is_in_order() -> None:
    template = ConvolutionTemplate.of((1, 8, 8), 4, (5, 5), stride=(2, 2), padding=(2, 2))
    images = np.random.default_rng(0).random((2, 1, 8, 8))
    assert np.array_equal(with_channels_in(images, channel_orders(images, template)), images)
