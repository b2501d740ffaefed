"""A network as a chain: weighted layers, and what stands between each and the next."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.inversion.activations import ACTIVATIONS, Activation
from federation.errors import UsageError
from federation.network import Network
from federation.tracing import TracedNetwork

Pair: TypeAlias = tuple[int, int]
Shape: TypeAlias = tuple[int, ...]

_UNCHANGED = frozenset({"identity", "contiguous", "clone", "detach"})
_RESHAPES = frozenset({"flatten", "view", "reshape", "squeeze", "unsqueeze"})
_POOLS = frozenset({"avg_pool2d", "adaptive_avg_pool2d"})
_REASONS = {
    "max_pool2d": "maximum pooling does not tell where its values stood",
    "adaptive_max_pool2d": "maximum pooling does not tell where its values stood",
    "dropout": "the client's mask is not known",
    "dropout2d": "the client's mask is not known",
    "batch_norm": "batch normalisation by the client's own batch is not inverted here",
    "add": "a residual sum does not tell its terms apart",
    "relu6": "its upper end is flat, and it is not inverted here",
}


@dataclass(frozen=True)
class Pool:
    """Average pooling: linear.

    Attributes:
        function: feature maps [T, C, H, W] -> pooled ones.
        shape: (C, H, W) of what it reads.
    """

    function: Callable[[Tensor], Tensor]
    shape: Shape


Operation: TypeAlias = Activation | Pool


@dataclass(frozen=True)
class Layer:
    """A convolution, or a fully connected layer as one of a single pixel.

    Attributes:
        name: of the module.
        weight, bias: names of its tensors; no bias is None.
        linear: whether it is fully connected.
        inputs: (C, H, W) of what it reads; (features, 1, 1) where it is fully connected.
        outputs: likewise, of what it makes.
        kernel, stride, padding, dilation: vertical, horizontal.
        after: what is done to its output before the next layer reads it, in order; reshapes are left out.
    """

    name: str
    weight: str
    bias: str | None
    linear: bool
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    after: tuple[Operation, ...] = ()

    @property
    def column_values(self) -> int:
        """Values of its input as columns, of one image."""
        return self.inputs[0] * math.prod(self.kernel) * math.prod(self.outputs[1:])


@dataclass(frozen=True)
class Chain:
    """The weighted layers that have to be inverted, in the order of execution.

    The last is the first fully connected layer with a bias: its input can be read from its own gradient (eq. 2.2 of
    Gusain 2021), whatever follows it.
    """

    layers: tuple[Layer, ...]
    image_shape: tuple[int, int, int]


@functools.lru_cache(maxsize=8)
def invertible_chain(network: Network) -> Chain:
    """Trace the network up to its first fully connected layer with a bias.

    Raises:
        UsageError: for a network that cannot be traced, has no such layer, or in which something else stands before it
            than convolutions, activations that can be undone, average pooling and reshapes, each read by the next
            alone; names the node.
    """
    return Chain(tuple(_layers(TracedNetwork(network.build(), network.image_shape))), network.image_shape)


def _layers(traced: TracedNetwork) -> list[Layer]:
    layers: list[Layer] = []
    previous: torch.fx.Node | None = None
    for node in traced.nodes:
        if node.op == "placeholder":
            previous = node
            continue
        if node.op == "output":
            break
        if node not in traced.shapes:
            continue  # numbers and sizes
        _check_follows(traced, node, previous)
        operation, previous = traced.operation(node), node
        if operation in ("convolution", "linear"):
            layers.append(_layer(traced, node))
            if layers[-1].linear and layers[-1].bias is not None:
                return layers
        elif operation in _UNCHANGED or (operation in _RESHAPES and _keeps_images(traced, node)):
            continue
        elif operation in _POOLS or operation in ACTIVATIONS:
            if not layers:
                raise traced.refusal(node, "it changes the image before any layer with weights reads it")
            done = _pool(traced, node) if operation in _POOLS else ACTIVATIONS[str(operation)]
            layers[-1] = replace(layers[-1], after=(*layers[-1].after, done))
        else:
            raise traced.refusal(node, _REASONS.get(str(operation), "it cannot be undone layer by layer"))
    raise UsageError("no fully connected layer with a bias, from whose gradient a layer's input could be read")


def _check_follows(traced: TracedNetwork, node: torch.fx.Node, previous: torch.fx.Node | None) -> None:
    operation = str(traced.operation(node))
    tensors = [source for source in node.all_input_nodes if source in traced.shapes]
    if tensors != [previous]:
        raise traced.refusal(node, _REASONS.get(operation, "it reads something else than the result before it"))
    if len([user for user in tensors[0].users if user in traced.shapes]) > 1:
        raise traced.refusal(
            tensors[0], "its result is read more than once, and one gradient does not tell the two apart"
        )


def _layer(traced: TracedNetwork, node: torch.fx.Node) -> Layer:
    if node.op != "call_module":
        raise traced.refusal(node, "its weights are no layer's; use torch.nn's own layers")
    module, name = traced.module(node), str(node.target)
    if [other.target for other in traced.nodes if other.op == "call_module"].count(node.target) > 1:
        raise traced.refusal(node, "it is called more than once, and its gradient is the sum of both")
    weight, bias = f"{name}.weight", None if module.bias is None else f"{name}.bias"
    before, after = (tuple(traced.shapes[at][1:]) for at in (node.all_input_nodes[0], node))
    if isinstance(module, nn.Linear):
        if len(before) != 1:
            raise traced.refusal(node, "a fully connected layer needs one vector an image; flatten before it")
        return Layer(name, weight, bias, linear=True, inputs=(before[0], 1, 1), outputs=(after[0], 1, 1))
    assert isinstance(module, nn.Conv2d)
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise traced.refusal(node, "only convolutions without groups are inverted, padded with zeros by stated numbers")
    return Layer(
        name,
        weight,
        bias,
        linear=False,
        inputs=_three(before),
        outputs=_three(after),
        kernel=_pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=_pair(module.padding),
        dilation=_pair(module.dilation),
    )


def _pool(traced: TracedNetwork, node: torch.fx.Node) -> Pool:
    shape = tuple(traced.shapes[node.all_input_nodes[0]][1:])
    if node.op == "call_module":
        return Pool(traced.module(node), shape)
    function: Callable[..., Tensor] = F.avg_pool2d
    if traced.operation(node) == "adaptive_avg_pool2d":
        function = F.adaptive_avg_pool2d
    arguments: tuple[Any, ...] = node.args[1:]
    return Pool(lambda maps: function(maps, *arguments, **node.kwargs), shape)


def _keeps_images(traced: TracedNetwork, node: torch.fx.Node) -> bool:
    return traced.shapes[node][0] == traced.shapes[node.all_input_nodes[0]][0]


def _pair(values: Sequence[int]) -> Pair:
    vertical, horizontal = values
    return vertical, horizontal


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = values
    return channels, height, width
