"""Messages of encrypted numbers as the bytes that cross the wire; whoever reads, reads from these."""

from __future__ import annotations

from collections.abc import Sequence

from phe.paillier import EncryptedNumber, PaillierPublicKey

from defenses.paillier.pride import arithmetic
from federation.encrypted_numbers import EncryptedNumbers
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes


def written(encrypted: Sequence[EncryptedNumber], *, randomised: bool) -> bytes:
    """The numbers as a message; `randomised` as for `arithmetic.to_message`."""
    return tensors_to_bytes(arithmetic.to_message(encrypted, randomised=randomised).to_tensors())


def read(payload: bytes) -> EncryptedNumbers:
    """The numbers of a message, for anyone; raises MalformedMessage for other bytes."""
    where = "message of encrypted numbers"
    tensors = raw_tensors_from_bytes(payload, where)
    numbers = EncryptedNumbers.take_from(tensors, where)
    if tensors:
        raise MalformedMessage(f"{where}: holds something besides: {', '.join(sorted(tensors))}")
    return numbers


def opened(payload: bytes, public_key: PaillierPublicKey) -> list[EncryptedNumber]:
    """The numbers as `phe`'s objects, for whoever computes with them."""
    return arithmetic.from_message(read(payload), public_key)
