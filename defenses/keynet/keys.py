"""The keys of a network: one a channel space, how they are drawn, what they must respect, and their bytes.

Byrne, DeCann and Bloom, "Key-Nets: Optical Transformation Convolutional Networks for Privacy Preserving Vision
Sensors" (2020), with one key a channel instead of one a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from defenses.keynet.mixing import MixingKey, OrthogonalKey, SoftKey
from defenses.keynet.monomial import LARGEST_GAIN, ChannelKey, Floats, Integers
from defenses.keynet.policy import KeyPolicy
from federation.channels import ChannelMap, ChannelSpace
from federation.errors import MalformedMessage, UsageError
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.secret_root import SecretRoot

__all__ = [
    "LARGEST_GAIN", "ChannelKey", "ChannelKeys", "Floats", "Integers", "Key", "KeyPolicy", "draw_keys", "fit_fault",
    "identity_keys",
]  # fmt: skip

Key: TypeAlias = ChannelKey | MixingKey

_MONOMIAL = KeyPolicy()


@dataclass(frozen=True)
class ChannelKeys:
    """One key a channel space, in the order of the map's spaces."""

    keys: tuple[Key, ...]

    @property
    def condition_numbers(self) -> tuple[float, ...]:
        """cond(A) of every space; a kernel's transform has the product of its two spaces' numbers."""
        return tuple(key.condition_number for key in self.keys)

    @property
    def monomial(self) -> tuple[ChannelKey, ...]:
        """The keys, for uses that need permutations and gains; raises UsageError where one mixes channels."""
        found = tuple(key for key in self.keys if isinstance(key, ChannelKey))
        if len(found) < len(self.keys):
            raise UsageError("monomial keys are needed here; some of these mix channels")
        return found

    def after(self, first: ChannelKeys) -> ChannelKeys:
        """The products, space by space, of keys of one policy; `first` is applied first."""
        return ChannelKeys(tuple(_product(*pair) for pair in zip(self.keys, first.keys, strict=True)))

    def tensors(self) -> dict[str, Tensor]:
        """The keys as named tensors: index of the space, a dot, name of the part."""
        return {
            f"{index}.{part}": torch.from_numpy(np.ascontiguousarray(getattr(key, part)))
            for index, key in enumerate(self.keys)
            for part in key.parts
        }

    def to_bytes(self) -> bytes:
        """The keys as a message (safetensors)."""
        return tensors_to_bytes(self.tensors())

    @classmethod
    def from_bytes(cls, payload: bytes, channel_map: ChannelMap, policy: KeyPolicy = _MONOMIAL) -> ChannelKeys:
        """Read what `to_bytes` wrote.

        Raises:
            MalformedMessage: for anything but one valid key for every channel space of the map, each of a kind that the
                policy has for that space.
        """
        return cls.from_tensors(raw_tensors_from_bytes(payload, "channel keys"), channel_map, policy, "channel keys")

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], channel_map: ChannelMap, policy: KeyPolicy, where: str
    ) -> ChannelKeys:
        """Read what `tensors` wrote; raises like `from_bytes`."""
        unread = dict(tensors)
        keys = []
        for space in channel_map.spaces:
            try:
                keys.append(_take_key(unread, space, policy))
            except UsageError as error:
                raise MalformedMessage(f"{where}: space {space.index}: {error}") from error
        if unread:
            raise MalformedMessage(f"{where}: missing or unknown tensors: {sorted(unread)[:3]} are unknown")
        found = cls(tuple(keys))
        fault = fit_fault(found, channel_map)
        if fault:
            raise MalformedMessage(f"{where}: {fault}")
        return found


def _take_key(tensors: dict[str, Tensor], space: ChannelSpace, policy: KeyPolicy) -> Key:
    """Build the key of a space and take its tensors out; raises UsageError for what is no key or not of its kind."""
    for key_class in policy.key_classes(space):
        names = [f"{space.index}.{part}" for part in key_class.parts]
        if all(name in tensors for name in names):
            return key_class(*(tensors.pop(name).numpy() for name in names))
    due = " or ".join(" and ".join(key_class.parts) for key_class in policy.key_classes(space))
    raise UsageError(f"missing or unknown tensors; a {policy.kind_of(space)} key has {due}")


def _product(second: Key, first: Key) -> Key:
    if isinstance(second, ChannelKey) and isinstance(first, ChannelKey):
        return second.after(first)
    assert isinstance(second, MixingKey), "keys of one policy are of one kind in every space"
    assert isinstance(first, MixingKey), "keys of one policy are of one kind in every space"
    return second.after(first)


def draw_keys(channel_map: ChannelMap, root: SecretRoot, policy: KeyPolicy) -> ChannelKeys:
    """Draw one key a channel space; the same root, map and policy give the same keys.

    Channels that a grouped convolution ties together stay together: the order of the blocks is drawn once a family (and
    is the identity where the policy keeps one of its spaces in order), the order inside each block on its own.

    Raises:
        UsageError: for a space that is too wide for a key that mixes it.
    """
    fixed_families = {space.block_family for space in channel_map.spaces if not policy.permutes(space)}
    keys: list[Key] = []
    for space in channel_map.spaces:
        stream = root.derive("channel key", space.index).reader()
        if policy.kind_of(space) == "orthogonal":
            keys.append(OrthogonalKey.draw(space.size, stream))
            continue
        if space.block_family is None or space.block_family in fixed_families:
            block_order = np.arange(space.blocks)
        else:
            block_order = root.derive("block order", space.block_family).reader().permutation(space.blocks)
        width = space.size // space.blocks
        if policy.permutes(space):
            inside = np.stack([stream.permutation(width) for _ in range(space.blocks)])
        else:
            inside = np.tile(np.arange(width), (space.blocks, 1))
        permutation = (block_order[:, None] * width + inside).ravel()
        spread = math.log(policy.gain_range) if policy.scales(space) else 0.0
        gains = np.exp(spread * (2 * stream.uniform(space.size) - 1))
        if policy.kind_of(space) == "soft":
            keys.append(SoftKey.draw(permutation, gains, policy.alpha, policy.dominance, stream))
        else:
            keys.append(ChannelKey(permutation, gains))
    return ChannelKeys(tuple(keys))


def identity_keys(channel_map: ChannelMap) -> ChannelKeys:
    """Keys that change nothing: the leaky twin of a keyed federation."""
    return ChannelKeys(tuple(ChannelKey(np.arange(space.size), np.ones(space.size)) for space in channel_map.spaces))


def fit_fault(keys: ChannelKeys, channel_map: ChannelMap) -> str | None:
    """Why the keys do not fit the map: their number, a size, or blocks torn apart; None where they do."""
    if len(keys.keys) != len(channel_map.spaces):
        return f"{len(keys.keys)} keys for {len(channel_map.spaces)} channel spaces"
    family_orders: dict[int, Sequence[int]] = {}
    for key, space in zip(keys.keys, channel_map.spaces, strict=True):
        if key.size != space.size:
            return f"space {space.index} has {space.size} channels, its key {key.size}"
        if space.block_family is None:
            continue
        if not isinstance(key, ChannelKey):
            return f"space {space.index}: a grouped convolution needs a monomial key"
        sources = (key.permutation // (space.size // space.blocks)).reshape(space.blocks, -1)
        if not np.array_equal(sources.min(axis=1), sources.max(axis=1)):
            return f"space {space.index}: the permutation tears the groups of a grouped convolution apart"
        order = sources[:, 0].tolist()
        if family_orders.setdefault(space.block_family, order) != order:
            return (
                f"space {space.index}: the groups of a grouped convolution stand in another order than in its partner"
            )
    return None
