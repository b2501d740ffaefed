"""The attacker's own copy of a convolution's matrix: which pixel each tap meets at each location, and its symmetries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from attacks.adaptive.grid.refinement import fingerprints
from federation.errors import KeyholeError, UsageError
from federation.network import Network
from federation.toeplitz import Linear, PixelSpace, ToeplitzLayout
from federation.toeplitz.windows import axis_taps, convolution_layout

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

POSES = range(8)
"""Reflections and quarter turns of a square: pose k turns k % 4 quarters, after a transposition for k of 4 or more."""


class KeyNotFoundError(KeyholeError):
    """A keyed matrix does not give its key away to this attack; says why."""


def posed(maps: npt.NDArray[Any], pose: int) -> npt.NDArray[Any]:
    """The last two axes in another pose."""
    return np.rot90(np.swapaxes(maps, -1, -2) if pose >= 4 else maps, pose % 4, axes=(-2, -1))


def inverse_pose(pose: int) -> int:
    """The pose that undoes one."""
    return pose if pose >= 4 else -pose % 4


@dataclass(frozen=True, eq=False)
class ConvolutionTemplate:
    """An ungrouped convolution as a matrix; rows and columns are numbered channel by channel.

    Attributes:
        layout: the matrix.
        outputs, inputs: channels.
        kernel: (height, width).
        source, target: (height, width) of the maps before and after.
    """

    layout: ToeplitzLayout
    outputs: int
    inputs: int
    kernel: tuple[int, int]
    source: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def of(
        cls,
        image_shape: tuple[int, int, int],
        outputs: int,
        kernel: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        bias: bool = True,
    ) -> ConvolutionTemplate:
        """The template of a layer that is described by numbers.

        Args:
            image_shape: (channels, height, width) of what the layer reads.
            outputs: output channels.
            kernel, stride, padding: along height and width; padding is of zeros, on both sides.
            bias: whether the layer has one.

        Raises:
            UsageError: where the kernel does not fit into the padded image, or a number is out of range.
        """
        channels, *source = image_shape
        target = [
            (size + 2 * zeros - taps) // max(step, 1) + 1
            for size, taps, step, zeros in zip(source, kernel, stride, padding, strict=True)
        ]
        if min(channels, outputs, *kernel, *stride, *target) < 1 or min(padding) < 0:
            raise UsageError(
                f"no convolution: {outputs} kernels of {kernel}, stride {stride}, padding {padding} on {image_shape}"
            )
        height, width = (
            axis_taps(source[axis], target[axis], kernel[axis], stride=stride[axis], padding=padding[axis])
            for axis in (0, 1)
        )
        layout = convolution_layout(height, width, channels, outputs, bias=bias)
        return cls(layout, outputs, channels, kernel, (source[0], source[1]), (target[0], target[1]))

    @classmethod
    def of_layer(
        cls, network: Network, step: Linear, source: PixelSpace, target: PixelSpace
    ) -> ConvolutionTemplate | None:
        """The template of a layer of a network; None where it is no ungrouped convolution of maps.

        Args:
            network: the architecture.
            step: the layer.
            source, target: the spaces that it reads and writes.
        """
        shape = next(spec.shape for spec in network.layout if spec.name == step.tensors[0])
        if len(shape) != 4 or len(source.shape) != 3 or shape[1] != source.shape[0]:
            return None
        outputs, inputs, height, width = shape
        return cls(step.layout, outputs, inputs, (height, width), source.shape[1:], target.shape[1:])  # type: ignore[arg-type]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what it reads."""
        return self.inputs, *self.source

    @property
    def taps(self) -> int:
        """Taps of one kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def locations(self) -> int:
        """Pixels of an output channel."""
        return self.target[0] * self.target[1]

    @property
    def pixels(self) -> int:
        """Pixels of an input channel."""
        return self.source[0] * self.source[1]

    @cached_property
    def tap_pixels(self) -> Integers:
        """[locations, taps], the pixel that each tap meets at each location; -1 for padding."""
        rows = np.repeat(np.arange(self.layout.shape[0]), np.diff(self.layout.indptr))
        of_first = (rows < self.locations) & (self.layout.sources < self.taps)  # output channel 0, input channel 0
        found = np.full((self.locations, self.taps), -1, np.int64)
        found[rows[of_first], self.layout.sources[of_first]] = self.layout.indices[of_first]
        return found

    @cached_property
    def support(self) -> scipy.sparse.csr_array:
        """[locations, pixels] ones where a location's window has a pixel."""
        locations, taps = np.nonzero(self.tap_pixels >= 0)
        ones = np.ones(len(locations), np.uint64)
        return scipy.sparse.csr_array(
            (ones, (locations, self.tap_pixels[locations, taps])), shape=(self.locations, self.pixels)
        )

    @cached_property
    def connected(self) -> list[Integers]:
        """The sets of pixels that taps connect, such as those of equal parity under a stride of 2; without those that no
        window has. Nothing in the matrix relates the channels or scales of one set to those of another."""
        location, tap = np.nonzero(self.tap_pixels >= 0)
        pixel = self.tap_pixels[location, tap]
        size = self.pixels + self.taps
        links = scipy.sparse.coo_array((np.ones(len(pixel)), (pixel, self.pixels + tap)), shape=(size, size))
        component = connected_components(links, directed=False)[1][: self.pixels]
        return [np.flatnonzero(component == name) for name in np.unique(component[pixel])]

    @cached_property
    def reach(self) -> tuple[int, int]:
        """(height, width) of the pixels up to the last that a window has: a stride may leave some out at the end."""
        rows, columns = np.divmod(self.tap_pixels[self.tap_pixels >= 0], self.source[1])
        return int(rows.max()) + 1, int(columns.max()) + 1

    def moved(self, maps: npt.NDArray[Any], pose: int) -> npt.NDArray[Any]:
        """Maps of the input [..., height, width] in one of `symmetries`; what is beyond reach stays where it is."""
        height, width = self.reach
        result = maps.copy()
        result[..., :height, :width] = posed(maps[..., :height, :width], pose)
        return result

    @cached_property
    def symmetries(self) -> tuple[int, ...]:
        """The poses of the pixels within reach that move the windows onto each other; pose 0 is among them."""
        square = self.reach[0] == self.reach[1]
        grid = np.arange(self.pixels).reshape(self.source)
        names = fingerprints(self.pixels)
        windows = np.sort(self.support @ names)
        return tuple(
            pose
            for pose in POSES
            if (square or (pose % 2 == 0) == (pose < 4))
            and np.array_equal(np.sort(self.support @ names[self.moved(grid, pose).ravel()]), windows)
        )
