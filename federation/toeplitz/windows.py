"""Convolutions and pooling as placements: which input pixel each kernel tap or pooling window meets, axis by axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from federation.toeplitz.layout import Floats, ToeplitzLayout, assemble

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AxisTaps:
    """Along one axis, all pairs of an output position and a kernel tap that meet a pixel and no padding.

    Attributes:
        outputs, taps, inputs: [pairs], the output position, the tap, and the pixel that the tap meets.
        output_size, input_size, tap_count: lengths of the axis after and before, and of the kernel.
    """

    outputs: Integers
    taps: Integers
    inputs: Integers
    output_size: int
    input_size: int
    tap_count: int


def axis_taps(
    input_size: int, output_size: int, tap_count: int, *, stride: int = 1, padding: int = 0, dilation: int = 1
) -> AxisTaps:
    """The pairs of a convolution: tap t at output position i meets pixel i * stride - padding + t * dilation.

    Args:
        padding: zeros before the first pixel; those after the last follow from `output_size`.
    """
    outputs, taps = (grid.ravel() for grid in np.meshgrid(np.arange(output_size), np.arange(tap_count), indexing="ij"))
    inputs = outputs * stride - padding + taps * dilation
    inside = (inputs >= 0) & (inputs < input_size)
    return AxisTaps(outputs[inside], taps[inside], inputs[inside], output_size, input_size, tap_count)


def convolution_entries(height: AxisTaps, width: AxisTaps, inputs_per_group: int, outputs: int, bias: bool) -> int:
    """How many entries the layout of a convolution has."""
    windows = len(height.outputs) * len(width.outputs)
    biases = height.output_size * width.output_size if bias else 0
    return outputs * (windows * inputs_per_group + biases) + 1


def convolution_layout(
    height: AxisTaps, width: AxisTaps, inputs_per_group: int, outputs: int, *, groups: int = 1, bias: bool = True
) -> ToeplitzLayout:
    """The layout of a convolution; its values are `weight.ravel()`, then the bias where it has one.

    A fully connected layer is a 1x1 convolution of 1x1 maps, batch normalisation a depthwise 1x1 convolution.

    Args:
        height, width: the pairs along both axes.
        inputs_per_group, outputs, groups: channels: the weight is [outputs, inputs_per_group, taps, taps].
        bias: whether it has one.
    """
    output_pixels = height.output_size * width.output_size
    channel = np.arange(outputs)[:, None, None, None]
    member = np.arange(inputs_per_group)[None, :, None, None]
    over_height = (part[None, None, :, None] for part in (height.outputs, height.taps, height.inputs))
    over_width = (part[None, None, None, :] for part in (width.outputs, width.taps, width.inputs))
    (out_y, tap_y, in_y), (out_x, tap_x, in_x) = over_height, over_width

    def entries(channels: Integers, size_y: int, y: Integers, size_x: int, x: Integers) -> Integers:
        full = (outputs, inputs_per_group, len(height.outputs), len(width.outputs))
        return np.broadcast_to((channels * size_y + y) * size_x + x, full).ravel()

    source_channel = channel // (outputs // groups) * inputs_per_group + member
    rows = entries(channel, height.output_size, out_y, width.output_size, out_x)
    columns = entries(source_channel, height.input_size, in_y, width.input_size, in_x)
    sources = entries(channel * inputs_per_group + member, height.tap_count, tap_y, width.tap_count, tap_x)
    input_count = groups * inputs_per_group * height.input_size * width.input_size
    value_count = outputs * inputs_per_group * height.tap_count * width.tap_count
    if bias:
        bias_rows = np.arange(outputs * output_pixels)
        rows = np.concatenate([rows, bias_rows])
        columns = np.concatenate([columns, np.full(len(bias_rows), input_count)])
        sources = np.concatenate([sources, value_count + bias_rows // output_pixels])
        value_count += outputs
    shape = (outputs * output_pixels + 1, input_count + 1)
    return assemble(rows, columns, sources, shape, value_count, output_pixels)


@dataclass(frozen=True, eq=False)
class AxisMeans:
    """Along one axis, all pairs of an output position and a pixel of its window, and the weight of that pixel.

    Attributes:
        outputs, inputs: [pairs].
        weights: [pairs], the factor of the pixel; a window's weights along both axes multiply.
        output_size, input_size: lengths of the axis after and before.
    """

    outputs: Integers
    inputs: Integers
    weights: Floats
    output_size: int
    input_size: int

    @classmethod
    def of_windows(cls, starts: Integers, ends: Integers, divisors: Floats, input_size: int) -> AxisMeans:
        """Windows [start, end), of which only pixels inside [0, input_size) count; their sum over `divisors`."""
        first, last = np.clip(starts, 0, input_size), np.clip(ends, 0, input_size)
        lengths = np.maximum(last - first, 0)
        outputs = np.repeat(np.arange(len(starts)), lengths)
        inputs = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[outputs]
        return cls(outputs, inputs, 1.0 / divisors[outputs], len(starts), input_size)

    @classmethod
    def pooled(
        cls, input_size: int, output_size: int, kernel: int, *, stride: int, padding: int, include_padding: bool
    ) -> AxisMeans:
        """The windows of average pooling, as PyTorch's `avg_pool2d` counts them (ceil_mode included)."""
        starts = np.arange(output_size) * stride - padding
        ends = np.minimum(starts + kernel, input_size + padding)
        counted = ends - starts if include_padding else np.minimum(ends, input_size) - np.maximum(starts, 0)
        return cls.of_windows(starts, ends, counted.astype(np.float64), input_size)

    @classmethod
    def adaptive(cls, input_size: int, output_size: int) -> AxisMeans:
        """The windows of adaptive average pooling: [floor(i n / m), ceil((i + 1) n / m))."""
        positions = np.arange(output_size)
        starts = positions * input_size // output_size
        ends = -(-(positions + 1) * input_size // output_size)
        return cls.of_windows(starts, ends, (ends - starts).astype(np.float64), input_size)


def pooling_layout(height: AxisMeans, width: AxisMeans, channels: int) -> tuple[ToeplitzLayout, Floats]:
    """The layout of an average over windows, channel by channel, and its constants.

    Average pooling is a convolution with a diagonal filter bank (Byrne et al. 2020); the constants are the values that
    fill the layout, one for each pair of pairs along both axes.
    """
    constants = np.outer(height.weights, width.weights).ravel()
    channel = np.arange(channels)[:, None, None]
    full = (channels, len(height.outputs), len(width.outputs))

    def entries(means: Sequence[tuple[Integers, int]]) -> Integers:
        (y, size_y), (x, size_x) = means
        return np.broadcast_to((channel * size_y + y[None, :, None]) * size_x + x[None, None, :], full).ravel()

    rows = entries([(height.outputs, height.output_size), (width.outputs, width.output_size)])
    columns = entries([(height.inputs, height.input_size), (width.inputs, width.input_size)])
    sources = np.tile(np.arange(len(constants)), channels)
    pixels = height.output_size * width.output_size
    shape = (channels * pixels + 1, channels * height.input_size * width.input_size + 1)
    return assemble(rows, columns, sources, shape, len(constants), pixels), constants
