"""Gains of rows and columns whose places are known: log-linear least squares, and what fixes its gauge.

With log|What| = a_r + k[t, o, i] - e_c the entries leave open: a constant for each channel (kernels against gains; for
columns one for each set of pixels that taps connect, since a stride keeps some apart), and a trend over the pixels (gains
of rows and columns against a trend over the taps). The bias column, b_hat = exp(a_r) b_o, settles the trend where the key
adds no offset; else gains are taken to have none. Each such set is centred in the middle of its logarithms' range: gains
on [1/s, s] have it at 0, and for n of them it is off by the order of log(s) / n.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.linalg import lsmr

from attacks.adaptive.grid.channels import ChannelPlaces, entry_table
from attacks.adaptive.grid.template import ConvolutionTemplate, Floats, Integers, KeyNotFoundError, posed
from attacks.adaptive.grid.trend import without_trend

CONSISTENT = 1e-3
"""Largest difference of logarithms that passes for rounding."""


@dataclass(frozen=True, eq=False)
class SpaceKey:
    """The key of one space of feature maps, in the attacker's frame.

    Attributes:
        places: [pixels, channels], which keyed entry each is; -1 where that is not known.
        gains: [pixels, channels], its gain; NaN where it is not known.
    """

    places: Integers
    gains: Floats

    @property
    def flat(self) -> tuple[Integers, Floats]:
        """Places and gains channel by channel, as a feature map is flattened."""
        return self.places.T.ravel(), self.gains.T.ravel()

    @property
    def keyed(self) -> tuple[Integers, Floats]:
        """The other way round, by keyed entry: which entry of a flattened feature map stands there, and its gain."""
        places, gains = self.flat
        entries, factors = np.full(len(places), -1, np.int64), np.full(len(places), np.nan)
        known = np.flatnonzero(places >= 0)
        entries[places[known]], factors[places[known]] = known, gains[known]
        return entries, factors


@dataclass(frozen=True, eq=False)
class LayerKey:
    """The keys around one convolution, in the attacker's frame.

    Attributes:
        template, places: where its rows and columns belong.
        rows: [locations, outputs], positive gains of the rows.
        columns: [pixels, inputs], positive gains of the columns; NaN for a pixel that no window has.
        offsets: whether the bias column holds more than a bias: the key of the input adds something to it.
        residual: largest difference between the logarithm of an entry and what the gains and kernels make of it.
    """

    template: ConvolutionTemplate
    places: ChannelPlaces
    rows: Floats
    columns: Floats
    offsets: bool
    residual: float

    @property
    def source(self) -> SpaceKey:
        """The key of what the layer reads."""
        return SpaceKey(self.places.columns, self.columns)

    @property
    def target(self) -> SpaceKey:
        """The key of what it writes."""
        return SpaceKey(self.places.rows, self.rows)

    def in_pose(self, pose: int) -> LayerKey:
        """The same in another of the template's poses."""
        pixels = self.template.moved(np.arange(self.template.pixels).reshape(self.template.source), pose).ravel()
        locations = posed(np.arange(self.template.locations).reshape(self.template.target), pose).ravel()
        return replace(
            self,
            places=ChannelPlaces(self.places.rows[locations], self.places.columns[pixels]),
            rows=self.rows[locations],
            columns=self.columns[pixels],
        )

    def kernels(self, matrix: scipy.sparse.csr_array) -> Floats:
        """[outputs, inputs, height, width] from a homogeneous matrix under this key; 0 for taps that meet no pixel."""
        table = entry_table(matrix, self.template, self.places.rows, self.places.columns)
        inside = (self.template.tap_pixels >= 0)[..., None, None]
        plain = table / self.rows[:, None, :, None] * self.columns[self.template.tap_pixels][:, :, None, :]
        total = np.where(inside, plain, 0.0).sum(0)  # [taps, outputs, inputs]
        mean = total / np.maximum(inside.sum(0), 1)
        return np.asarray(mean.transpose(1, 2, 0).reshape(*mean.shape[1:], *self.template.kernel))

    def bias(self, matrix: scipy.sparse.csr_array) -> Floats:
        """[outputs] from a homogeneous matrix under this key."""
        return np.asarray((self.bias_column(matrix)).mean(0))

    def bias_column(self, matrix: scipy.sparse.csr_array) -> Floats:
        """[locations, outputs], the homogeneous column without the rows' gains."""
        return np.asarray(_last_column(matrix)[self.places.rows] / self.rows)


def find_gains(
    matrix: scipy.sparse.csr_array,
    template: ConvolutionTemplate,
    places: ChannelPlaces,
    columns: Floats | None = None,
) -> LayerKey:
    """The gains of a keyed convolution.

    Args:
        matrix: homogeneous, [rows + 1, columns + 1].
        template, places: where its entries belong.
        columns: [pixels, inputs], the columns' gains where they are known from the layer before.

    Raises:
        KeyNotFoundError: where an entry is zero, or the entries are no products of gains and kernels.
    """
    entries = _Logarithms.of(matrix, template, places)
    column = _last_column(matrix)[places.rows]
    rows = entries.rows_from_bias(column)
    offsets = rows is None and bool(np.any(column))
    if columns is None:
        shared, column_logs = _shared(entries if rows is None else entries.without_rows(rows), with_rows=rows is None)
    else:
        shared, column_logs = np.zeros(template.locations), np.log(columns)
    if rows is None:
        rows = shared[:, None] + entries.with_columns(column_logs).without_rows(shared[:, None]).rows()
        if columns is None:
            rows, column_logs = without_trend(rows, column_logs, template)
    residual = entries.with_columns(column_logs).without_rows(rows).spread()
    if residual > CONSISTENT:
        raise KeyNotFoundError(f"the entries are no products of gains and kernels (off by {residual:.1g})")
    if columns is None:
        for pixels in template.connected:
            column_logs[pixels] -= _middle(column_logs[pixels])
    return LayerKey(template, places, np.exp(rows - _middle(rows)), np.exp(column_logs), offsets, residual)


@dataclass(frozen=True, eq=False)
class _Logarithms:
    """Logarithms of a layer's entries, or of what is left of them.

    Attributes:
        values: [locations, taps, outputs, inputs], 0 in the padding.
        template: the layer's.
    """

    values: Floats
    template: ConvolutionTemplate

    @classmethod
    def of(cls, matrix: scipy.sparse.csr_array, template: ConvolutionTemplate, places: ChannelPlaces) -> _Logarithms:
        entries = entry_table(matrix, template, places.rows, places.columns)
        if not np.all(entries):
            raise KeyNotFoundError("some entries are zero, so that their gains do not show")
        return cls(np.log(np.abs(entries)), template)

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """[locations, taps, 1, 1], whether the tap meets a pixel."""
        return np.asarray(self.template.tap_pixels >= 0)[..., None, None]

    def with_columns(self, columns: Floats) -> _Logarithms:
        """Plus the logarithms of the columns' gains, [pixels, inputs]."""
        taken = columns[self.template.tap_pixels][:, :, None, :]
        return replace(self, values=np.where(self.inside, self.values + taken, 0.0))

    def without_rows(self, rows: Floats) -> _Logarithms:
        """Less the logarithms of the rows' gains, [locations, outputs] or [locations, 1]."""
        return replace(self, values=np.where(self.inside, self.values - rows[:, None, :, None], 0.0))

    def from_reference(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The difference from the location with the most taps, and where both have the tap; 0 elsewhere."""
        reference = self.inside.sum((1, 2, 3)).argmax()
        both = self.inside & self.inside[reference]
        return np.where(both, self.values - self.values[reference], 0.0), both

    def rows(self) -> Floats:
        """[locations, outputs] without which these are the same at every location: means over the shared taps."""
        differences, both = self.from_reference()
        return np.asarray(differences.sum((1, 3)) / (both.sum((1, 3)) * self.values.shape[3]))

    def spread(self) -> float:
        """The largest difference from the mean over the locations."""
        means = self.values.sum(0) / np.maximum(self.inside.sum(0), 1)
        return float(np.abs(np.where(self.inside, self.values - means, 0.0)).max())

    def rows_from_bias(self, column: Floats) -> Floats | None:
        """[locations, outputs] logarithms of the rows' gains from the bias column; None where it holds something else.

        With a single output channel nothing is left to compare, and the whole fit has to show it.
        """
        if not np.all(column):
            return None
        rows = np.log(np.abs(column))
        left = self.without_rows(rows)
        kernels = replace(left, values=left.values - left.values.mean(2, keepdims=True))  # no columns' gains either
        return None if np.abs(kernels.from_reference()[0]).max() > CONSISTENT else rows


def _last_column(matrix: scipy.sparse.csr_array) -> Floats:
    return np.asarray(matrix[:, [matrix.shape[1] - 1]].toarray(), np.float64)[:-1, 0]


def _shared(entries: _Logarithms, *, with_rows: bool) -> tuple[Floats, Floats]:
    """Least squares for the logarithms' means over the outputs: means of the rows' gains, and the columns' gains.

    Args:
        entries: of the layer.
        with_rows: whether the rows' gains are in it.

    Returns:
        [locations] (zeros without rows) and [pixels, inputs] (NaN for a pixel that no window has).
    """
    template = entries.template
    location, tap = np.nonzero(template.tap_pixels >= 0)
    pixel, inputs = template.tap_pixels[location, tap], template.inputs
    channels = np.arange(inputs)
    count = len(location) * inputs
    unknowns = [
        ((tap[:, None] * inputs + channels).ravel(), 1.0, template.taps * inputs),
        ((pixel[:, None] * inputs + channels).ravel(), -1.0, template.pixels * inputs),
    ]
    if with_rows:
        unknowns.append((np.repeat(location, inputs), 1.0, template.locations))
    parts = [
        scipy.sparse.csr_array((np.full(count, sign), (np.arange(count), which)), shape=(count, size))
        for which, sign, size in unknowns
    ]
    design = scipy.sparse.hstack(parts, format="csr")
    means = entries.values.mean(2)[location, tap].ravel()
    solution = lsmr(design, means, atol=1e-14, btol=1e-14, conlim=0, maxiter=20 * design.shape[1])[0]
    taps, pixels = unknowns[0][2], unknowns[1][2]
    columns = solution[taps : taps + pixels].reshape(template.pixels, inputs)
    columns[np.setdiff1d(np.arange(template.pixels), pixel)] = np.nan
    return (solution[taps + pixels :] if with_rows else np.zeros(template.locations)), columns


def _middle(logarithms: Floats) -> Floats:
    """[channels], the middle of each channel's range."""
    return np.asarray((logarithms.max(axis=0) + logarithms.min(axis=0)) / 2)
