"""A keyed model on the wire: one sparse matrix (CSR) a layer, and what is carried beside them, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from defenses.keynet.pixel_form import PixelForm
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_from_bytes, tensors_to_bytes
from federation.weights import Weights, counters

MATRIX_PARTS: Mapping[str, torch.dtype] = {"indptr": torch.int32, "indices": torch.int32, "data": torch.float32}


@dataclass(frozen=True)
class KeyedModel:
    """A keyed model, or a weighted mean of several under one key.

    Attributes:
        matrices: by layer, What = A_i [W b; 0 1] A_{i-1}^-1, float32, columns sorted within rows.
        vectors: float32 [length] by name; see `PixelForm.vectors`.
        counters: integer tensors, by name.
    """

    matrices: Mapping[str, scipy.sparse.csr_array]
    vectors: Mapping[str, np.ndarray]
    counters: Mapping[str, Tensor]

    def to_bytes(self) -> bytes:
        """The model as a message."""
        parts: dict[str, Tensor] = {}
        for name, matrix in self.matrices.items():
            parts |= matrix_tensors(name, matrix)
        return tensors_to_bytes(
            parts | {name: torch.from_numpy(vector) for name, vector in self.vectors.items()} | dict(self.counters)
        )

    @classmethod
    def from_bytes(cls, payload: bytes, form: PixelForm, where: str) -> KeyedModel:
        """Read what `to_bytes` wrote.

        The places of the entries depend on the key, so that they are checked for being places at all: a receiver with
        the key compares them with its own, the server those of one client with another's.

        Raises:
            MalformedMessage: for other tensors than the form's, wrong types or lengths, values that are not finite,
                columns out of range or out of order, or a last row that is not (0 ... 0 1).
        """
        tensors = raw_tensors_from_bytes(payload, where)
        specs = counters(form.layout)
        names = {f"{name}.{part}" for name in form.layers for part in MATRIX_PARTS}
        names |= {*form.vectors, *(spec.name for spec in specs)}
        if tensors.keys() != names:
            raise MalformedMessage(f"{where}: missing or unknown tensors {sorted(tensors.keys() ^ names)[:3]}")
        exact = tensors_from_bytes(tensors_to_bytes({spec.name: tensors[spec.name] for spec in specs}), specs, where)
        vectors = {
            name: _vector(tensors, name, torch.float32, where, length=size) for name, size in form.vectors.items()
        }
        matrices = {name: read_matrix(tensors, name, step.layout.shape, where) for name, step in form.layers.items()}
        return cls(matrices, vectors, exact)


def matrix_tensors(name: str, matrix: scipy.sparse.csr_array) -> dict[str, Tensor]:
    """A matrix as tensors "NAME.indptr", "NAME.indices" (int32) and "NAME.data" (float32)."""
    return {f"{name}.{part}": torch.from_numpy(getattr(matrix, part)).to(dtype) for part, dtype in MATRIX_PARTS.items()}


def read_matrix(tensors: Weights, name: str, shape: tuple[int, int], where: str) -> scipy.sparse.csr_array:
    """The matrix of this shape that `matrix_tensors` wrote; raises as `KeyedModel.from_bytes`."""
    parts = {part: _vector(tensors, f"{name}.{part}", dtype, where) for part, dtype in MATRIX_PARTS.items()}
    return _matrix(parts, shape, f"{where}: layer {name!r}")


def _vector(tensors: Weights, name: str, dtype: torch.dtype, where: str, *, length: int | None = None) -> np.ndarray:
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.dim() != 1 or (length is not None and len(tensor) != length):
        due = "" if length is None else f" of length {length}"
        raise MalformedMessage(
            f"{where}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}; a vector of {dtype}{due} is due"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise MalformedMessage(f"{where}: tensor {name!r} holds values that are not finite")
    return np.asarray(tensor.numpy())


def _matrix(parts: Mapping[str, Any], shape: tuple[int, int], where: str) -> scipy.sparse.csr_array:
    indptr, indices, data = parts["indptr"], parts["indices"], parts["data"]
    rows, columns = shape
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or np.any(indptr[1:] < indptr[:-1]):
        raise MalformedMessage(f"{where}: its row pointers do not divide {len(indices)} entries into {rows} rows")
    if len(indices) != len(data):
        raise MalformedMessage(f"{where}: {len(indices)} columns for {len(data)} values")
    if len(indices) and not 0 <= indices.min() <= indices.max() < columns:
        raise MalformedMessage(f"{where}: its columns are not all between 0 and {columns - 1}")
    starts_row = np.zeros(len(indices) + 1, dtype=bool)
    starts_row[indptr] = True
    if np.any((indices[1:] <= indices[:-1]) & ~starts_row[1:-1]):
        raise MalformedMessage(f"{where}: columns within a row do not increase")
    last = slice(indptr[-2], indptr[-1])
    if indices[last].tolist() != [columns - 1] or data[last].tolist() != [1.0]:
        raise MalformedMessage(f"{where}: its last row is not (0 ... 0 1)")
    return scipy.sparse.csr_array((data, indices, indptr), shape=shape)
