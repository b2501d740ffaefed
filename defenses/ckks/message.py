"""The CKKS protocol's messages: ciphertexts, and how many contributions they are the sum of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from defenses.ckks.grid import ciphertexts_for
from defenses.ckks.ring import LARGEST_SUM, Words, words_from_bytes, words_to_bytes
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_from_bytes, tensors_to_bytes
from federation.weights import Layout, Weights, counters, floating


@dataclass(frozen=True)
class CkksMessage:
    """The ciphertexts of a sum of `contributions` contributions, and the counters in clear."""

    words: Words
    contributions: int
    counters: Weights

    def to_bytes(self) -> bytes:
        """The message's payload."""
        return tensors_to_bytes(
            {
                "ckks.ciphertexts": torch.frombuffer(bytearray(words_to_bytes(self.words)), dtype=torch.uint8),
                "ckks.contributions": torch.tensor([self.contributions], dtype=torch.int32),
            }
            | self.counters
        )

    @classmethod
    def from_bytes(cls, payload: bytes, layout: Layout, where: str) -> CkksMessage:
        """Read a payload; raises MalformedMessage for anything but well-formed ciphertexts of this layout."""
        tensors = raw_tensors_from_bytes(payload, where)
        ciphertexts, contributions = (
            tensors.pop(f"ckks.{field}", torch.zeros(0)) for field in ("ciphertexts", "contributions")
        )
        if ciphertexts.dtype != torch.uint8 or ciphertexts.dim() != 1:
            raise MalformedMessage(f"{where}: no vector of ciphertext bytes")
        if (
            contributions.dtype != torch.int32
            or contributions.shape != (1,)
            or not 1 <= int(contributions) <= LARGEST_SUM
        ):
            raise MalformedMessage(f"{where}: the number of contributions must be one int32 in 1 to {LARGEST_SUM}")
        count = sum(spec.size for spec in floating(layout))
        words = words_from_bytes(ciphertexts.numpy().tobytes(), ciphertexts_for(count), where)
        exact = tensors_from_bytes(tensors_to_bytes(tensors), counters(layout), where)
        return cls(words, int(contributions), exact)
