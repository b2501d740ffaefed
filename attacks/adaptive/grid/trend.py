"""The trend over the pixels that a keyed convolution leaves open: gains of rows and columns against the kernels' taps.

Gains drawn one by one have no trend. For gains between two bounds the trend is taken that leaves the least range to their
logarithms, a linear programme: its error falls with the number of gains, not with its root.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from attacks.adaptive.grid.template import ConvolutionTemplate, Floats, KeyNotFoundError


def without_trend(rows: Floats, columns: Floats, template: ConvolutionTemplate) -> tuple[Floats, Floats]:
    """Both without a linear trend over the pixels: the one that leaves the least range to their values.

    Args:
        rows, columns: logarithms of gains, [locations, outputs] and [pixels, inputs] (NaN where no window has the pixel).
        template: the layer.
    """
    height, width = template.target
    strides = [_stride(template, axis) for axis in (0, 1)]
    of_rows = np.indices((height, width)).reshape(2, -1) * np.array(strides)[:, None]
    of_columns = np.indices(template.source).reshape(2, -1)
    sets = [(rows, of_rows, 0)] + [(columns[pixels], of_columns[:, pixels], 1) for pixels in template.connected]
    blocks = [(values[:, channel], places, side) for values, places, side in sets for channel in range(values.shape[1])]
    # variables: the trend (2), half the range of rows and of columns (2), the middle of each block
    design = np.concatenate([_band(places, side, index, len(blocks)) for index, (_, places, side) in enumerate(blocks)])
    limits = np.concatenate([np.concatenate([-values, values]) for values, _, _ in blocks])
    costs = np.zeros(design.shape[1])
    costs[2:4] = 1.0
    bounds = [(None, None)] * 2 + [(0, None)] * 2 + [(None, None)] * len(blocks)
    solved = linprog(costs, A_ub=design, b_ub=limits, bounds=bounds, method="highs")
    if not solved.success:
        raise KeyNotFoundError(f"no trend fits the gains ({solved.message})")
    trend = solved.x[:2]
    return rows - (trend @ of_rows)[:, None], columns - (trend @ of_columns)[:, None]


def _band(places: Floats, side: int, channel: int, channels: int) -> Floats:
    """Constraints |value - trend @ place - middle| <= half range, as rows of design @ variables <= limits."""
    count = places.shape[1]
    design = np.zeros((2, count, 4 + channels))
    design[..., :2] = places.T
    design[..., 4 + channel] = 1.0
    design[0] *= -1
    design[..., 2 + side] = -1.0
    return design.reshape(2 * count, -1)


def _stride(template: ConvolutionTemplate, axis: int) -> int:
    """Pixels between neighbouring locations; 1 where there is a single location."""
    if template.target[axis] < 2:
        return 1
    step = 1 if axis else template.target[1]
    pixels = np.where(template.tap_pixels >= 0, template.tap_pixels, -(template.pixels**2))
    moved = (pixels[step:] - pixels[:-step])[(pixels[step:] >= 0) & (pixels[:-step] >= 0)]
    across = 1 if axis else template.source[1]
    values, counts = np.unique(moved, return_counts=True)
    return int(values[counts.argmax()]) // across
