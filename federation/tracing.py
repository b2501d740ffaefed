"""A network as a graph: its operations by PyTorch's own names, and the shape of every result.

Traced with torch.fx on PyTorch's meta device, so that nothing is computed and no layer is known by its name.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from federation.errors import UsageError

_EXAMPLE_BATCH = 2  # more than one, so that a reshape that mixes images shows in the shapes

_MODULE_OPERATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
    nn.SiLU: "silu", nn.GELU: "gelu", nn.Mish: "mish", nn.ELU: "elu", nn.SELU: "selu", nn.Softplus: "softplus",
    nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid", nn.Hardtanh: "hardtanh",
    nn.MaxPool2d: "max_pool2d", nn.AdaptiveMaxPool2d: "adaptive_max_pool2d", nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d", nn.Flatten: "flatten",
    nn.Dropout: "dropout", nn.Dropout2d: "dropout2d", nn.Identity: "identity",
    nn.Conv2d: "convolution", nn.Linear: "linear", nn.BatchNorm1d: "batch_norm", nn.BatchNorm2d: "batch_norm",
}  # fmt: skip
_IN_PLACE_OPERATORS = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}


class TracedNetwork:
    """The graph of a network in evaluation mode.

    Args:
        model: a network of one tensor, a batch of images; it stays as it is.
        image_shape: (channels, height, width) of one image.

    Attributes:
        nodes: the operations, in the order of execution.
        shapes: the shape of each node's result, for nodes whose result is a tensor.

    Raises:
        UsageError: for a network that cannot be traced, or that does not run on such images.
    """

    def __init__(self, model: nn.Module, image_shape: Sequence[int]) -> None:
        twin = copy.deepcopy(model).eval().to("meta")
        try:
            traced = torch.fx.symbolic_trace(twin)
        except (torch.fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(
                f"{type(model).__name__} cannot be traced ({reason}); its forward pass must not depend on tensor values"
            ) from error
        self._modules = dict(traced.named_modules())
        self.nodes = list(traced.graph.nodes)
        self.shapes = _shapes(traced, image_shape)

    def module(self, node: torch.fx.Node) -> nn.Module:
        """The layer that a "call_module" node calls (on the meta device: it has shapes and no values)."""
        return self._modules[str(node.target)]

    def operation(self, node: torch.fx.Node) -> str | None:
        """PyTorch's name of what the node does, the same for a module, function, method or Python operator.

        None for a layer or function that is not PyTorch's own, or a layer of a kind that is not listed here.
        """
        if node.op == "call_module":
            return _MODULE_OPERATIONS.get(type(self.module(node)))
        name = str(node.target)
        if node.op == "call_function":
            home = str(getattr(node.target, "__module__", ""))
            if home.partition(".")[0] not in ("torch", "_operator"):
                return None
            name = str(getattr(node.target, "__name__", ""))
        name = name.rstrip("_")
        return _IN_PLACE_OPERATORS.get(name, name)

    def place(self, node: torch.fx.Node) -> str:
        """Where a node stands, for a person: its name in the graph, and the path of its layer or of who calls it."""
        if node.op == "call_module":
            return f"layer {str(node.target)!r} ({type(self.module(node)).__name__}), node {node.name!r}"
        callers = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        caller = f"module {callers[-1]!r}" if callers else "the network's own forward"
        return f"node {node.name!r} ({self.operation(node) or node.target} in {caller})"

    def refusal(self, node: torch.fx.Node, reason: str) -> UsageError:
        """The error that names the node."""
        return UsageError(f"{self.place(node)}: {reason}")


def concatenated(node: torch.fx.Node) -> tuple[Sequence[object], int | None]:
    """The terms of a node that concatenates its first argument, and along which axis; None for no number."""
    terms = node.args[0]
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return terms if isinstance(terms, list | tuple) else (terms,), axis if isinstance(axis, int) else None


def _shapes(traced: torch.fx.GraphModule, image_shape: Sequence[int]) -> dict[torch.fx.Node, torch.Size]:
    found: dict[torch.fx.Node, torch.Size] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                found[n] = result.shape
            return result

    try:
        Recorder(traced).run(torch.empty(_EXAMPLE_BATCH, *image_shape, device="meta"))
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"the network does not run on images of shape {tuple(image_shape)}: {reason}") from error
    return found
