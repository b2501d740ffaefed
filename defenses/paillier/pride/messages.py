"""PriDe's messages: keys, the broadcast of weights in clear and encrypted, and what a party returns."""

from __future__ import annotations

import torch
from phe.paillier import PaillierPrivateKey, PaillierPublicKey
from torch import Tensor

from defenses.paillier import keys
from defenses.paillier.pride.rules import Rules
from federation.encrypted_numbers import EncryptedNumbers
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_from_bytes, tensors_to_bytes
from federation.weights import Weights, check_layout, counters

NAME = "paillier-pride"

_PUBLIC, _SECRET = f"{NAME}.public", f"{NAME}.secret"


def broadcast_to_bytes(weights: Weights, numbers: EncryptedNumbers) -> bytes:
    """The global weights in clear, under their own names, and encrypted number by number."""
    return tensors_to_bytes(weights | numbers.to_tensors())


def broadcast_from_bytes(payload: bytes, rules: Rules, where: str) -> tuple[Weights, EncryptedNumbers]:
    """The inverse of `broadcast_to_bytes`; raises MalformedMessage."""
    tensors = raw_tensors_from_bytes(payload, where)
    numbers = _numbers_from(tensors, rules, where)
    check_layout(tensors, rules.layout, where)
    return {spec.name: tensors[spec.name] for spec in rules.layout}, numbers


def upload_to_bytes(numbers: EncryptedNumbers, exact: Weights) -> bytes:
    """Encrypted numbers, and counters in clear."""
    return tensors_to_bytes(numbers.to_tensors() | exact)


def upload_from_bytes(payload: bytes, rules: Rules, where: str) -> tuple[EncryptedNumbers, Weights]:
    """The inverse of `upload_to_bytes`; raises MalformedMessage."""
    tensors = raw_tensors_from_bytes(payload, where)
    numbers = _numbers_from(tensors, rules, where)
    check_layout(tensors, counters(rules.layout), where)
    return numbers, tensors


def release_from_bytes(payload: bytes, rules: Rules, where: str) -> Weights:
    """Weights in clear, as `tensors_to_bytes` writes them; raises MalformedMessage."""
    return tensors_from_bytes(payload, rules.layout, where)


def keys_to_bytes(public_key: PaillierPublicKey, private_key: PaillierPrivateKey | None = None) -> bytes:
    """The modulus, and the private key where there is one to hold or to publish."""
    parts = {_PUBLIC: keys.public_key_to_bytes(public_key)}
    if private_key is not None:
        parts[_SECRET] = keys.private_key_to_bytes(private_key)
    return tensors_to_bytes({name: torch.tensor(list(part), dtype=torch.uint8) for name, part in parts.items()})


def keys_from_bytes(payload: bytes, key_bits: int, where: str) -> tuple[PaillierPublicKey, PaillierPrivateKey | None]:
    """The inverse of `keys_to_bytes`; raises MalformedMessage, also for a key of another length than agreed."""
    tensors = raw_tensors_from_bytes(payload, where)
    well_formed = all(tensor.dtype == torch.uint8 and tensor.dim() == 1 for tensor in tensors.values())
    if _PUBLIC not in tensors or tensors.keys() - {_PUBLIC, _SECRET} or not well_formed:
        raise MalformedMessage(f"{where}: not key material of {NAME}")
    content = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    if 8 * len(content[_PUBLIC]) != key_bits:
        raise MalformedMessage(f"{where}: a modulus of {8 * len(content[_PUBLIC])} bits; agreed are {key_bits}")
    public_key = keys.public_key_from_bytes(content[_PUBLIC], allow_small=True)
    if _SECRET not in content:
        return public_key, None
    private_key = keys.private_key_from_bytes(content[_SECRET], allow_small=True)
    if private_key.public_key != public_key:
        raise MalformedMessage(f"{where}: the private key is not the one of the modulus")
    return public_key, private_key


def _numbers_from(tensors: dict[str, Tensor], rules: Rules, where: str) -> EncryptedNumbers:
    numbers = EncryptedNumbers.take_from(tensors, where)
    due = rules.sent.stop - rules.sent.start
    if len(numbers.ciphertexts) != due:
        raise MalformedMessage(f"{where}: {len(numbers.ciphertexts)} encrypted numbers; {due} are due")
    return numbers
