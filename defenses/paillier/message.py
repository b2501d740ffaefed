"""The Paillier protocol's messages: packed ciphertexts, and in clear what they are the sum of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defenses.paillier.codec import LARGEST_EXPONENT, SMALLEST_EXPONENT
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_from_bytes, tensors_to_bytes
from federation.weights import Layout, Weights, counters, floating

_LARGEST_COHORT = 10_000
_SEPARATOR = "\n"
_FIELDS = ("ciphertexts", "round", "cohort", "exponents")


@dataclass(frozen=True)
class Occasion:
    """What contributions have in common whose sum means something.

    Attributes:
        round: the round's number, from 0.
        cohort: wire names of the clients whose contributions are summed, in the round's order.
        exponents: the agreed bound 2^e of every averaged tensor.
    """

    round: int
    cohort: tuple[str, ...]
    exponents: tuple[int, ...]


@dataclass(frozen=True)
class PaillierMessage:
    """Ciphertexts of one contribution or of a sum, the occasion of the sum, and counters in clear."""

    ciphertexts: bytes
    occasion: Occasion
    counters: Weights

    def to_bytes(self) -> bytes:
        """The message's payload."""
        return tensors_to_bytes(
            {
                "paillier.ciphertexts": _bytes_as_tensor(self.ciphertexts),
                "paillier.round": torch.tensor([self.occasion.round], dtype=torch.int64),
                "paillier.cohort": _bytes_as_tensor(_SEPARATOR.join(self.occasion.cohort).encode("ascii")),
                "paillier.exponents": _exponents_as_tensor(self.occasion.exponents),
            }
            | self.counters
        )

    @classmethod
    def from_bytes(cls, payload: bytes, layout: Layout, where: str) -> PaillierMessage:
        """Read a payload; raises MalformedMessage for anything else, but does not look into the ciphertexts."""
        tensors = raw_tensors_from_bytes(payload, where)
        ciphertexts, number, cohort, exponents = (tensors.pop(f"paillier.{field}", torch.zeros(0)) for field in _FIELDS)
        if ciphertexts.dtype != torch.uint8 or ciphertexts.dim() != 1:
            raise MalformedMessage(f"{where}: no vector of ciphertext bytes")
        if number.dtype != torch.int64 or number.shape != (1,) or not 0 <= int(number) < 1 << 32:
            raise MalformedMessage(f"{where}: the round must be one int64 from 0 to 2^32 - 1")
        occasion = Occasion(int(number), _checked_cohort(cohort, where), _checked_exponents(exponents, layout, where))
        exact = tensors_from_bytes(tensors_to_bytes(tensors), counters(layout), where)
        return cls(ciphertexts.numpy().tobytes(), occasion, exact)


def exponents_to_bytes(exponents: tuple[int, ...]) -> bytes:
    """The bounds of an exchange: one int16 exponent for each averaged tensor."""
    return tensors_to_bytes({"exponents": _exponents_as_tensor(exponents)})


def exponents_from_bytes(payload: bytes, layout: Layout, where: str) -> tuple[int, ...]:
    """Read what `exponents_to_bytes` wrote for this layout; raises MalformedMessage for anything else."""
    tensors = raw_tensors_from_bytes(payload, where)
    if tensors.keys() != {"exponents"}:
        raise MalformedMessage(f"{where}: expected exponents alone, found {sorted(tensors)}")
    return _checked_exponents(tensors["exponents"], layout, where)


def _bytes_as_tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def _exponents_as_tensor(exponents: tuple[int, ...]) -> Tensor:
    return torch.tensor(exponents, dtype=torch.int16)


def _checked_cohort(names: Tensor, where: str) -> tuple[str, ...]:
    content = names.numpy().tobytes() if names.dtype == torch.uint8 and names.dim() == 1 else b""
    cohort = tuple(content.decode("ascii", errors="replace").split(_SEPARATOR))
    if not content.isascii() or not all(cohort) or len(set(cohort)) < len(cohort) or len(cohort) > _LARGEST_COHORT:
        raise MalformedMessage(f"{where}: the cohort must be 1 to {_LARGEST_COHORT} different names in ASCII")
    return cohort


def _checked_exponents(exponents: Tensor, layout: Layout, where: str) -> tuple[int, ...]:
    if exponents.dtype != torch.int16 or exponents.shape != (len(floating(layout)),):
        raise MalformedMessage(f"{where}: the bounds must be one int16 exponent for each of the averaged tensors")
    if len(exponents) and not SMALLEST_EXPONENT <= int(exponents.min()) <= int(exponents.max()) <= LARGEST_EXPONENT:
        raise MalformedMessage(f"{where}: an exponent is outside {SMALLEST_EXPONENT} to {LARGEST_EXPONENT}")
    return tuple(exponents.tolist())
