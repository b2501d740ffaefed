"""The wire format of individually encrypted numbers: Paillier ciphertexts beside the public exponents of `phe`.

A number is a signed plaintext m, |m| < n / 2, times 16^exponent; its ciphertext is an encryption of m mod n. Numbers
stand in the order of `flatten(weights, floating(layout))`. The format is public: a protocol writes it, and whoever reads
the wire reads it as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.errors import MalformedMessage

LARGEST_EXPONENT = 1024
"""In magnitude: 16^-1024 to 16^1024 holds every float64, also after many divisions."""

_SMALLEST_MODULUS_BYTES = 16


@dataclass(frozen=True, eq=False)
class EncryptedNumbers:
    """Numbers encrypted one by one under one Paillier key.

    Attributes:
        modulus: the public n.
        ciphertexts: [count], each in (0, n^2).
        exponents: int32 [count], within +-LARGEST_EXPONENT; number i is its plaintext * 16^exponents[i].
    """

    modulus: int
    ciphertexts: tuple[int, ...]
    exponents: NDArray[np.int32]

    def to_tensors(self) -> dict[str, Tensor]:
        """The numbers as named tensors for a message; big integers are big-endian bytes of fixed length.

        Returns:
            "encrypted.modulus" uint8 [bytes of n], "encrypted.ciphertexts" uint8 [count, 2 * bytes of n] and
            "encrypted.exponents" int32 [count].
        """
        size = _byte_length(self.modulus)
        rows = np.frombuffer(b"".join(value.to_bytes(2 * size, "big") for value in self.ciphertexts), np.uint8)
        return {
            "encrypted.modulus": torch.tensor(list(self.modulus.to_bytes(size, "big")), dtype=torch.uint8),
            "encrypted.ciphertexts": torch.from_numpy(rows.reshape(len(self.ciphertexts), 2 * size).copy()),
            "encrypted.exponents": torch.from_numpy(self.exponents.astype(np.int32)),
        }

    @classmethod
    def take_from(cls, tensors: dict[str, Tensor], where: str) -> EncryptedNumbers:
        """Take the numbers out of a message's tensors; the others stay.

        Args:
            tensors: a message's tensors by name; those of the numbers are removed.
            where: what the message is, for the error's text.

        Raises:
            MalformedMessage: where a tensor is missing or has another dtype or shape, or a value is out of range.
        """
        fields = [tensors.pop(f"encrypted.{field}", None) for field in ("modulus", "ciphertexts", "exponents")]
        modulus = _modulus_from(fields[0], where)
        ciphertexts = _ciphertexts_from(fields[1], modulus, where)
        return cls(modulus, ciphertexts, _exponents_from(fields[2], len(ciphertexts), where))


def _byte_length(modulus: int) -> int:
    return (modulus.bit_length() + 7) // 8


def _modulus_from(tensor: Tensor | None, where: str) -> int:
    if tensor is None or tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise MalformedMessage(f"{where}: no vector of bytes with the modulus of encrypted numbers")
    if len(tensor) < _SMALLEST_MODULUS_BYTES or not tensor[0]:
        raise MalformedMessage(
            f"{where}: the modulus of encrypted numbers must have {_SMALLEST_MODULUS_BYTES} bytes or more, the first not 0"
        )
    return int.from_bytes(tensor.numpy().tobytes(), "big")


def _ciphertexts_from(tensor: Tensor | None, modulus: int, where: str) -> tuple[int, ...]:
    width = 2 * _byte_length(modulus)
    if tensor is None or tensor.dtype != torch.uint8 or tensor.dim() != 2 or tensor.shape[1] != width:
        raise MalformedMessage(f"{where}: no table of ciphertexts of {width} bytes each")
    ciphertexts = tuple(int.from_bytes(row.tobytes(), "big") for row in tensor.numpy())
    limit = modulus * modulus
    for index, ciphertext in enumerate(ciphertexts):
        if not 0 < ciphertext < limit:
            raise MalformedMessage(f"{where}: ciphertext {index} is outside 1 to n^2 - 1")
    return ciphertexts


def _exponents_from(tensor: Tensor | None, count: int, where: str) -> NDArray[np.int32]:
    if tensor is None or tensor.dtype != torch.int32 or tensor.shape != (count,):
        raise MalformedMessage(f"{where}: the exponents must be one int32 for each of the {count} ciphertexts")
    exponents: NDArray[np.int32] = tensor.numpy().copy()
    outside = np.flatnonzero(np.abs(exponents.astype(np.int64)) > LARGEST_EXPONENT)
    if outside.size:
        raise MalformedMessage(
            f"{where}: exponent {outside[0]} is {exponents[outside[0]]}; it must be within +-{LARGEST_EXPONENT}"
        )
    return exponents
