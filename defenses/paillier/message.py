"""The Paillier protocol's messages: packed ciphertexts, and the public bounds of the tensors in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defenses.paillier.codec import LARGEST_EXPONENT, SMALLEST_EXPONENT
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_from_bytes, tensors_to_bytes
from federation.weights import Layout, Weights, counters, floating

_LARGEST_COHORT = 10_000


@dataclass(frozen=True)
class PaillierMessage:
    """Ciphertexts of a sum of up to `capacity` contributions, with the public exponents of their tensors' bounds."""

    ciphertexts: bytes
    exponents: Tensor
    capacity: int
    counters: Weights

    def to_bytes(self) -> bytes:
        """The message's payload."""
        return tensors_to_bytes(
            {
                "paillier.ciphertexts": torch.frombuffer(bytearray(self.ciphertexts), dtype=torch.uint8),
                "paillier.exponents": self.exponents,
                "paillier.capacity": torch.tensor([self.capacity], dtype=torch.int32),
            }
            | self.counters
        )

    @classmethod
    def from_bytes(cls, payload: bytes, layout: Layout, where: str) -> PaillierMessage:
        """Read a payload; raises MalformedMessage for anything else, but does not look into the ciphertexts."""
        tensors = raw_tensors_from_bytes(payload, where)
        fields = [
            tensors.pop(f"paillier.{field}", torch.zeros(0)) for field in ("ciphertexts", "exponents", "capacity")
        ]
        ciphertexts, exponents, capacity = fields
        if ciphertexts.dtype != torch.uint8 or ciphertexts.dim() != 1:
            raise MalformedMessage(f"{where}: no vector of ciphertext bytes")
        _check_exponents(exponents, layout, where)
        if capacity.dtype != torch.int32 or capacity.shape != (1,) or not 1 <= int(capacity) <= _LARGEST_COHORT:
            raise MalformedMessage(f"{where}: the number of contributions must be one int32 in 1 to {_LARGEST_COHORT}")
        exact = tensors_from_bytes(tensors_to_bytes(tensors), counters(layout), where)
        return cls(ciphertexts.numpy().tobytes(), exponents, int(capacity), exact)


def exponents_from(payload: bytes, layout: Layout, where: str) -> Tensor:
    """Read the bounds of an exchange: int16, one exponent for each averaged tensor; raises MalformedMessage."""
    tensors = raw_tensors_from_bytes(payload, where)
    if tensors.keys() != {"exponents"}:
        raise MalformedMessage(f"{where}: expected exponents alone, found {sorted(tensors)}")
    _check_exponents(tensors["exponents"], layout, where)
    return tensors["exponents"]


def _check_exponents(exponents: Tensor, layout: Layout, where: str) -> None:
    if exponents.dtype != torch.int16 or exponents.shape != (len(floating(layout)),):
        raise MalformedMessage(f"{where}: the bounds must be one int16 exponent for each of the averaged tensors")
    if len(exponents) and not SMALLEST_EXPONENT <= int(exponents.min()) <= int(exponents.max()) <= LARGEST_EXPONENT:
        raise MalformedMessage(f"{where}: an exponent is outside {SMALLEST_EXPONENT} to {LARGEST_EXPONENT}")
