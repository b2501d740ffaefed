"""What a keyless reader makes of sparse layers: each entry taken for the value that stands there in the plain matrix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse
import torch

from federation.network import Network
from federation.toeplitz import toeplitz_of
from federation.weights import Weights, floating


def read_as_plain(layers: Mapping[str, scipy.sparse.csr_array], network: Network) -> Weights:
    """The tensors that the layers would hold if no key were there.

    A layer's matrix is read by its Toeplitz layout, every value as the mean of its entries (NaN where it stands in
    none); a vector beside the matrices by its own name.

    Args:
        layers: by name, as a `SparseLayers` view has them.
        network: the architecture.

    Returns:
        The tensors that are found, float64; others, such as counters, are left out.
    """
    specs = {spec.name: spec for spec in floating(network.layout)}
    read = {
        name: torch.from_numpy(layers[name].toarray()).double().reshape(spec.shape)
        for name, spec in specs.items()
        if name in layers and layers[name].shape == (spec.size, 1)
    }
    for step in toeplitz_of(network).weighted:
        matrix = layers.get(step.layer)
        if matrix is None or matrix.shape != step.layout.shape:
            continue
        ends = np.cumsum([specs[name].size for name in step.tensors])
        parts = np.split(step.layout.mean_values(matrix), ends[:-1])
        read |= {
            name: torch.from_numpy(part).reshape(specs[name].shape)
            for name, part in zip(step.tensors, parts, strict=True)
        }
    return read
