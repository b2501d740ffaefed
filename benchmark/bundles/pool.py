"""Tensors by what they hold, so that what several observations share is kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from federation.errors import DataError
from federation.weights import Weights


class Pool:
    """Tensors under the hash of their type, shape and values.

    Args:
        tensors: what it begins with.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.tensors: Weights = dict(tensors or {})

    def add(self, tensor: Tensor) -> str:
        """Keep a tensor, unless its equal is kept, and return its name."""
        kept = tensor.detach().cpu().contiguous()
        content = kept.reshape(-1).view(torch.uint8).numpy().tobytes()
        name = hashlib.sha256(f"{kept.dtype} {list(kept.shape)}\n".encode() + content).hexdigest()[:24]
        self.tensors.setdefault(name, kept.clone())
        return name

    def add_bytes(self, content: bytes) -> str:
        """Keep bytes as a tensor of them."""
        return self.add(torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0).byte())

    def add_all(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Keep named tensors; their names in the pool by their own."""
        return {name: self.add(tensor) for name, tensor in tensors.items()}

    def get(self, name: str) -> Tensor:
        """The tensor of this name; raises DataError where there is none."""
        if name not in self.tensors:
            raise DataError(f"it refers to a tensor {name!r} that it does not hold")
        return self.tensors[name]

    def get_bytes(self, name: str) -> bytes:
        """What `add_bytes` kept; raises DataError for another kind of tensor."""
        tensor = self.get(name)
        if tensor.dtype != torch.uint8 or tensor.dim() != 1:
            raise DataError(f"tensor {name!r} should be bytes, not {tensor.dtype} {list(tensor.shape)}")
        return tensor.numpy().tobytes()

    def get_all(self, names: Mapping[str, str]) -> Weights:
        """What `add_all` kept."""
        return {own: self.get(name) for own, name in names.items()}
