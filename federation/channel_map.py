"""What a network's tensors have in common: channel spaces, and the axes of the tensors that lie in them.

A channel space is a set of feature channels that are the same wherever they occur: the outputs of a convolution, the
vectors of the batch norm behind it, the inputs of the layers that read them, and whatever residual sums join them. A
concatenation is a sequence of spaces, each of which stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["input", "hidden", "output"]

POSITIVELY_HOMOGENEOUS = frozenset({"relu", "leaky_relu", "max_pool"})
"""Operations f with f(d x) = d f(x) for every gain d > 0 of a channel."""


@dataclass(frozen=True)
class Passage:
    """A node of the graph whose operation, other than a linear one, the values of a space pass channel by channel.

    Attributes:
        operation: its name, as in PyTorch.
        place: where the node stands, see `TracedNetwork.place`.
    """

    operation: str
    place: str


@dataclass(frozen=True)
class ChannelSpace:
    """One channel space.

    Attributes:
        index: its place in `ChannelMap.spaces`.
        size: the number of channels.
        role: "input" holds the image's channels, "output" the network's results, everything else is "hidden".
        activations: names of the operations, other than linear ones, that its values pass channel by channel.
        blocks: the equal runs of consecutive channels that must stay together (1: the channels may be permuted freely),
            because a grouped convolution reads or writes them.
        block_family: spaces of one family share the order of their blocks; None where no grouped convolution reads or
            writes the space. (One that reads a concatenation may have a single group in one of its parts.)
        passages: the nodes behind `activations`, in the order of execution.
        origins: where the nodes stand that begin it, see `TracedNetwork.place`.
    """

    index: int
    size: int
    role: Role
    activations: frozenset[str]
    blocks: int = 1
    block_family: int | None = None
    passages: tuple[Passage, ...] = field(default=(), compare=False)
    origins: tuple[str, ...] = field(default=(), compare=False)

    @property
    def commutes_with_gains(self) -> bool:
        """Whether a network whose channels here are scaled by positive gains can compute the same function.

        Permutations commute with every operation that is traced; gains do not with, say, sigmoid, ReLU6 or batch norm.
        """
        return self.activations <= POSITIVELY_HOMOGENEOUS


@dataclass(frozen=True)
class TensorAxes:
    """The channel spaces along the first two axes of a tensor.

    An axis is a sequence of spaces, one after the other: a single one, unless feature maps are concatenated. The same
    space may stand in it more than once. Its key acts block by block.

    Axis 0 has one entry a channel of `out_spaces`. Axis 1 holds the input channels of one group, each as a run of
    `in_expansion` consecutive entries (the pixels of a flattened feature map, channel by channel): entry (o, j, x) of a
    kernel of shape [out, (in / groups) * in_expansion, ...] reads channel (o // (out / groups)) * (in / groups) + j.

    Attributes:
        out_spaces: the spaces along axis 0; none for a tensor without channels (a counter).
        in_spaces: the spaces along axis 1; none for a vector.
        in_expansion: entries a channel on axis 1.
        groups: groups of the convolution; equal to the number of input channels where it is depthwise.
    """

    out_spaces: tuple[int, ...]
    in_spaces: tuple[int, ...] = ()
    in_expansion: int = 1
    groups: int = 1

    @property
    def spaces(self) -> tuple[int, ...]:
        """The spaces of both axes."""
        return self.out_spaces + self.in_spaces


@dataclass(frozen=True)
class ChannelMap:
    """The channel spaces of a network, and where each tensor of its state dict lies in them."""

    spaces: tuple[ChannelSpace, ...]
    axes: Mapping[str, TensorAxes]
