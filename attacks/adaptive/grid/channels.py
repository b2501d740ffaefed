"""Which channel each row and column belongs to, whatever their gains: from one keyed matrix.

An entry of a keyed convolution is a_r * K[o, i, t] / e_c. In logarithms the gain of its column goes with the mean over the
rows of a location, and that of its row with the mean over the row: what is left of the kernels is the same at every
location, so that the rows and columns of one location are told apart as those of any other are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from attacks.adaptive.grid.places import GridPlaces
from attacks.adaptive.grid.template import ConvolutionTemplate, Floats, Integers, KeyNotFoundError

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ChannelPlaces:
    """Every row and column of a keyed convolution in its place.

    Attributes:
        rows: [locations, outputs], the row of each output channel at each location; channels are numbered as they
            come at one location, which is as good a numbering as the true one.
        columns: [pixels, inputs], likewise in each set of connected pixels; -1 for a pixel that no window has.
    """

    rows: Integers
    columns: Integers


def find_channels(
    block: scipy.sparse.csr_array, template: ConvolutionTemplate, places: GridPlaces, *, columns_known: bool = False
) -> ChannelPlaces:
    """Sort the rows of every location and the columns of every pixel by channel.

    Args:
        block: [W], keyed, without the homogeneous coordinate.
        template, places: what is known of its rows and columns.
        columns_known: whether the columns are in their places already.

    Raises:
        KeyNotFoundError: where rows or columns cannot be told apart, or an entry is zero.
    """
    rows, columns = places.rows, places.columns
    open_columns = not columns_known and (template.inputs > 1 or places.has_twins)
    if template.outputs > 1:
        order = _Logarithms.of(block, template, places).order_of_rows()
        rows = np.take_along_axis(rows, order, axis=1)
        if open_columns:
            columns = _Logarithms.of(block, template, replace(places, rows=rows)).sorted_columns(columns)
    elif open_columns:
        raise KeyNotFoundError("with one output channel the columns cannot be told apart")
    return ChannelPlaces(rows, columns)


def entry_table(
    block: scipy.sparse.csr_array, template: ConvolutionTemplate, rows: Integers, columns: Integers
) -> Floats:
    """[locations, taps, outputs, inputs], the entries where these rows and columns meet; 1 in the padding."""
    taken = columns[template.tap_pixels]  # [locations, taps, inputs]
    found = np.ones((template.locations, template.taps, template.outputs, template.inputs))
    inside = template.tap_pixels >= 0
    where = np.broadcast_to(rows[:, None, :, None], found.shape), np.broadcast_to(taken[:, :, None, :], found.shape)
    found[inside] = np.asarray(block[where[0][inside].ravel(), where[1][inside].ravel()], np.float64).reshape(
        -1, template.outputs, template.inputs
    )
    return found


@dataclass(frozen=True, eq=False)
class _Logarithms:
    """The logarithms of the entries, less the mean over the rows of each location.

    Attributes:
        values: [locations, taps, outputs, inputs].
        groups: [locations, taps], for each tap the first one whose pixel is of the same class; -1 for the padding, and
            for groups of which the reference lacks a tap.
        pixels, connected: the template's, see there.
        reference: the location with the most taps on pixels that are alone in their class.
    """

    values: Floats
    groups: Integers
    pixels: Integers
    connected: list[Integers]
    reference: int

    @classmethod
    def of(cls, block: scipy.sparse.csr_array, template: ConvolutionTemplate, places: GridPlaces) -> _Logarithms:
        entries = entry_table(block, template, places.rows, places.columns)
        if not np.all(entries):
            raise KeyNotFoundError("some entries are zero, so that their gains do not show")
        values = np.log(np.abs(entries))
        inside = template.tap_pixels >= 0
        classes = np.where(inside, places.classes[template.tap_pixels], -1)
        same = classes[:, :, None] == classes[:, None, :]
        alone = inside & (same.sum(2) == 1)
        reference = int(alone.sum(1).argmax())
        usable = inside & ~np.any(same & ~alone[reference], axis=2)
        return cls(
            values - values.mean(2, keepdims=True),
            np.where(usable, same.argmax(2), -1),
            template.tap_pixels,
            template.connected,
            reference,
        )

    def centred(self, values: Floats, used: Flags) -> Floats:
        """[..., taps, outputs, inputs] less each row's mean over the taps that are used, [..., taps]."""
        weights = used[..., None, None]
        count = used.sum(-1)[..., None] * self.values.shape[3]
        return values - ((values * weights).sum((-3, -1)) / np.maximum(count, 1))[..., None, :, None]

    def order_of_rows(self) -> Integers:
        """[locations, outputs], which of a location's rows is the reference's first, second and so on."""
        order = np.empty((len(self.values), self.values.shape[2]), np.int64)
        patterns, members = np.unique(self.groups, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            if not np.any(pattern >= 0):
                raise KeyNotFoundError("no window has a pixel that shows which it is")
            (here,) = np.nonzero(members.ravel() == number)
            ours = _features(self.centred(self.values[self.reference], pattern >= 0), pattern)
            theirs = _features(
                self.centred(self.values[here], np.broadcast_to(pattern >= 0, (len(here), *pattern.shape))), pattern
            )
            distances = cdist(theirs.reshape(-1, theirs.shape[-1]), ours, "sqeuclidean")
            nearest = distances.argmin(1).reshape(len(here), -1)
            order[here] = np.argsort(nearest, axis=1)
            if not np.array_equal(np.sort(nearest, axis=1), np.sort(order[here], axis=1)):
                raise KeyNotFoundError("the rows of one location cannot be told apart")
        return order

    def sorted_columns(self, columns: Integers) -> Integers:
        """[pixels, inputs], the columns put where the reference's kernels say; their rows must be sorted already.

        A column is compared, in each window that has it, with the reference's columns of the same taps. Those are
        numbered tap by tap as they come, so that channels are what equal numbers connect, over all windows: in each
        set of connected pixels by itself.
        """
        inputs = columns.shape[1]
        location, tap, channel, like_tap, like_channel = self._likeness()
        column = columns[self.pixels[location, tap], channel]
        pixel = np.full(columns.max() + 1, -1, np.int64)
        pixel[column] = self.pixels[location, like_tap]
        if not np.array_equal(pixel[column], self.pixels[location, like_tap]):
            raise KeyNotFoundError("pixels that the same windows have cannot be told apart")
        like = len(pixel) + like_tap * inputs + like_channel
        size = len(pixel) + self.groups.shape[1] * inputs
        links = scipy.sparse.coo_array((np.ones(len(column)), (column, like)), shape=(size, size))
        component = connected_components(links, directed=False)[1]
        result = np.full_like(columns, -1)
        for pixels in self.connected:
            (found,) = np.nonzero(np.isin(pixel, pixels))
            names, numbers = np.unique(component[found], return_inverse=True)
            if len(names) == inputs:
                result[pixel[found], numbers] = found
        if not np.array_equal(np.sort(result.ravel()), np.sort(columns.ravel())):
            raise KeyNotFoundError("the columns of one pixel cannot be told apart")
        return result

    def _likeness(self) -> tuple[Integers, ...]:
        """For each column in each window that has it, by location, tap and number: which tap and number it is like."""
        used = self.groups >= 0
        seen = self.centred(self.values, used)
        expected = self.centred(np.broadcast_to(self.values[self.reference], self.values.shape), used)
        pair = (self.groups[:, :, None] == self.groups[:, None, :]) & used[:, :, None]
        location, tap, like_tap = np.nonzero(pair)  # in order, so that candidates for one tap stand together
        differences = seen[location, tap][..., :, None] - expected[location, like_tap][..., None, :]
        costs = np.square(differences).sum(1)  # [pairs, inputs, inputs]
        begins = np.flatnonzero(np.diff(location * pair.shape[1] + tap, prepend=-1))
        least = np.minimum.reduceat(costs.min(2), begins)
        segment = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(tap))))
        chosen, channel = np.nonzero(costs.min(2) == least[segment])
        return location[chosen], tap[chosen], channel, like_tap[chosen], costs.argmin(2)[chosen, channel]


def _features(values: Floats, pattern: Integers) -> Floats:
    """[..., outputs, features]: the values of each group, [..., taps, outputs, inputs], in order of size."""
    parts = []
    for group in np.unique(pattern[pattern >= 0]):
        members = values[..., pattern == group, :, :]
        flat = np.moveaxis(members, -3, -2).reshape(*members.shape[:-3], members.shape[-2], -1)
        parts.append(np.sort(flat, axis=-1))
    return np.concatenate(parts, axis=-1)
