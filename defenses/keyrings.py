"""The serialised form of what parties hold: a keyring by stage, and the key agent's keyrings by party."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from defenses.stages import KeyMaterial, Stage
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes

Keyring: TypeAlias = Mapping[str, KeyMaterial]
"""A party's key material by stage name."""


def keyring_to_bytes(keyring: Keyring) -> bytes:
    """A party's key material by stage name, as named byte tensors."""
    return tensors_to_bytes(_tensors(keyring))


def keyring_from_bytes(content: bytes, stages: Sequence[Stage], where: str) -> dict[str, KeyMaterial]:
    """Read what `keyring_to_bytes` wrote for these stages; raises MalformedMessage for anything else."""
    return _keyring(raw_tensors_from_bytes(content, where), stages, where)


def keyrings_to_bytes(keyrings: Mapping[str, Keyring]) -> bytes:
    """Several parties' keyrings, by party."""
    return tensors_to_bytes(
        {f"{party}/{name}": part for party, keyring in keyrings.items() for name, part in _tensors(keyring).items()}
    )


def keyrings_from_bytes(content: bytes, stages: Sequence[Stage], where: str) -> dict[str, dict[str, KeyMaterial]]:
    """Read what `keyrings_to_bytes` wrote for these stages; raises MalformedMessage for anything else."""
    by_party: dict[str, dict[str, Tensor]] = {}
    for name, part in raw_tensors_from_bytes(content, where).items():
        party, _, rest = name.partition("/")
        by_party.setdefault(party, {})[rest] = part
    return {party: _keyring(tensors, stages, f"{where}, {party}") for party, tensors in by_party.items()}


def _tensors(keyring: Keyring) -> dict[str, Tensor]:
    parts = {}
    for name, material in keyring.items():
        parts[f"{name}.secret"] = _as_tensor(material.secret)
        parts[f"{name}.public"] = _as_tensor(material.public)
    return parts


def _keyring(tensors: Mapping[str, Tensor], stages: Sequence[Stage], where: str) -> dict[str, KeyMaterial]:
    known = {f"{stage.name}.{part}" for stage in stages for part in ("secret", "public")}
    if tensors.keys() != known or any(t.dtype != torch.uint8 or t.dim() != 1 for t in tensors.values()):
        raise MalformedMessage(f"{where}: not key material for the stages {', '.join(stage.name for stage in stages)}")
    content_of = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return {
        stage.name: KeyMaterial(content_of[f"{stage.name}.secret"], content_of[f"{stage.name}.public"])
        for stage in stages
    }


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)
