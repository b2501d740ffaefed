"""Channel spaces by graph: which axes of which tensors must share a key, for any convolutional network.

Each operation of the traced network either passes the channel spaces of its input on, joins those of two inputs or puts
them side by side, or (convolution, linear layer) begins a new one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.fx
from torch import nn

from federation.channel_map import ChannelMap, ChannelSpace, Passage, TensorAxes
from federation.channel_solver import SpaceSolver
from federation.errors import UsageError
from federation.tracing import TracedNetwork, concatenated

__all__ = ["ChannelMap", "ChannelSpace", "TensorAxes", "trace_channels"]

_ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "mish", "elu", "selu", "softplus", "hardswish",
    "hardsigmoid", "hardtanh",
)  # fmt: skip


def trace_channels(model: nn.Module, image_shape: Sequence[int]) -> ChannelMap:
    """Find the channel spaces of `model`.

    Args:
        model: a network from a batch of images to one tensor with the classes (or channels) along axis 1. It is traced
            in evaluation mode and stays as it is.
        image_shape: (channels, height, width) of one image.

    Raises:
        UsageError: for a network that cannot be traced or run on such images, or for the first operation through which
            no channel key can be carried, by the name of its node.
    """
    walk = _Walk(TracedNetwork(model, image_shape))
    channel_map = walk.solve()
    _check_complete(model, channel_map)
    return channel_map


def _check_complete(model: nn.Module, channel_map: ChannelMap) -> None:
    names_by_tensor: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        names_by_tensor[id(tensor)].append(name)
    for names in names_by_tensor.values():
        if len(names) > 1:
            raise UsageError(f"tensors {' and '.join(map(repr, names))} are one; give each layer its own parameters")
        if names[0] not in channel_map.axes:
            raise UsageError(f"tensor {names[0]!r} belongs to no layer that the forward pass calls; remove it")


@dataclass(frozen=True)
class _Channels:
    """The channel axis (axis 1) of a result: one or more spaces, each channel as a run of `expansion` entries."""

    spaces: tuple[int, ...]
    expansion: int = 1


class _Walk:
    """One pass over the graph, in the order of execution."""

    def __init__(self, network: TracedNetwork) -> None:
        self._network = network
        self._shapes = network.shapes
        self._channels: dict[torch.fx.Node, _Channels] = {}
        self._solver = SpaceSolver()
        self._rules: dict[str, Callable[[torch.fx.Node, str], _Channels]] = {
            "convolution": self._convolution,
            "linear": self._linear,
            "batch_norm": self._batch_norm,
            **dict.fromkeys(_ACTIVATIONS, self._activation),
            **dict.fromkeys(("dropout", "dropout2d", "identity", "contiguous", "clone", "detach"), self._elementwise),
            **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d"), self._pool),
            **dict.fromkeys(("max_pool2d", "adaptive_max_pool2d"), self._max_pool),
            "mean": self._mean,
            **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), self._reshape),
            **dict.fromkeys(("add", "sub"), self._sum),
            **dict.fromkeys(("mul", "truediv", "div"), self._product),
            **dict.fromkeys(("cat", "concat", "concatenate"), self._concatenation),
        }

    def solve(self) -> ChannelMap:
        """Visit every node; the channel map of the whole."""
        image: tuple[int, ...] = ()
        for node in self._network.nodes:
            if node.op == "get_attr" or (node.op != "output" and node not in self._shapes):
                continue  # numbers, sizes and constants have no channels
            if node.op == "placeholder":
                image = (self._begin(node, self._shapes[node][1]),)
                self._channels[node] = _Channels(image)
            elif node.op == "output":
                return self._solver.solve(image, self._source(node, node.args[0]).spaces)
            else:
                self._channels[node] = self._visit(node)
        raise AssertionError("a traced graph ends with its output node")

    def _visit(self, node: torch.fx.Node) -> _Channels:
        operation = self._network.operation(node)
        if operation is None or operation not in self._rules or not node.args:
            raise self._network.refusal(
                node,
                "no channel key can be carried through it; use PyTorch's convolution, linear and batch norm layers, "
                "elementwise activations, pooling, flatten, residual sums and concatenations",
            )
        return self._rules[operation](node, operation)

    # Layers with tensors of their own.

    def _convolution(self, node: torch.fx.Node, _: str) -> _Channels:
        layer, source = self._network.module(node), self._source(node, node.args[0])
        assert isinstance(layer, nn.Conv2d)
        if len(self._shapes[node]) != 4:
            raise self._network.refusal(node, "a convolution of something else than a batch of feature maps")
        out = self._begin(node, layer.out_channels)
        if layer.groups > 1:
            self._solver.link_groups(source.spaces, out, layer.groups)
        self._declare(node, TensorAxes((out,), source.spaces, groups=layer.groups))
        return _Channels((out,))

    def _linear(self, node: torch.fx.Node, _: str) -> _Channels:
        layer, source = self._network.module(node), self._source(node, node.args[0])
        assert isinstance(layer, nn.Linear)
        if len(self._shapes[node]) != 2:
            raise self._network.refusal(
                node, "a linear layer needs one vector an image; flatten the feature maps first"
            )
        out = self._begin(node, layer.out_features)
        self._declare(node, TensorAxes((out,), source.spaces, source.expansion))
        return _Channels((out,))

    def _batch_norm(self, node: torch.fx.Node, operation: str) -> _Channels:
        source = self._source(node, node.args[0])
        if source.expansion != 1:
            raise self._network.refusal(node, "batch norm over flattened feature maps; put it before the flatten")
        self._pass_through(node, source, operation)
        self._declare(node, TensorAxes(source.spaces))
        return source

    def _declare(self, node: torch.fx.Node, kernel: TensorAxes) -> None:
        """Kernels lie in both spaces, vectors in the output space alone, counters in none."""
        axes_by_rank = {0: TensorAxes(()), 1: TensorAxes(kernel.out_spaces)}
        for name, tensor in self._network.module(node).state_dict().items():
            self._solver.declare(f"{node.target}.{name}", axes_by_rank.get(tensor.ndim, kernel))

    # Operations without tensors.

    def _elementwise(self, node: torch.fx.Node, operation: str) -> _Channels:
        source = self._source(node, node.args[0])
        if self._shapes[node] != self._shape(node.args[0]):
            raise self._network.refusal(node, f"{operation} changes the shape of its input")
        return source

    def _activation(self, node: torch.fx.Node, operation: str) -> _Channels:
        source = self._elementwise(node, operation)
        self._pass_through(node, source, operation)
        return source

    def _pool(self, node: torch.fx.Node, operation: str) -> _Channels:
        source = self._source(node, node.args[0])
        before, after = self._shape(node.args[0]), self._shapes[node]
        if len(before) != 4 or before[:2] != after[:2]:
            raise self._network.refusal(node, f"{operation} of something else than a batch of feature maps")
        return source

    def _max_pool(self, node: torch.fx.Node, operation: str) -> _Channels:
        source = self._pool(node, operation)
        self._pass_through(node, source, "max_pool")
        return source

    def _mean(self, node: torch.fx.Node, _: str) -> _Channels:
        stated = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        axes = stated if isinstance(stated, list | tuple) else (stated,)
        rank = len(self._shape(node.args[0]))
        if not all(isinstance(axis, int) and axis % rank >= 2 for axis in axes):
            raise self._network.refusal(node, "a mean over other axes than height and width mixes channels or images")
        return self._source(node, node.args[0])

    def _reshape(self, node: torch.fx.Node, operation: str) -> _Channels:
        source = self._source(node, node.args[0])
        before, after = self._shape(node.args[0]), self._shapes[node]
        if before[:2] == after[:2]:
            return source
        if tuple(after) == (before[0], math.prod(before[1:])):
            return _Channels(source.spaces, source.expansion * math.prod(before[2:]))
        raise self._network.refusal(node, f"{operation} from {tuple(before)} to {tuple(after)}; flatten from axis 1 on")

    def _sum(self, node: torch.fx.Node, operation: str) -> _Channels:
        one, other = (self._source(node, argument) for argument in node.args[:2])
        shape, other_shape = (self._shape(argument) for argument in node.args[:2])
        if len(shape) != len(other_shape) or shape[1] != other_shape[1] or one.expansion != other.expansion:
            raise self._network.refusal(
                node, f"{operation} of {tuple(shape)} and {tuple(other_shape)}; both need the same channels on axis 1"
            )
        self._solver.join(one.spaces, other.spaces)
        return one

    def _product(self, node: torch.fx.Node, operation: str) -> _Channels:
        left, right = node.args[:2]
        if isinstance(right, int | float):
            return self._source(node, left)
        if operation != "mul":
            raise self._network.refusal(node, "division by something else than a number; multiply instead")
        if isinstance(left, int | float):
            return self._source(node, right)
        product = self._sum(node, operation)
        self._pass_through(node, product, operation)
        return product

    def _concatenation(self, node: torch.fx.Node, operation: str) -> _Channels:
        terms, axis = concatenated(node)
        sources = [self._source(node, term) for term in terms]
        if axis is None or axis % len(self._shapes[node]) != 1:
            raise self._network.refusal(node, f"{operation} along another axis than the channels (axis 1)")
        if len({source.expansion for source in sources}) > 1:
            raise self._network.refusal(
                node, f"{operation} of feature maps that were flattened at different sizes; pool them to one size first"
            )
        return _Channels(tuple(space for source in sources for space in source.spaces), sources[0].expansion)

    def _begin(self, node: torch.fx.Node, size: int) -> int:
        """The new space that the node's results lie in."""
        return self._solver.add(size, self._network.place(node))

    def _pass_through(self, node: torch.fx.Node, channels: _Channels, operation: str) -> None:
        """Note that the channels pass an operation that is not linear."""
        self._solver.pass_through(channels.spaces, Passage(operation, self._network.place(node)))

    def _source(self, node: torch.fx.Node, argument: object) -> _Channels:
        """The channels of an argument of `node`."""
        if not isinstance(argument, torch.fx.Node) or argument not in self._channels:
            raise self._network.refusal(
                node,
                f"its argument {argument} is no result of a layer; use one tensor that was computed from the images",
            )
        return self._channels[argument]

    def _shape(self, argument: object) -> torch.Size:
        """The shape of an argument that `_source` has accepted."""
        assert isinstance(argument, torch.fx.Node)
        return self._shapes[argument]
