"""Channel keys that an attacker claims to have found, and weights brought back from under them.

A monomial key moves and scales the channels of a space: place i of a keyed tensor holds gains[i] times channel
places[i]. What lies in which space is a public fact about the network (`federation.channels`).
"""

from __future__ import annotations

from collections.abc import Mapping
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
            name: tensor.clone() if axes.out_space is None else self._undone(tensor, axes, channel_map)
            for name, tensor in weights.items()
            for axes in (channel_map.axes[name],)
        }

    def tensors(self) -> dict[str, Tensor]:
        """The claims by name: "gains", or "places", a dot, and the index of the space."""
        named = {"gains": self.gains, "places": self.places}
        return {f"{part}.{space}": tensor for part, by_space in named.items() for space, tensor in by_space.items()}

    def _undone(self, tensor: Tensor, axes: TensorAxes, channel_map: ChannelMap) -> Tensor:
        assert axes.out_space is not None, "counters are not keyed"
        sizes = [space.size for space in channel_map.spaces]
        rows = self._places(axes.out_space, sizes)
        values = per_channel(tensor.double(), axes) / self._gains(axes.out_space, sizes).view(-1, 1, 1)
        read = input_channels(tensor, axes)
        if read is None:
            columns = torch.zeros_like(rows)[:, None]
        else:
            assert axes.in_space is not None, "a tensor that reads channels reads those of a space"
            values = values * self._gains(axes.in_space, sizes)[read][:, :, None]
            columns = self._places(axes.in_space, sizes)[read] % read.shape[1]  # groups move as a whole
        undone = torch.empty_like(values)
        undone[rows[:, None], columns] = values
        return undone.view(tensor.shape).to(tensor.dtype)

    def _gains(self, space: int, sizes: list[int]) -> Tensor:
        return self.gains.get(space, torch.ones(sizes[space], dtype=torch.float64))

    def _places(self, space: int, sizes: list[int]) -> Tensor:
        return self.places.get(space, torch.arange(sizes[space]))


def per_channel(tensor: Tensor, axes: TensorAxes) -> Tensor:
    """The tensor as [output channels, input channels of a group (1 for a vector), entries that the two share]."""
    read = 1 if axes.in_space is None else tensor.shape[1] // axes.in_expansion
    return tensor.reshape(tensor.shape[0], read, -1)


def input_channels(tensor: Tensor, axes: TensorAxes) -> Tensor | None:
    """Which channel of the input space each row reads at each place: int64 [output channels, channels of a group].

    None for a vector, which reads no channels.
    """
    if axes.in_space is None:
        return None
    read = tensor.shape[1] // axes.in_expansion
    group = torch.arange(tensor.shape[0]) // (tensor.shape[0] // axes.groups)
    return group[:, None] * read + torch.arange(read)
