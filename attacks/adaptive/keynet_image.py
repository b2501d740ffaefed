"""Keyed images opened without their key, from one keyed first layer that reads them (encrypted inference).

Whoever runs a network under Key-Net has the keyed images and the keyed first layer, and the layer betrays the key of what
it reads: places and gains from its entries, offsets from its bias column. No data and no second message are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.linalg import lsmr

from attacks.adaptive.grid.colours import channel_orders, with_channels_in
from attacks.adaptive.grid.gains import LayerKey
from attacks.adaptive.grid.mixed import OpenedLayer, open_mixed
from attacks.adaptive.grid.template import ConvolutionTemplate, Floats, Integers
from federation.errors import UsageError

_ROUNDS = 100
"""Of reweighted least squares; two or three unknowns settle within a fraction of them."""


@dataclass(frozen=True, eq=False)
class RecoveredImages:
    """Images as the attack sees them.

    Attributes:
        images: float64 [N, channels, height, width] in [0, 1]: each image stretched to its own range, as far as the
            rounding of 8-bit ciphertexts lets that be told, since the layer leaves brightness and contrast open; the order
            of the channels it leaves open too. 0.5 where no window of the layer has the pixel.
        poses: reflections and turns that the layer cannot tell apart; the images are in one of them, all in the same.
        key: what was found of the layer's keys.
    """

    images: Floats
    poses: tuple[int, ...]
    key: LayerKey


def recover_images(
    layer: scipy.sparse.csr_array,
    ciphertexts: npt.ArrayLike,
    template: ConvolutionTemplate,
    *,
    grey_levels: bool = False,
    blocks: Integers | None = None,
) -> RecoveredImages:
    """Open keyed images.

    Args:
        layer: the keyed homogeneous matrix of the first layer, A_1 [W b; 0 1] A_0^-1, [outputs + 1, inputs + 1]; both keys
            are permutations with positive gains, and A_0 may add an offset to each entry.
        ciphertexts: [N, inputs] or [N, inputs + 1], keyed images A_0 [x; 1], with or without their last coordinate.
        template: the layer's public shape.
        grey_levels: whether the ciphertexts were stored as pictures: each stretched by some unknown contrast and
            brightness and rounded, as 8-bit images are.
        blocks: [blocks, m], the entries of each block where the key mixes pixels within blocks (`mixed.block_entries`);
            its map on m entries is invertible and the same in all blocks. Where mixing makes the sum of the key's entries
            negative, the images come out as their negatives.

    Raises:
        UsageError: for ciphertexts or blocks of another size.
        KeyNotFoundError: where the layer does not give its key away.
    """
    opened = OpenedLayer.of_monomial(layer, template) if blocks is None else open_mixed(layer, template, blocks)
    key, decoder = opened.key, opened.decoder
    flat = np.asarray(ciphertexts, np.float64)
    if flat.ndim != 2 or flat.shape[1] not in (layer.shape[1] - 1, layer.shape[1]):
        raise UsageError(f"keyed images are [N, {layer.shape[1] - 1}] or one more for the 1, not {flat.shape}")
    flat = flat[:, : layer.shape[1] - 1]

    def without_key(keyed: Floats) -> Floats:
        """[..., pixels, inputs] from vectors of keyed entries, [..., entries]: all but the offsets."""
        return np.asarray(keyed[..., key.places.columns] / key.columns)

    values = without_key((decoder @ flat.T).T)
    light = without_key(decoder.sum(axis=1))  # of one more grey level in every keyed pixel
    offsets = _offsets(opened) if key.offsets else np.zeros_like(light)
    shape = template.image_shape
    if grey_levels:
        read = key.places.columns[:, 0] >= 0
        directions = [_as_maps(part, shape) for part in (light, offsets) if np.ptp(part[read]) > 0]
        maps = np.stack([_smoothest(image, directions) for image in _as_maps(values, shape)])
    else:
        maps = _as_maps(values + offsets, shape)
    orders = channel_orders(maps, template)
    step = without_key(abs(decoder).sum(axis=1))[None] / 2 if grey_levels else np.zeros_like(light)[None]
    rounding = _as_maps(step, shape)
    return RecoveredImages(
        _stretched(with_channels_in(maps, orders), with_channels_in(rounding, orders)), template.symmetries, key
    )


def _offsets(opened: OpenedLayer) -> Floats:
    """[pixels, inputs]: z in x = u / g + z. The bias column without its gains is b + K z, in which both are unknown."""
    key, template = opened.key, opened.key.template
    kernels = key.kernels(opened.layer).reshape(template.outputs, -1)
    layout, weights = template.layout, template.outputs * template.inputs * template.taps
    matrix = layout.matrix(np.append(kernels.ravel(), np.zeros(layout.value_count - weights)))[:-1, :-1]
    channel = np.repeat(np.arange(template.outputs), template.locations)
    ones = scipy.sparse.csr_array((np.ones(len(channel)), (np.arange(len(channel)), channel)))
    design = scipy.sparse.hstack([matrix, ones], format="csr")
    column = key.bias_column(opened.layer).T.ravel()
    solution = lsmr(design, column, atol=1e-13, btol=1e-13, conlim=0, maxiter=20 * design.shape[1])[0]
    return np.asarray(solution[: matrix.shape[1]].reshape(template.inputs, template.pixels).T)


def _as_maps(values: Floats, shape: tuple[int, int, int]) -> Floats:
    """[..., pixels, inputs] as [..., channels, height, width]."""
    return np.asarray(np.swapaxes(values, -1, -2).reshape(*values.shape[:-2], *shape))


def _smoothest(image: Floats, directions: list[Floats]) -> Floats:
    """The image plus the multiples of `directions` that leave it the least total variation.

    A picture's grey level is v = c u + d for unknown c and d, so that x = u / g + z is, up to its contrast,
    v / g - d / g + c z. Least absolute values by iteratively reweighted least squares.
    """
    if not directions:
        return image
    target = _differences(image)
    known = np.isfinite(target)
    target, design = target[known], np.stack([_differences(direction)[known] for direction in directions], axis=1)
    scales = np.abs(design).max(0)
    design = design / scales
    weights, floor = np.ones(len(target)), 1e-6 * np.abs(target).max()
    steps = np.zeros(len(directions))
    for _ in range(_ROUNDS):
        weighted = design * weights[:, None]
        steps = -np.linalg.lstsq(weighted.T @ design, weighted.T @ target, rcond=None)[0]
        weights = 1 / (np.abs(target + design @ steps) + floor)
    total = sum(step * direction for step, direction in zip(steps / scales, directions, strict=True))
    return np.asarray(image + total)


def _differences(image: Floats) -> Floats:
    """All differences of neighbours, flat."""
    return np.concatenate([np.diff(image, axis=axis).ravel() for axis in (-2, -1)])


def _stretched(maps: Floats, rounding: Floats) -> Floats:
    """Maps [N, ...] stretched to [0, 1], each from its darkest value to its brightest.

    A pixel of a small gain that is off by up to `rounding` [1, ...] seems darker or brighter than any. The darkest value
    is at most what every pixel reaches with its rounding added, and that bound is as tight as the surest pixels are.
    """
    least = np.nanmin(rounding)
    low = np.nanmin(maps + rounding, (1, 2, 3), keepdims=True) - least
    high = np.nanmax(maps - rounding, (1, 2, 3), keepdims=True) + least
    return np.nan_to_num(np.clip((maps - low) / np.maximum(high - low, np.finfo(np.float64).tiny), 0, 1), nan=0.5)
