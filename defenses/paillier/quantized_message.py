"""Messages of quantised updates under Paillier: an encrypted sum, and what it adds to, sealed between clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from defenses.paillier.message import PaillierMessage, exponents_to_bytes
from defenses.paillier.sealed import OVERHEAD
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_from_bytes, tensors_to_bytes
from federation.weights import Layout, Weights, floating

_BASE, _BOUNDS, _SEALED, _ROUND = "paillier.base", "paillier.bounds", "sealed", "base.round"


@dataclass(frozen=True)
class QuantisedMessage:
    """A contribution (without a base), the initial model (without a total), or a global message (with both).

    Attributes:
        base: the sealed global weights that the total adds to.
        bounds: the sealed exponents that the cohort agreed on; empty without a total.
        total: one client's quantised difference or their sum. Its own exponents are zero: the true ones are sealed.
    """

    base: bytes = b""
    bounds: bytes = b""
    total: PaillierMessage | None = None

    def to_bytes(self) -> bytes:
        """The message's payload."""
        tensors = {} if self.total is None else raw_tensors_from_bytes(self.total.to_bytes(), "own total")
        return tensors_to_bytes({**tensors, _BASE: _as_tensor(self.base), _BOUNDS: _as_tensor(self.bounds)})

    @classmethod
    def from_bytes(cls, payload: bytes, layout: Layout, where: str) -> QuantisedMessage:
        """Read a payload; raises MalformedMessage for anything else, but opens nothing."""
        tensors = raw_tensors_from_bytes(payload, where)
        base, bounds = (_as_bytes(tensors.pop(name, None), where) for name in (_BASE, _BOUNDS))
        base_size, bounds_size = _sealed_sizes(tuple(layout))
        if len(base) not in (0, base_size):
            raise MalformedMessage(f"{where}: {len(base)} bytes of sealed weights; there must be {base_size}, or none")
        if not tensors and base and not bounds:
            return cls(base)
        if len(bounds) != bounds_size:
            raise MalformedMessage(f"{where}: {len(bounds)} bytes of sealed bounds; there must be {bounds_size}")
        total = PaillierMessage.from_bytes(tensors_to_bytes(tensors), layout, where)
        if any(total.occasion.exponents):
            raise MalformedMessage(f"{where}: exponents in clear; they must be zero, the true ones are sealed")
        return cls(base, bounds, total)


def base_to_bytes(weights: Weights, round_number: int) -> bytes:
    """What is sealed as a base: the global weights at the start of a round, and the round."""
    return tensors_to_bytes({**weights, _ROUND: torch.tensor([round_number], dtype=torch.int64)})


def base_from_bytes(content: bytes, layout: Layout, where: str) -> tuple[Weights, int]:
    """The inverse of `base_to_bytes`; raises MalformedMessage for anything else."""
    tensors = raw_tensors_from_bytes(content, where)
    number = tensors.pop(_ROUND, torch.zeros(0))
    if number.dtype != torch.int64 or number.shape != (1,):
        raise MalformedMessage(f"{where}: the round must be one int64")
    return tensors_from_bytes(tensors_to_bytes(tensors), layout, where), int(number)


def sealed_to_bytes(sealed: bytes) -> bytes:
    """One client's sealed bounds, or a base, on the way to the server."""
    return tensors_to_bytes({_SEALED: _as_tensor(sealed)})


def bounds_from_bytes(payload: bytes, layout: Layout, where: str) -> bytes:
    """Sealed bounds of one client; raises MalformedMessage for anything else."""
    return _sealed_from_bytes(payload, _sealed_sizes(tuple(layout))[1], where)


def sealed_base_from_bytes(payload: bytes, layout: Layout, where: str) -> bytes:
    """A sealed base; raises MalformedMessage for anything else."""
    return _sealed_from_bytes(payload, _sealed_sizes(tuple(layout))[0], where)


def offers_to_bytes(offers: Mapping[str, bytes]) -> bytes:
    """The cohort's sealed bounds by client, on the way to each of them."""
    return tensors_to_bytes({client: _as_tensor(sealed) for client, sealed in offers.items()})


def offers_from_bytes(payload: bytes, layout: Layout, cohort: tuple[str, ...], where: str) -> dict[str, bytes]:
    """The inverse of `offers_to_bytes`, in the cohort's order; raises MalformedMessage unless all are there."""
    tensors = raw_tensors_from_bytes(payload, where)
    if tensors.keys() != set(cohort):
        raise MalformedMessage(
            f"{where}: sealed bounds of each of {cohort} are due, there are those of {sorted(tensors)}"
        )
    _, size = _sealed_sizes(tuple(layout))
    return {client: _of_size(tensors[client], size, where) for client in cohort}


def _sealed_from_bytes(payload: bytes, size: int, where: str) -> bytes:
    tensors = raw_tensors_from_bytes(payload, where)
    if tensors.keys() != {_SEALED}:
        raise MalformedMessage(f"{where}: expected one sealed content, found {sorted(tensors)}")
    return _of_size(tensors[_SEALED], size, where)


def _of_size(tensor: Tensor, size: int, where: str) -> bytes:
    content = _as_bytes(tensor, where)
    if len(content) != size:
        raise MalformedMessage(f"{where}: {len(content)} sealed bytes; there must be {size}")
    return content


@lru_cache(maxsize=4)
def _sealed_sizes(layout: Layout) -> tuple[int, int]:
    """Bytes of a sealed base and of sealed bounds: both depend on the layout alone."""
    zeros = {spec.name: torch.zeros(spec.shape, dtype=spec.dtype) for spec in layout}
    bounds = exponents_to_bytes((0,) * len(floating(layout)))
    return len(base_to_bytes(zeros, 0)) + OVERHEAD, len(bounds) + OVERHEAD


def _as_tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def _as_bytes(tensor: Tensor | None, where: str) -> bytes:
    if tensor is None or tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise MalformedMessage(f"{where}: a vector of sealed bytes is missing or of another type")
    return tensor.numpy().tobytes()
