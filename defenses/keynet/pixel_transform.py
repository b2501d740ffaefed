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

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor

from defenses.keynet import pieces
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


@dataclass(frozen=True)
class Work:
    """What is to be done for one layer.

    Attributes:
        size: the entries of its keyed matrix.
        pieces: for any thread, in any order.
        result: afterwards, in the caller's thread.
    """

    size: int
    pieces: list[pieces.Piece]
    result: Callable[[], Singles]


def results(works: Iterable[Work]) -> list[Singles]:
    """Do the work of several layers together, so that threads share all of it."""
    works = list(works)
    pieces.run((piece for work in works for piece in work.pieces), sum(work.size for work in works))
    return [work.result() for work in works]


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
    def protecting(self, values: Singles) -> Work:
        """What gives the entries of the keyed matrix, in the order of `structure`, from the values [value_count]."""

    @abstractmethod
    def recovering(self, entries: Singles) -> Work:
        """What gives the layer's values; those that stand in no entry come out as 0."""

    def protect(self, values: Singles) -> Singles:
        """The entries of this layer alone."""
        return results([self.protecting(values)])[0]

    def recover(self, entries: Singles) -> Singles:
        """The values of this layer alone."""
        return results([self.recovering(entries)])[0]

    def matrix(self, values: Singles) -> scipy.sparse.csr_array:
        """The keyed matrix in float32."""
        return self.placed(self.protect(values))

    def placed(self, entries: Singles) -> scipy.sparse.csr_array:
        """The matrix that has these entries."""
        found = copy.copy(self.structure)  # its places were checked when they were laid out
        found.data = entries
        return found


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

    def protecting(self, values: Singles) -> Work:
        """See `LayerKeying.protecting`."""
        return Work(self.structure.nnz, [], partial(self._entries, values))

    def recovering(self, entries: Singles) -> Work:
        """See `LayerKeying.recovering`."""
        return Work(len(entries), [], partial(self._values, entries))

    def _entries(self, values: Singles) -> Singles:
        found = self.product(values)
        places = self.structure
        if np.array_equal(found.indptr, places.indptr) and np.array_equal(found.indices, places.indices):
            return np.asarray(found.data.astype(np.float32))
        # sums that cancel are dropped by the product: put the rest into its place
        rows = np.repeat(np.arange(places.shape[0]), np.diff(places.indptr))
        return np.asarray(found[rows, places.indices], np.float32).ravel()

    def _values(self, entries: Singles) -> Singles:
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
        row_gains, column_gains = (np.append(key.gains, 1.0) for key in (output_key, input_key))
        self._relabelling = Relabelling(
            moved.indptr, moved.indices, moved.data, row_gains, column_gains, layout.value_count
        )

    @property
    def structure(self) -> scipy.sparse.csr_array:
        """The places; the data are the numbers of the values that stand there."""
        return self._places

    def protecting(self, values: Singles) -> Work:
        """See `LayerKeying.protecting`."""
        entries = np.empty(self._places.nnz, np.float32)
        return Work(len(entries), self._relabelling.filling(values, entries), lambda: entries)

    def recovering(self, entries: Singles) -> Work:
        """See `LayerKeying.recovering`."""
        totals = self._relabelling.new_totals()
        return Work(len(entries), self._relabelling.adding(entries, totals), lambda: self._relabelling.means(totals))


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
        self._due = {spec.name: (spec.shape, spec.dtype) for spec in form.layout}
        self._layers = {
            name: layer_keying(step.layout, keys.spaces[step.space], keys.spaces[step.source_spaces[0]])
            for name, step in form.layers.items()
        }

    def protect(self, weights: Mapping[str, Tensor]) -> KeyedModel:
        """The keyed matrices and vectors; counters as they are. Raises MalformedMessage for other tensors."""
        flat = self._flat(weights)
        values = [np.concatenate([flat[tensor] for tensor in step.tensors]) for step in self._form.layers.values()]
        entries = results(keying.protecting(each) for keying, each in zip(self._layers.values(), values, strict=True))
        separate = {
            separate_name(step): each[step.layout.separate]
            for step, each in zip(self._form.layers.values(), values, strict=True)
        }
        vectors = {
            name: _key_vector(flat[name] if name in flat else separate[name], self._vector_keys[name])
            for name in self._form.vectors
        }
        return KeyedModel(
            {name: keying.placed(each) for (name, keying), each in zip(self._layers.items(), entries, strict=True)},
            vectors,
            {name: weights[name].detach().cpu().clone() for name in self._form.counter_names},
        )

    def recover(self, model: KeyedModel, where: str) -> Weights:
        """The inverse of `protect`; raises MalformedMessage where a matrix is not keyed with these keys.

        Args:
            model: a keyed model, or the mean of several.
            where: what it is, for the error's text.
        """
        for name, keying in self._layers.items():
            if not _same_places(model.matrices[name], keying.structure):
                raise MalformedMessage(f"{where}: the entries of layer {name!r} stand in other places than this key's")
        vectors = {name: _recover_vector(vector, self._vector_keys[name]) for name, vector in model.vectors.items()}
        layers = results(keying.recovering(model.matrices[name].data) for name, keying in self._layers.items())
        found = {name: torch.from_numpy(vector) for name, vector in vectors.items()}
        found |= {name: counter.clone() for name, counter in model.counters.items()}
        for step, values in zip(self._form.layers.values(), layers, strict=True):
            if separate_name(step) in vectors:
                values[step.layout.separate] = vectors[separate_name(step)]
            parts = torch.from_numpy(values).split([self._sizes[tensor] for tensor in step.tensors])
            found |= zip(step.tensors, parts, strict=True)
        return {spec.name: found.get(spec.name, torch.empty(0)).view(spec.shape) for spec in self._form.layout}

    def _flat(self, weights: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
        """The values of every tensor; raises like `check_layout`, which waits for PyTorch's threads at every tensor."""
        if {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} == self._due:
            found = {name: tensor.detach().cpu().numpy().ravel() for name, tensor in weights.items()}
            if all(np.isfinite(values).all() for values in found.values()):
                return found
        check_layout(weights, self._form.layout, "weights to be keyed")
        raise AssertionError("what is refused here does not fit the layout")


def _same_places(one: scipy.sparse.csr_array, other: scipy.sparse.csr_array) -> bool:
    return np.array_equal(one.indptr, other.indptr) and np.array_equal(one.indices, other.indices)


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
