"""The layout of each layer of PyTorch's own that is linear in evaluation mode, from the traced node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from federation.toeplitz.layout import Floats, ToeplitzLayout
from federation.toeplitz.steps import concatenated, constant, normalisation
from federation.toeplitz.windows import (
    AxisMeans,
    AxisTaps,
    axis_taps,
    convolution_entries,
    convolution_layout,
    pooling_layout,
)
from federation.tracing import TracedNetwork

LARGEST_ENTRIES = 1 << 24
"""Entries over all layers: 134 MB a message in CSR. MobileNetV2 at 32x32 has 6 million, ResNet-18 482 million."""

_POOLING = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "mean"})


@dataclass(frozen=True)
class LayerPlacement:
    """A layer's name, its layout, and how it is filled; see `steps.Linear`."""

    layer: str
    layout: ToeplitzLayout
    fill: Callable[[Mapping[str, Tensor]], Floats]
    tensors: tuple[str, ...] = ()


def is_pooling(operation: str | None) -> bool:
    """Whether the operation averages windows."""
    return operation in _POOLING


def place_layer(network: TracedNetwork, node: torch.fx.Node, entries_before: int) -> LayerPlacement | None:
    """The placement of a node that is linear; None for any other.

    Raises:
        UsageError: for a linear layer that cannot be laid out, or that has too many entries.
    """
    place = _RULES.get(network.operation(node) or "")
    if place is None or not node.args or not isinstance(node.args[0], torch.fx.Node):
        return None
    return place(network, node, entries_before)


def _convolution(network: TracedNetwork, node: torch.fx.Node, entries_before: int) -> LayerPlacement:
    layer, before, after = network.module(node), _shape(network, node.args[0]), network.shapes[node]
    assert isinstance(layer, nn.Conv2d), "the operation is this module's alone"
    if len(after) != 4:
        raise network.refusal(node, "a convolution of something else than a batch of feature maps")
    if layer.padding_mode != "zeros":
        raise network.refusal(
            node, f"padding by {layer.padding_mode!r}; its matrix is laid out for zeros alone; use 'zeros'"
        )

    def taps(axis: int) -> AxisTaps:
        stride, dilation, size = layer.stride[axis], layer.dilation[axis], layer.kernel_size[axis]
        padding = layer.padding
        if padding == "same":  # as PyTorch pads: an odd number of zeros has its larger half at the end
            before_first = dilation * (size - 1) // 2
        else:
            before_first = 0 if isinstance(padding, str) else int(padding[axis])
        return axis_taps(
            before[2 + axis], after[2 + axis], size, stride=stride, padding=before_first, dilation=dilation
        )

    return _weighted(
        network, node, (taps(0), taps(1)), layer.in_channels // layer.groups, layer.out_channels, layer.groups,
        entries_before,
    )  # fmt: skip


def _linear(network: TracedNetwork, node: torch.fx.Node, entries_before: int) -> LayerPlacement:
    layer = network.module(node)
    assert isinstance(layer, nn.Linear), "the operation is this module's alone"
    if len(network.shapes[node]) != 2:
        raise network.refusal(node, "a linear layer needs one vector an image; flatten the feature maps first")
    point = axis_taps(1, 1, 1)
    return _weighted(network, node, (point, point), layer.in_features, layer.out_features, 1, entries_before)


def _weighted(
    network: TracedNetwork,
    node: torch.fx.Node,
    taps: tuple[AxisTaps, AxisTaps],
    inputs_per_group: int,
    outputs: int,
    groups: int,
    entries_before: int,
) -> LayerPlacement:
    name = str(node.target)
    bias = network.module(node).bias is not None
    total = entries_before + convolution_entries(*taps, inputs_per_group, outputs, bias)
    if total > LARGEST_ENTRIES:
        raise network.refusal(
            node,
            f"up to here the network's Toeplitz matrices have {total:,} entries, over the {LARGEST_ENTRIES:,} that are "
            "kept in memory; use channel keys (keynet), which do not grow",
        )
    tensors = (f"{name}.weight", f"{name}.bias") if bias else (f"{name}.weight",)
    layout = convolution_layout(*taps, inputs_per_group, outputs, groups=groups, bias=bias)
    return LayerPlacement(name, layout, concatenated(tensors), tensors)


def _batch_norm(network: TracedNetwork, node: torch.fx.Node, entries_before: int) -> LayerPlacement | None:
    layer, shape = network.module(node), network.shapes[node]
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d), "the operation is these modules' alone"
    if layer.running_mean is None or len(shape) not in (2, 4):
        return None  # without running statistics it is not linear
    height, width = shape[2:] if len(shape) == 4 else (1, 1)
    points = axis_taps(height, height, 1), axis_taps(width, width, 1)
    layout = convolution_layout(*points, 1, layer.num_features, groups=layer.num_features)
    name = str(node.target)
    return LayerPlacement(name, layout, normalisation(name, layer.num_features, layer.eps))


def _average(network: TracedNetwork, node: torch.fx.Node, entries_before: int) -> LayerPlacement | None:
    before, after = _shape(network, node.args[0]), network.shapes[node]
    if len(before) != 4:
        return None
    options = _pooling_options(network, node)
    sizes = [(before[axis], after[axis]) for axis in (2, 3)]
    height, width = (
        AxisMeans.pooled(
            *size,
            _pair(options["kernel_size"])[axis],
            stride=_pair(options["stride"] or options["kernel_size"])[axis],
            padding=_pair(options["padding"])[axis],
            include_padding=options["count_include_pad"],
        )
        for axis, size in enumerate(sizes)
    )
    layout, constants = pooling_layout(height, width, before[1])
    divisor = options["divisor_override"]
    if divisor:
        constants = np.full_like(constants, 1.0 / divisor)
    return LayerPlacement(_name(node), layout, constant(constants))


def _adaptive(network: TracedNetwork, node: torch.fx.Node, entries_before: int) -> LayerPlacement | None:
    before, after = _shape(network, node.args[0]), network.shapes[node]
    if len(before) != 4:
        return None
    return _adaptive_to(node, before, (after[2], after[3]))


def _mean(network: TracedNetwork, node: torch.fx.Node, entries_before: int) -> LayerPlacement | None:
    before = _shape(network, node.args[0])
    stated: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axes = stated if isinstance(stated, list | tuple) else (stated,)
    if len(before) != 4 or not all(isinstance(axis, int) and axis % 4 >= 2 for axis in axes):
        return None
    reduced = {axis % 4 for axis in axes}
    return _adaptive_to(node, before, (1 if 2 in reduced else before[2], 1 if 3 in reduced else before[3]))


def _adaptive_to(node: torch.fx.Node, before: torch.Size, sizes: tuple[int, int]) -> LayerPlacement:
    height, width = (AxisMeans.adaptive(before[2 + axis], size) for axis, size in enumerate(sizes))
    layout, constants = pooling_layout(height, width, before[1])
    return LayerPlacement(_name(node), layout, constant(constants))


_DEFAULTS: Mapping[str, Any] = {
    "kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True,
    "divisor_override": None,
}  # fmt: skip


def _pooling_options(network: TracedNetwork, node: torch.fx.Node) -> dict[str, Any]:
    """The options of `avg_pool2d`, of a layer or a function, by name."""
    if node.op == "call_module":
        return {name: getattr(network.module(node), name) for name in _DEFAULTS}
    positional = dict(zip(_DEFAULTS, node.args[1:], strict=False))
    return {**_DEFAULTS, **positional, **{name: value for name, value in node.kwargs.items() if name in _DEFAULTS}}


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, list | tuple) else (value,)
    return int(first), int(rest[0] if rest else first)


def _name(node: torch.fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _shape(network: TracedNetwork, argument: object) -> torch.Size:
    assert isinstance(argument, torch.fx.Node), "checked before a rule is called"
    return network.shapes[argument]


_RULES: Mapping[str, Callable[[TracedNetwork, torch.fx.Node, int], LayerPlacement | None]] = {
    "convolution": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "avg_pool2d": _average,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
}
