"""What = A_i W A_{i-1}^-1 and back, layer by layer: sparse products for any pixel keys, a relabelling for monomial ones.

The product of a layer's homogeneous Toeplitz matrix with monomial keys moves each entry to another row and column and
scales it. Which entry goes where depends on the keys alone, so it is laid out once (`MonomialKeying`); every message
then costs one pass over the entries. `SparseKeying` multiplies sparse matrices with SciPy: it serves soft keys, and is
the oracle that the fast path is tested against.

A value of a convolution stands in many entries. Recovering it takes their mean: every entry is a rounding of the same
number with the same relative error, so that the mean is the estimate of least error, and whatever was changed in any
entry shows in the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor

from defenses.keynet.kernels import Relabelling
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_form import PixelForm, separate_name
from defenses.keynet.pixel_keys import PixelKeys
from defenses.keynet.pixel_message import KeyedModel
from federation.errors import MalformedMessage
from federation.toeplitz import ToeplitzLayout
from federation.weights import Weights, check_layout

Singles: TypeAlias = npt.NDArray[np.float32]

PIXEL_ERROR = 2.0**-22
"""Relative error of a recovered mean at most, for monomial keys with gains: a rounding by client, server, client, and
of the plain mean that it is compared with."""


class LayerKeying(ABC):
    """Keys the values of one layer.

    Args:
        layout: where its values stand.
        output_key: A_i, of the space that it writes.
        input_key: A_{i-1}, of the space that it reads.
    """

    def __init__(self, layout: ToeplitzLayout, output_key: PixelKey, input_key: PixelKey) -> None:
        self._layout, self._output_key, self._input_key = layout, output_key, input_key

    @property
    @abstractmethod
    def structure(self) -> scipy.sparse.csr_array:
        """A keyed matrix whose entries' places, not whose values, are those of every keyed matrix of this layer."""

    @abstractmethod
    def protect(self, values: Singles) -> Singles:
        """The entries of the keyed matrix, in the order of `structure`, from the layer's values [value_count]."""

    @abstractmethod
    def recover(self, entries: Singles) -> Singles:
        """The layer's values; those that stand in no entry come out as 0."""

    def matrix(self, values: Singles) -> scipy.sparse.csr_array:
        """The keyed matrix in float32."""
        places = self.structure
        return scipy.sparse.csr_array((self.protect(values), places.indices, places.indptr), shape=places.shape)


class SparseKeying(LayerKeying):
    """Keying by sparse products in float64, for any keys."""

    @cached_property
    def structure(self) -> scipy.sparse.csr_array:
        """Every place that the product can fill."""
        ones = self._layout.matrix(np.ones(self._layout.value_count))
        places = abs(self._output_key.matrix) @ ones @ abs(self._input_key.inverse)
        return _sorted(places)

    def product(self, values: npt.ArrayLike) -> scipy.sparse.csr_array:
        """A_i [W b; 0 1] A_{i-1}^-1 in float64."""
        return _sorted(self._output_key.matrix @ self._layout.matrix(values) @ self._input_key.inverse)

    def protect(self, values: Singles) -> Singles:
        """See `LayerKeying.protect`."""
        found = self.product(values)
        places = self.structure
        if np.array_equal(found.indptr, places.indptr) and np.array_equal(found.indices, places.indices):
            return np.asarray(found.data.astype(np.float32))
        # sums that cancel are dropped by the product: put the rest into its place
        rows = np.repeat(np.arange(places.shape[0]), np.diff(places.indptr))
        return np.asarray(found[rows, places.indices], np.float32).ravel()

    def recover(self, entries: Singles) -> Singles:
        """See `LayerKeying.recover`."""
        places = self.structure
        keyed = scipy.sparse.csr_array((entries.astype(np.float64), places.indices, places.indptr), shape=places.shape)
        plain = _sorted(self._output_key.inverse @ keyed @ self._input_key.matrix)
        return np.nan_to_num(self._layout.mean_values(plain)).astype(np.float32)


class MonomialKeying(LayerKeying):
    """Keying by relabelling, for monomial keys: the places are worked out once."""

    def __init__(self, layout: ToeplitzLayout, output_key: PixelKey, input_key: PixelKey) -> None:
        super().__init__(layout, output_key, input_key)
        rows, columns = (np.append(key.permutation, key.size) for key in (output_key, input_key))
        moved = scipy.sparse.csr_array((layout.sources, layout.indices, layout.indptr), shape=layout.shape)[rows]
        moved.indices = np.argsort(columns).astype(np.int32)[moved.indices]
        moved.has_sorted_indices = False
        moved.sort_indices()
        self._places = moved
        self._relabelling = Relabelling(
            moved.indptr,
            moved.indices,
            moved.data,
            np.append(output_key.gains, 1.0),
            np.append(input_key.gains, 1.0),
            np.argsort(output_key.permutation),
            layout.rows_per_channel,
            layout.value_count,
        )

    @property
    def structure(self) -> scipy.sparse.csr_array:
        """The places; the data are the numbers of the values that stand there."""
        return self._places

    def protect(self, values: Singles) -> Singles:
        """See `LayerKeying.protect`."""
        return self._relabelling.entries(values)

    def recover(self, entries: Singles) -> Singles:
        """See `LayerKeying.recover`."""
        return (self._relabelling.totals(entries) / np.maximum(self._layout.placements, 1)).astype(np.float32)


def layer_keying(layout: ToeplitzLayout, output_key: PixelKey, input_key: PixelKey) -> LayerKeying:
    """The fastest keying that these keys allow."""
    monomial = output_key.is_monomial and input_key.is_monomial
    return (MonomialKeying if monomial else SparseKeying)(layout, output_key, input_key)


class PixelTransform:
    """A network's tensors under one set of pixel keys; built once, used for every message.

    Linear in the weights: sums and means of keyed models recover to those of the weights.

    Args:
        form: the network's matrices, and what is carried beside them.
        keys: the keys of its spaces and vectors.
    """

    def __init__(self, form: PixelForm, keys: PixelKeys) -> None:
        self._form, self._vector_keys = form, keys.vectors
        self._sizes = {spec.name: spec.size for spec in form.layout}
        self._layers = {
            name: layer_keying(step.layout, keys.spaces[step.space], keys.spaces[step.source_spaces[0]])
            for name, step in form.layers.items()
        }

    def protect(self, weights: Mapping[str, Tensor]) -> KeyedModel:
        """The keyed matrices and vectors; counters as they are. Raises MalformedMessage for other tensors."""
        check_layout(weights, self._form.layout, "weights to be keyed")
        flat = {name: tensor.detach().cpu().numpy().ravel() for name, tensor in weights.items()}
        matrices, vectors = {}, {name: flat[name] for name in self._form.vectors if name in flat}
        for name, step in self._form.layers.items():
            values = np.concatenate([flat[tensor] for tensor in step.tensors])
            matrices[name] = self._layers[name].matrix(values)
            if separate_name(step) in self._form.vectors:
                vectors[separate_name(step)] = values[step.layout.separate]
        keyed = {name: _key_vector(vector, self._vector_keys[name]) for name, vector in vectors.items()}
        counters = {name: weights[name].detach().cpu().clone() for name in self._form.counter_names}
        return KeyedModel(matrices, {name: keyed[name] for name in self._form.vectors}, counters)

    def recover(self, model: KeyedModel, where: str) -> Weights:
        """The inverse of `protect`; raises MalformedMessage where a matrix is not keyed with these keys.

        Args:
            model: a keyed model, or the mean of several.
            where: what it is, for the error's text.
        """
        found = {name: _recover_vector(vector, self._vector_keys[name]) for name, vector in model.vectors.items()} | {
            name: counter.numpy() for name, counter in model.counters.items()
        }
        for name, step in self._form.layers.items():
            values = self._recovered_layer(name, model.matrices[name], where)
            if separate_name(step) in found:
                values[step.layout.separate] = found[separate_name(step)]
            ends = np.cumsum([self._sizes[tensor] for tensor in step.tensors])
            found |= zip(step.tensors, np.split(values, ends[:-1]), strict=True)
        return {
            spec.name: torch.from_numpy(np.array(found.get(spec.name, ()), copy=True))
            .to(spec.dtype)
            .reshape(spec.shape)
            for spec in self._form.layout
        }

    def _recovered_layer(self, name: str, matrix: scipy.sparse.csr_array, where: str) -> Singles:
        places = self._layers[name].structure
        if not (np.array_equal(matrix.indptr, places.indptr) and np.array_equal(matrix.indices, places.indices)):
            raise MalformedMessage(f"{where}: the entries of layer {name!r} stand in other places than this key's")
        return self._layers[name].recover(matrix.data)


def _key_vector(vector: Singles, key: PixelKey) -> Singles:
    return (key.gains * vector[key.permutation]).astype(np.float32)


def _recover_vector(keyed: Singles, key: PixelKey) -> Singles:
    plain = np.empty(key.size, np.float32)
    plain[key.permutation] = keyed / key.gains
    return plain


def _sorted(matrix: scipy.sparse.sparray) -> scipy.sparse.csr_array:
    """The matrix in CSR with columns in order, and places in 32 bits, as they cross the wire."""
    found = scipy.sparse.csr_array(matrix)
    found.sort_indices()
    places = (part.astype(np.int32) for part in (found.indices, found.indptr))
    return scipy.sparse.csr_array((found.data, *places), shape=found.shape)
