"""Channel keys that an attacker claims to have found, and weights brought back from under them.

A monomial key moves and scales the channels of a space: place i of a keyed tensor holds gains[i] times channel
places[i]. What lies in which space is a public fact about the network (`federation.channels`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from federation.channels import ChannelMap, TensorAxes
from federation.weights import Weights


@dataclass(frozen=True)
class ClaimedKeys:
    """What is claimed of the keys of some channel spaces, by the space's index; of the others nothing is undone.

    Attributes:
        gains: float64 [channels], positive: the factor at each place of a keyed tensor.
        places: int64 [channels]: which channel stands at each place; without a space's entry its channels are left in
            the order in which they stand.
    """

    gains: Mapping[int, Tensor]
    places: Mapping[int, Tensor]

    def undo(self, weights: Weights, channel_map: ChannelMap) -> Weights:
        """The weights with the claimed keys undone, tensors of the same types and shapes; counters stay as they are."""
        return {
            name: tensor.clone() if not axes.out_spaces else self._undone(tensor, axes, channel_map)
            for name, tensor in weights.items()
            for axes in (channel_map.axes[name],)
        }

    def tensors(self) -> dict[str, Tensor]:
        """The claims by name: "gains", or "places", a dot, and the index of the space."""
        named = {"gains": self.gains, "places": self.places}
        return {f"{part}.{space}": tensor for part, by_space in named.items() for space, tensor in by_space.items()}

    def _undone(self, tensor: Tensor, axes: TensorAxes, channel_map: ChannelMap) -> Tensor:
        sizes = [space.size for space in channel_map.spaces]
        rows = self._places(axes.out_spaces, sizes)
        values = per_channel(tensor.double(), axes) / self._gains(axes.out_spaces, sizes).view(-1, 1, 1)
        read = input_channels(tensor, axes)
        if read is None:
            columns = torch.zeros_like(rows)[:, None]
        else:
            values = values * self._gains(axes.in_spaces, sizes)[read][:, :, None]
            columns = self._places(axes.in_spaces, sizes)[read] % read.shape[1]  # groups move as a whole
        undone = torch.empty_like(values)
        undone[rows[:, None], columns] = values
        return undone.view(tensor.shape).to(tensor.dtype)

    def _gains(self, spaces: Sequence[int], sizes: list[int]) -> Tensor:
        """Of an axis: of its spaces, one after the other."""
        return torch.cat([self.gains.get(space, torch.ones(sizes[space], dtype=torch.float64)) for space in spaces])

    def _places(self, spaces: Sequence[int], sizes: list[int]) -> Tensor:
        starts = itertools.accumulate((sizes[space] for space in spaces), initial=0)
        places = [self.places.get(space, torch.arange(sizes[space])) for space in spaces]
        return torch.cat([start + part for start, part in zip(starts, places, strict=False)])


def per_channel(tensor: Tensor, axes: TensorAxes) -> Tensor:
    """The tensor as [output channels, input channels of a group (1 for a vector), entries that the two share]."""
    read = tensor.shape[1] // axes.in_expansion if axes.in_spaces else 1
    return tensor.reshape(tensor.shape[0], read, -1)


def input_channels(tensor: Tensor, axes: TensorAxes) -> Tensor | None:
    """Which of its input channels each row reads at each place: int64 [output channels, channels of a group].

    None for a vector, which reads no channels.
    """
    if not axes.in_spaces:
        return None
    read = tensor.shape[1] // axes.in_expansion
    group = torch.arange(tensor.shape[0]) // (tensor.shape[0] // axes.groups)
    return group[:, None] * read + torch.arange(read)
