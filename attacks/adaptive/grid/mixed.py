"""A keyed convolution whose key mixes pixels within blocks: the mixing found and undone, and the layer opened.

The authors' package (Byrne, DeCann and Bloom 2020, visym/keynet) builds such keys of one small affine map that it repeats:
on the entries of every block, v = diag(g) Q x + t. Q is m x m: a permutation, Givens rotations, or doubly stochastic; g
are gains and t offsets, m numbers each. Before it, whole blocks or single pixels may be permuted. With B = diag(g) Q the
layer is

    What = A_1 [W b; 0 1] [P (I x B) G, t; 0 1]^-1

for the public order P of entries by block, and any permutation G. Once B is found up to order and scale of its columns
(`unmixing.py`), What (I x B) is a keyed convolution like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from attacks.adaptive.grid.channels import entry_table
from attacks.adaptive.grid.gains import LayerKey
from attacks.adaptive.grid.layer import recover_layer
from attacks.adaptive.grid.template import ConvolutionTemplate, Floats, Integers, KeyNotFoundError
from attacks.adaptive.grid.unmixing import TOLERANCES, block_basis
from federation.errors import UsageError

BlockOrder: TypeAlias = Literal["tiles", "lines"]

_MORE_BLOCKS = 4
"""By how much the number of blocks grows that are looked at together, until no window is missing."""


@dataclass(frozen=True, eq=False)
class OpenedLayer:
    """A keyed layer without its mixing, and the key that is left.

    Attributes:
        key: of the unmixed layer.
        layer: homogeneous, [outputs + 1, inputs + 1]: the keyed layer times the inverse of `decoder`.
        decoder: [inputs, inputs], from keyed images to permuted and scaled ones; the identity where nothing is mixed.
    """

    key: LayerKey
    layer: scipy.sparse.csr_array
    decoder: scipy.sparse.csr_array

    @classmethod
    def of_monomial(cls, layer: scipy.sparse.csr_array, template: ConvolutionTemplate) -> OpenedLayer:
        """A layer whose keys mix nothing; see `recover_layer`."""
        return cls(recover_layer(layer, template), layer, scipy.sparse.eye_array(layer.shape[1] - 1, format="csr"))


def block_entries(image_shape: tuple[int, int, int], block: tuple[int, int], order: BlockOrder) -> Integers:
    """[blocks, m], the entries of a flattened image (channel by channel, line by line) that each block of a key holds.

    Args:
        image_shape: (channels, height, width).
        block: (height, width); m is their product.
        order: "tiles" of that shape, or "lines" of m entries that follow each other.

    Raises:
        UsageError: where the blocks do not fill the image.
    """
    channels, height, width = image_shape
    down, right = block
    if order not in get_args(BlockOrder):
        raise UsageError(f"blocks are in {' or '.join(get_args(BlockOrder))}, not {order!r}")
    entries = np.arange(channels * height * width)
    whole = min(block) > 0 and len(entries) % (down * right) == 0
    if not whole or (order == "tiles" and (height % down or width % right)):
        raise UsageError(
            f"blocks of {down}x{right} in {order} do not fill {channels} channels of {height}x{width} pixels"
        )
    if order == "lines":
        return entries.reshape(-1, down * right)
    tiles = entries.reshape(channels, height // down, down, width // right, right).swapaxes(2, 3)
    return np.asarray(tiles.reshape(-1, down * right))


def open_mixed(layer: scipy.sparse.csr_array, template: ConvolutionTemplate, blocks: Integers) -> OpenedLayer:
    """Open a layer whose key repeats one map in every block.

    Args:
        layer: the keyed homogeneous matrix.
        template: its public shape.
        blocks: [blocks, m], see `block_entries`; every entry is in one of them.

    Raises:
        UsageError: where the blocks are not those of such an image.
        KeyNotFoundError: where the layer does not give the map away, or is no convolution without it.
    """
    if not np.array_equal(np.sort(blocks, axis=None), np.arange(template.inputs * template.pixels)):
        raise UsageError(f"blocks hold each of the {template.inputs * template.pixels} entries once")
    if layer.shape != template.layout.shape:
        raise KeyNotFoundError(f"a matrix of shape {layer.shape}; this layer's has {template.layout.shape}")
    parts = [_Part.of(layer, entries) for entries in blocks]
    basis = _basis(parts, template)
    encoder = _repeated(basis, blocks)
    unmixed = _unmixed(parts, basis, blocks, layer, template)
    key = recover_layer(unmixed, template)
    signs = _signs(unmixed, key, encoder)
    last = scipy.sparse.diags_array(np.append(signs, 1.0))
    decoder = scipy.sparse.diags_array(signs) @ _repeated(np.asarray(np.linalg.inv(basis), np.float64), blocks)
    return OpenedLayer(key, scipy.sparse.csr_array(unmixed @ last), scipy.sparse.csr_array(decoder))


@dataclass(frozen=True, eq=False)
class _Part:
    """The columns of one block: the rows that have entries there, and those entries [rows, m]."""

    rows: Integers
    values: Floats

    @classmethod
    def of(cls, layer: scipy.sparse.csr_array, entries: Integers) -> _Part:
        columns = scipy.sparse.csr_array(layer[:-1, entries])
        (rows,) = np.nonzero(np.diff(columns.indptr))
        values = columns[rows].toarray()
        some = np.any(values != 0, axis=1)
        return cls(rows[some], values[some])


def _basis(parts: list[_Part], template: ConvolutionTemplate) -> Floats:
    """B up to the order and scale of its columns, from as few blocks as show it; those away from the border show most."""
    if template.outputs < 2:
        raise KeyNotFoundError("with one output channel mixed pixels cannot be told apart")
    ordered = sorted((part.values for part in parts), key=len, reverse=True)
    taken = 1
    while True:
        for tolerance in TOLERANCES:
            basis = block_basis(ordered[:taken], template.outputs, tolerance)
            if basis is not None:
                return basis
        if taken >= len(ordered):
            raise KeyNotFoundError("the entries do not stand where a key that repeats one map in these blocks has them")
        taken *= _MORE_BLOCKS


def _repeated(block: Floats, blocks: Integers) -> scipy.sparse.csr_array:
    """[entries, entries], the same map on every block."""
    size = blocks.size
    rows, columns = np.broadcast_arrays(blocks[:, :, None], blocks[:, None, :])
    values = np.broadcast_to(block, rows.shape)
    return scipy.sparse.csr_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=(size, size))


def _unmixed(
    parts: list[_Part], basis: Floats, blocks: Integers, layer: scipy.sparse.csr_array, template: ConvolutionTemplate
) -> scipy.sparse.csr_array:
    """The homogeneous layer times B. Of its entries, relative to what they are sums of, as many are no rounding errors as
    the convolution has."""
    data, share, row, column = [], [], [], []
    for part, entries in zip(parts, blocks, strict=True):
        values = part.values @ basis
        data.append(values.ravel())
        share.append((np.abs(values) / np.linalg.norm(part.values, axis=1, keepdims=True)).ravel())
        row.append(np.repeat(part.rows, len(entries)))
        column.append(np.tile(entries, len(part.rows)))
    count = template.outputs * template.inputs * template.support.nnz
    shares = np.concatenate(share)
    if len(shares) < count:
        raise KeyNotFoundError("there are fewer entries than the convolution has")
    largest = np.argpartition(shares, len(shares) - count)[len(shares) - count :]
    kept, rows, columns = (np.concatenate(each)[largest] for each in (data, row, column))
    shape = layer.shape[0] - 1, layer.shape[1] - 1
    block = scipy.sparse.csr_array((kept, (rows, columns)), shape=shape)
    bias = layer[:-1, [layer.shape[1] - 1]]
    return scipy.sparse.csr_array(
        scipy.sparse.block_array([[block, bias], [None, scipy.sparse.csr_array(np.ones((1, 1)))]])
    )


def _signs(layer: scipy.sparse.csr_array, key: LayerKey, encoder: scipy.sparse.csr_array) -> Floats:
    """[entries], by which columns are to be multiplied for their entries to have the kernels' signs.

    Rows have positive gains, so that a column and a kernel's entry have one sign for all locations: relative signs are
    what connects them. Each connected set is taken such that its part of the key adds up to something positive: that
    keyed images grow brighter with the image. A layer does not tell an image from its negative otherwise.
    """
    template, places = key.template, key.places
    table = entry_table(layer, template, places.rows, places.columns)
    location, tap, output, channel = np.nonzero((template.tap_pixels >= 0)[..., None, None] & (table != 0))
    column = places.columns[template.tap_pixels[location, tap], channel]
    count = encoder.shape[0]
    kernel = count + (tap * template.outputs + output) * template.inputs + channel
    size = count + template.taps * template.outputs * template.inputs
    other = np.where(table[location, tap, output, channel] > 0, 0, size)
    # each has two vertices, one for either sign; an entry connects those of columns and kernels that fit it
    ends = np.concatenate([column, column + size]), np.concatenate([kernel + other, kernel + (size - other)])
    links = scipy.sparse.coo_array((np.ones(2 * len(column)), ends), shape=(2 * size, 2 * size))
    sets = connected_components(links, directed=False)[1].reshape(2, size)[:, :count]
    used = np.zeros(count, bool)
    used[column] = True
    if np.any(sets[0, used] == sets[1, used]):
        raise KeyNotFoundError("the signs of the entries contradict each other")
    signs = np.where(sets[0] < sets[1], 1.0, -1.0)
    gains = np.zeros(count)
    gains[places.columns[places.columns >= 0]] = key.columns[places.columns >= 0]
    brightness = np.asarray(encoder.sum(axis=0)).ravel() * gains * signs
    for each in np.unique(sets.min(axis=0)[used]):
        members = sets.min(axis=0) == each
        if brightness[members].sum() < 0:
            signs[members] *= -1
    return signs
