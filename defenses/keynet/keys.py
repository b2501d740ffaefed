"""Channel keys of Key-Net: for every channel space a positive monomial matrix A = diag(gains) P.

Byrne, DeCann and Bloom, "Key-Nets: Optical Transformation Convolutional Networks for Privacy Preserving Vision
Sensors" (2020), eq. 2.7 with alpha = 1, one key a channel instead of one a pixel. (P v)[i] = v[permutation[i]], so that
(A v)[i] = gains[i] * v[permutation[i]].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from federation.channels import ChannelMap, ChannelSpace
from federation.errors import MalformedMessage, UsageError
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.secret_root import SecretRoot

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LARGEST_GAIN = 2.0**20
"""Gains lie between its inverse and it, so that no ratio of two takes a usual weight out of float32's range."""


@dataclass(frozen=True, eq=False)
class ChannelKey:
    """The key of one channel space.

    Attributes:
        permutation: [channels], which channel stands at each place of the keyed tensor.
        gains: [channels], the positive factor at each place of the keyed tensor.

    Raises:
        UsageError: for anything but a permutation and as many positive gains between 2^-20 and 2^20.
    """

    permutation: Integers
    gains: Floats

    def __post_init__(self) -> None:
        fault = _key_fault(self.permutation, self.gains)
        if fault:
            raise UsageError(f"not a channel key: {fault}")

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.permutation)

    @property
    def condition_number(self) -> float:
        """cond(A) in the 2-norm: the largest gain over the smallest."""
        return float(self.gains.max() / self.gains.min())

    def __repr__(self) -> str:
        return f"ChannelKey(<secret>, size={self.size})"


@dataclass(frozen=True)
class ChannelKeys:
    """One key a channel space, in the order of the map's spaces."""

    keys: tuple[ChannelKey, ...]

    @property
    def condition_numbers(self) -> tuple[float, ...]:
        """cond(A) of every space; a kernel's transform has the product of its two spaces' numbers."""
        return tuple(key.condition_number for key in self.keys)

    def to_bytes(self) -> bytes:
        """The keys as a message (safetensors)."""
        tensors = {}
        for index, key in enumerate(self.keys):
            tensors[f"{index}.permutation"] = torch.from_numpy(key.permutation)
            tensors[f"{index}.gains"] = torch.from_numpy(key.gains)
        return tensors_to_bytes(tensors)

    @classmethod
    def from_bytes(cls, payload: bytes, channel_map: ChannelMap) -> ChannelKeys:
        """Read what `to_bytes` wrote.

        Raises:
            MalformedMessage: for anything but one valid key for every channel space of the map.
        """
        tensors = raw_tensors_from_bytes(payload, "channel keys")
        names = {f"{space.index}.{part}" for space in channel_map.spaces for part in ("permutation", "gains")}
        if tensors.keys() != names:
            odd = sorted(tensors.keys() ^ names)
            raise MalformedMessage(
                f"channel keys: missing or unknown tensors {odd[:3]}; one key a channel space is due"
            )
        keys = []
        for space in channel_map.spaces:
            permutation = tensors[f"{space.index}.permutation"].numpy()
            gains = tensors[f"{space.index}.gains"].numpy()
            fault = _key_fault(permutation, gains)
            if fault:
                raise MalformedMessage(f"channel keys: space {space.index}: {fault}")
            keys.append(ChannelKey(permutation, gains))
        found = cls(tuple(keys))
        fault = fit_fault(found, channel_map)
        if fault:
            raise MalformedMessage(f"channel keys: {fault}")
        return found


@dataclass(frozen=True)
class KeyPolicy:
    """What is drawn for which space.

    Attributes:
        gain_range: gains are log-uniform on [1 / gain_range, gain_range]; 1 means permutations alone.
        outputs: the key of the network's outputs. A permutation hides the order of the labels; "identity" keeps it;
            "monomial" draws gains as well (for weights that are only averaged: such a network computes other classes).

    The input space has the identity: the network reads the plain image. Raises UsageError for a range under 1.
    """

    gain_range: float = 1.0
    outputs: Literal["identity", "permutation", "monomial"] = "permutation"

    def __post_init__(self) -> None:
        if not 1 <= self.gain_range <= LARGEST_GAIN:
            raise UsageError(f"a gain range is between 1 and {LARGEST_GAIN:g}, not {self.gain_range}")
        if self.outputs not in ("identity", "permutation", "monomial"):
            raise UsageError(f"outputs are 'identity', 'permutation' or 'monomial', not {self.outputs!r}")

    def permutes(self, space: ChannelSpace) -> bool:
        """Whether the channels of `space` are permuted."""
        return space.role == "hidden" or (space.role == "output" and self.outputs != "identity")

    def scales(self, space: ChannelSpace) -> bool:
        """Whether the channels of `space` have gains."""
        return space.role == "hidden" or (space.role == "output" and self.outputs == "monomial")


def draw_keys(channel_map: ChannelMap, root: SecretRoot, policy: KeyPolicy) -> ChannelKeys:
    """Draw one key a channel space; the same root, map and policy give the same keys.

    Channels that a grouped convolution ties together stay together: the order of the blocks is drawn once a family (and
    is the identity where the policy keeps one of its spaces in order), the order inside each block on its own.
    """
    fixed_families = {space.block_family for space in channel_map.spaces if not policy.permutes(space)}
    keys = []
    for space in channel_map.spaces:
        stream = root.derive("channel key", space.index).reader()
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
        sources = (key.permutation // (space.size // space.blocks)).reshape(space.blocks, -1)
        if not np.array_equal(sources.min(axis=1), sources.max(axis=1)):
            return f"space {space.index}: the permutation tears the groups of a grouped convolution apart"
        order = sources[:, 0].tolist()
        if family_orders.setdefault(space.block_family, order) != order:
            return (
                f"space {space.index}: the groups of a grouped convolution stand in another order than in its partner"
            )
    return None


def _key_fault(permutation: Integers, gains: Floats) -> str | None:
    if permutation.dtype != np.int64 or gains.dtype != np.float64:
        return f"int64 permutation and float64 gains are due, not {permutation.dtype} and {gains.dtype}"
    if permutation.ndim != 1 or permutation.shape != gains.shape or not len(permutation):
        return f"the shapes {permutation.shape} and {gains.shape} are not one length"
    if not np.array_equal(np.sort(permutation), np.arange(len(permutation))):
        return f"its permutation does not hold every channel from 0 to {len(permutation) - 1} once"
    if not (gains.min() >= 1 / LARGEST_GAIN and gains.max() <= LARGEST_GAIN):
        return f"its gains are not all between {1 / LARGEST_GAIN:g} and {LARGEST_GAIN:g}"
    return None
