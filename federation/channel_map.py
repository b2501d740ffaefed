"""What a network's tensors have in common: channel spaces, and the axes of the tensors that lie in them.

A channel space is a set of feature channels that are the same wherever they occur: the outputs of a convolution, the
vectors of the batch norm behind it, the inputs of the layers that read them, and whatever residual sums join them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from scipy.cluster.hierarchy import DisjointSet

from federation.errors import UsageError

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
        block_family: spaces of one family share the order of their blocks; None where `blocks` is 1.
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

    Axis 0 has one entry a channel of `out_space`. Axis 1 holds the input channels of one group, each as a run of
    `in_expansion` consecutive entries (the pixels of a flattened feature map, channel by channel): entry (o, j, x) of a
    kernel of shape [out, (in / groups) * in_expansion, ...] reads channel (o // (out / groups)) * (in / groups) + j.

    Attributes:
        out_space: the space along axis 0, or None for a tensor without channels (a counter).
        in_space: the space along axis 1, or None for a vector.
        in_expansion: entries a channel on axis 1.
        groups: groups of the convolution; equal to the size of the input space where it is depthwise.
    """

    out_space: int | None
    in_space: int | None = None
    in_expansion: int = 1
    groups: int = 1


@dataclass(frozen=True)
class ChannelMap:
    """The channel spaces of a network, and where each tensor of its state dict lies in them."""

    spaces: tuple[ChannelSpace, ...]
    axes: Mapping[str, TensorAxes]


class SpaceSolver:
    """Collects what must hold between channel spaces and solves it once.

    Spaces are numbered as they are added; `solve` renumbers those that stay distinct, in the same order.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._joined: DisjointSet = DisjointSet()
        self._families: DisjointSet = DisjointSet()
        self._origins: list[str] = []
        self._passages: list[tuple[int, Passage]] = []
        self._blocks: list[tuple[int, int, str]] = []
        self._axes: dict[str, TensorAxes] = {}

    def add(self, size: int, origin: str) -> int:
        """A new space of `size` channels, begun by the node that stands at `origin`."""
        space = len(self._sizes)
        self._sizes.append(size)
        self._origins.append(origin)
        self._joined.add(space)
        return space

    def size(self, space: int) -> int:
        """The number of channels of a space."""
        return self._sizes[space]

    def join(self, one: int, other: int) -> None:
        """The two are the same space; their sizes must be equal."""
        assert self._sizes[one] == self._sizes[other], "only spaces of one size can be the same"
        self._joined.merge(one, other)

    def pass_through(self, space: int, passage: Passage) -> None:
        """Values of `space` pass an operation that is not linear."""
        self._passages.append((space, passage))

    def link_groups(self, in_space: int, out_space: int, groups: int, layer: str) -> None:
        """A grouped convolution reads one and writes the other: groups move as a whole, in the same order in both."""
        self._families.add(layer)
        self._blocks += [(in_space, groups, layer), (out_space, groups, layer)]

    def declare(self, tensor: str, axes: TensorAxes) -> None:
        """`tensor` lies along these spaces; where it was declared before, the spaces of both must be the same."""
        earlier = self._axes.setdefault(tensor, axes)
        if earlier.in_expansion != axes.in_expansion:
            raise UsageError(f"tensor {tensor!r} reads feature maps of different sizes; give each use its own layer")
        for one, other in ((earlier.out_space, axes.out_space), (earlier.in_space, axes.in_space)):
            if one is not None and other is not None:
                self.join(one, other)

    def solve(self, input_space: int, output_space: int) -> ChannelMap:
        """The map of the distinct spaces.

        Raises:
            UsageError: where convolutions with different numbers of groups meet in one space.
        """
        roots = [self._joined[space] for space in range(len(self._sizes))]
        number = {root: index for index, root in enumerate(dict.fromkeys(roots))}
        index_of = [number[root] for root in roots]
        blocks = self._solve_blocks(index_of)
        family_number = {root: place for place, root in enumerate(dict.fromkeys(root for _, root in blocks.values()))}
        spaces = []
        for root, index in number.items():
            count, family = blocks.get(index, (1, None))
            role: Role = "hidden"
            if index == index_of[output_space]:
                role = "output"
            if index == index_of[input_space]:
                role = "input"
            passages = tuple(passage for space, passage in self._passages if index_of[space] == index)
            origins = tuple(place for space, place in enumerate(self._origins) if index_of[space] == index)
            activations = frozenset(passage.operation for passage in passages)
            family_index = None if family is None else family_number[family]
            spaces.append(
                ChannelSpace(index, self._sizes[root], role, activations, count, family_index, passages, origins)
            )

        def renumber(space: int | None) -> int | None:
            return None if space is None else index_of[space]

        axes = {
            name: TensorAxes(renumber(found.out_space), renumber(found.in_space), found.in_expansion, found.groups)
            for name, found in self._axes.items()
        }
        return ChannelMap(tuple(spaces), axes)

    def _solve_blocks(self, index_of: list[int]) -> dict[int, tuple[int, str]]:
        """Blocks and representative of the family, for each distinct space that has any."""
        first: dict[int, tuple[int, str]] = {}
        for space, groups, layer in self._blocks:
            earlier_groups, earlier_layer = first.setdefault(index_of[space], (groups, layer))
            if earlier_groups != groups:
                raise UsageError(
                    f"{earlier_layer} has {earlier_groups} groups and {layer} has {groups} on the same channels; "
                    "use one number of groups there, or put an ungrouped convolution between them"
                )
            self._families.merge(earlier_layer, layer)
        return {index: (groups, self._families[layer]) for index, (groups, layer) in first.items()}
