"""A keyed convolution opened: places, channels and gains, from one ciphertext of its matrix."""

from __future__ import annotations

import scipy.sparse

from attacks.adaptive.grid.channels import find_channels
from attacks.adaptive.grid.gains import LayerKey, SpaceKey, find_gains
from attacks.adaptive.grid.places import find_places, place_rows
from attacks.adaptive.grid.template import ConvolutionTemplate, KeyNotFoundError


def recover_layer(
    matrix: scipy.sparse.csr_array, template: ConvolutionTemplate, source: SpaceKey | None = None
) -> LayerKey:
    """The keys around one convolution, up to the template's poses, the order of channels and their scales.

    Args:
        matrix: the keyed homogeneous matrix, [rows + 1, columns + 1]; its gains are positive.
        template: the layer as everybody knows it.
        source: the key of the space that it reads, where that is known from the layer before.

    Raises:
        KeyNotFoundError: where the matrix is no such layer under positive monomial keys, or does not tell.
    """
    if matrix.shape != template.layout.shape:
        raise KeyNotFoundError(f"a matrix of shape {matrix.shape}; this layer's has {template.layout.shape}")
    matrix = scipy.sparse.csr_array(matrix)
    block = matrix[:-1, :-1].tocsr()
    if source is None:
        places = find_places(block, template)
        return find_gains(matrix, template, find_channels(block, template, places))
    places = place_rows(block, template, source.places)
    channels = find_channels(block, template, places, columns_known=True)
    return find_gains(matrix, template, channels, source.gains)
