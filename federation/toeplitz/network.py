"""The linear layers of any traced network as sparse matrices, and which feature maps between them are the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, nn

from federation.channel_map import Role
from federation.network import Network
from federation.toeplitz.placement import LayerPlacement, is_pooling, place_layer
from federation.toeplitz.steps import Concatenation, Elementwise, Linear, Opaque, PixelSpace, Step, Sum
from federation.tracing import TracedNetwork, concatenated

ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "mish", "elu", "selu", "softplus", "hardswish",
    "hardsigmoid", "hardtanh",
})  # fmt: skip
_UNCHANGED = frozenset({
    "dropout", "dropout2d", "identity", "contiguous", "clone", "detach", "flatten", "view", "reshape", "squeeze",
    "unsqueeze",
})  # fmt: skip
_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
_SIGNS: Mapping[str | None, int] = {"add": 1, "sub": -1}


@dataclass(frozen=True)
class ToeplitzNetwork:
    """A network on flattened feature maps.

    Attributes:
        steps: in the order of execution.
        spaces: the distinct spaces of feature maps, numbered in the order in which they first appear.
        image: the name of the images among the steps' sources.
        result: the name of the network's result.
    """

    steps: tuple[Step, ...]
    spaces: tuple[PixelSpace, ...]
    image: str
    result: str

    @property
    def linear(self) -> tuple[Linear, ...]:
        """The linear steps, pooling and batch normalisation among them."""
        return tuple(step for step in self.steps if isinstance(step, Linear))

    @property
    def weighted(self) -> tuple[Linear, ...]:
        """The linear steps that are made of weights one by one: convolutions and fully connected layers."""
        return tuple(step for step in self.linear if step.tensors)

    @property
    def result_space(self) -> int:
        """The space of the network's result: the last unless the result lies in an earlier one, as in x + f(x)."""
        return {self.image: 0, **{step.node: step.space for step in self.steps}}[self.result]

    @property
    def entries(self) -> int:
        """The stored entries of the weighted layers' matrices: 413,179 for LeNet-5 on 28x28 pixels."""
        return sum(step.layout.entries for step in self.weighted)


def trace_toeplitz(model: nn.Module, image_shape: Sequence[int]) -> ToeplitzNetwork:
    """The matrices' layouts and the spaces between them.

    Args:
        model: a network of one tensor, a batch of images; it stays as it is.
        image_shape: (channels, height, width) of one image.

    Raises:
        UsageError: for a network that cannot be traced, or a layer whose matrix cannot be laid out (padding that is not
            zeros, more entries than `placement.LARGEST_ENTRIES`); names the node.
    """
    return _Walk(TracedNetwork(model, image_shape)).result()


@functools.lru_cache(maxsize=8)
def toeplitz_of(network: Network) -> ToeplitzNetwork:
    """`trace_toeplitz` of a federation's network, kept for the next time; raises like it."""
    return trace_toeplitz(network.build(), network.image_shape)


class _Walk:
    """One pass over the graph, in the order of execution."""

    def __init__(self, network: TracedNetwork) -> None:
        self._network = network
        self._joined: DisjointSet = DisjointSet()
        self._shapes: list[tuple[int, ...]] = []
        self._origins: list[str] = []
        self._space_of: dict[torch.fx.Node, int] = {}
        self._steps: list[Step] = []
        self._entries = 0

    def result(self) -> ToeplitzNetwork:
        """Visit every node."""
        image = result = None
        for node in self._network.nodes:
            if node.op == "output":
                result = node.args[0]
            elif node not in self._network.shapes or node.op == "get_attr":
                continue  # numbers, sizes and constants are no feature maps
            elif node.op == "placeholder":
                image = node
                self._begin(node, "image")
            else:
                self._steps.append(self._visit(node))
        if not isinstance(result, torch.fx.Node) or result not in self._space_of or image is None:
            raise self._network.refusal(self._network.nodes[-1], "its result is not one tensor computed from images")
        return self._renumbered(image, result)

    def _visit(self, node: torch.fx.Node) -> Step:
        operation = self._network.operation(node)
        sources = [argument for argument in node.all_input_nodes if argument in self._space_of]
        if len(sources) == 1:
            placed = place_layer(self._network, node, self._entries)
            if placed is not None:
                return self._linear(node, sources, placed)
            known = self._entrywise(node, operation, sources[0])
            if known is not None:
                self._space_of[node] = self._space_of[sources[0]]
                return Elementwise(**self._common(node, sources), operation=known[0], function=known[1])
        if operation in _SIGNS and self._is_sum(node):
            terms = [term for term in node.args if isinstance(term, torch.fx.Node)]
            self._joined.merge(self._space_of[terms[0]], self._space_of[terms[1]])
            self._space_of[node] = self._space_of[terms[0]]
            return Sum(**self._common(node, terms), sign=_SIGNS[operation])
        self._begin(node, "other")
        if operation in _CONCATENATIONS and node.args:
            parts, axis = concatenated(node)
            known_parts = [part for part in parts if isinstance(part, torch.fx.Node) and part in self._space_of]
            if len(known_parts) == len(parts) and axis is not None and axis % len(self._network.shapes[node]) == 1:
                return Concatenation(**self._common(node, known_parts))
        return Opaque(**self._common(node, sources), operation=operation or "an operation that is not PyTorch's own")

    def _common(self, node: torch.fx.Node, sources: Iterable[torch.fx.Node]) -> dict[str, Any]:
        """The fields that all steps have."""
        return {
            "node": node.name,
            "refusal": functools.partial(self._network.refusal, node),
            "sources": tuple(source.name for source in sources),
            "source_spaces": tuple(self._space_of[source] for source in sources),
            "space": self._space_of[node],
        }

    def _linear(self, node: torch.fx.Node, sources: list[torch.fx.Node], placed: LayerPlacement) -> Linear:
        self._entries += placed.layout.entries
        self._begin(node, "pooling" if is_pooling(self._network.operation(node)) else "layer")
        return Linear(
            **self._common(node, sources),
            layer=placed.layer, layout=placed.layout, fill=placed.fill, tensors=placed.tensors,
        )  # fmt: skip

    def _entrywise(
        self, node: torch.fx.Node, operation: str | None, source: torch.fx.Node
    ) -> tuple[str, Callable[[Tensor], Tensor]] | None:
        """Name and function of an operation on every entry by itself; None for any other."""
        before, after = self._network.shapes[source], self._network.shapes[node]
        if before[:1] != after[:1] or math.prod(before) != math.prod(after) or self._overwrites_what_is_read(node):
            return None
        if operation in ACTIVATIONS:
            return operation, _function(self._network, node)
        if operation in _UNCHANGED:
            return "identity", _same
        factor = _factor(node, operation)
        return None if factor is None else ("scale", functools.partial(torch.mul, other=factor))

    def _overwrites_what_is_read(self, node: torch.fx.Node) -> bool:
        """Whether the node works in place on a tensor that a later node reads."""
        in_place = str(getattr(node.target, "__name__", node.target)).endswith("_") or node.kwargs.get("inplace")
        if node.op == "call_module":
            in_place = getattr(self._network.module(node), "inplace", False)
        order = {other: place for place, other in enumerate(self._network.nodes)}
        readers = [user for source in node.all_input_nodes for user in source.users]
        return bool(in_place) and any(order[reader] > order[node] for reader in readers)

    def _is_sum(self, node: torch.fx.Node) -> bool:
        """Whether the node adds two results of the same shape and nothing else."""
        shapes = self._network.shapes
        terms = [term for term in node.args if isinstance(term, torch.fx.Node) and term in self._space_of]
        plain = len(node.args) == 2 == len(terms) and not node.kwargs
        return plain and all(shapes[term] == shapes[node] for term in terms)

    def _begin(self, node: torch.fx.Node, origin: str) -> None:
        space = len(self._shapes)
        self._joined.add(space)
        self._shapes.append(tuple(self._network.shapes[node][1:]))
        self._origins.append(origin)
        self._space_of[node] = space

    def _renumbered(self, image: torch.fx.Node, result: torch.fx.Node) -> ToeplitzNetwork:
        roots = [self._joined[space] for space in range(len(self._shapes))]
        number = {root: index for index, root in enumerate(dict.fromkeys(roots))}
        index_of = [number[root] for root in roots]
        moved = tuple(
            replace(
                step,
                source_spaces=tuple(index_of[space] for space in step.source_spaces),
                space=index_of[step.space],
            )
            for step in self._steps
        )

        def space(index: int) -> PixelSpace:
            members = [old for old, new in enumerate(index_of) if new == index]
            role: Role = "output" if index == index_of[self._space_of[result]] else "hidden"
            if index == index_of[self._space_of[image]]:
                role = "input"
            activations = frozenset(
                step.operation
                for step in moved
                if isinstance(step, Elementwise) and step.space == index and step.operation in ACTIVATIONS
            )
            origins = frozenset(self._origins[member] for member in members)
            return PixelSpace(index, self._shapes[members[0]], role, origins, activations)

        return ToeplitzNetwork(moved, tuple(map(space, range(len(number)))), image.name, result.name)


def _same(values: Tensor) -> Tensor:
    return values


def _function(network: TracedNetwork, node: torch.fx.Node) -> Callable[[Tensor], Tensor]:
    """The operation of a node with its own options, on a copy of its first argument (it may work in place)."""
    if node.op == "call_module":
        layer = network.module(node)
        return lambda values: layer(values.clone())
    if node.op == "call_method":
        return lambda values: getattr(values.clone(), str(node.target))(*node.args[1:], **node.kwargs)
    function = node.target
    assert callable(function), "functions of the graph can be called"
    return lambda values: function(values.clone(), *node.args[1:], **node.kwargs)


def _factor(node: torch.fx.Node, operation: str | None) -> float | None:
    """The number by which a node multiplies its one tensor; None for a node that does not."""
    numbers = [argument for argument in node.args if isinstance(argument, int | float)]
    if len(node.args) != 2 or len(numbers) != 1 or node.kwargs:
        return None
    if operation == "mul":
        return float(numbers[0])
    if operation in ("div", "truediv") and node.args[1] is numbers[0] and numbers[0] != 0:
        return 1.0 / float(numbers[0])
    return None
