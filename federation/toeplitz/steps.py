"""What a network does, step by step, on flattened feature maps: what a scheme that keys every pixel needs to know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from federation.channel_map import Role
from federation.errors import UsageError
from federation.toeplitz.layout import Floats, ToeplitzLayout


@dataclass(frozen=True)
class PixelSpace:
    """The entries of a flattened feature map, wherever they are the same ones.

    Activations, reshaping and residual sums pass a space on; every linear layer, pooling among them, begins a new one.

    Attributes:
        index: its place in `ToeplitzNetwork.spaces`.
        shape: of one feature map, (channels, height, width) or (features,).
        role: "input" is the image, "output" the network's result, everything else is "hidden".
        origins: what computes its values: "image", "layer", "pooling" or "other".
        activations: names of the operations, other than linear ones, that its values pass entry by entry.
    """

    index: int
    shape: tuple[int, ...]
    role: Role
    origins: frozenset[str]
    activations: frozenset[str]

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Step:
    """One operation of the network.

    Attributes:
        node: the name of its result, unique in the network.
        refusal: the error that names it, from the reason.
        sources: the results that it reads.
        source_spaces: the spaces of those.
        space: the space of its result.
    """

    node: str
    refusal: Callable[[str], UsageError]
    sources: tuple[str, ...]
    source_spaces: tuple[int, ...]
    space: int


@dataclass(frozen=True)
class Linear(Step):
    """A linear layer: a matrix, filled with values.

    Attributes:
        layer: name of the module, or of the node where there is none.
        layout: where the values stand.
        fill: the layer's values, float64 [layout.value_count], from the network's weights.
        tensors: the weights of which `values` are made one by one, in order: (weight,) or (weight, bias) of a
            convolution or fully connected layer; empty for batch normalisation (whose values are computed from its
            vectors, in evaluation mode) and for pooling (whose values are constants).
    """

    layer: str
    layout: ToeplitzLayout
    fill: Callable[[Mapping[str, Tensor]], Floats]
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Elementwise(Step):
    """An operation on every entry by itself; its result lies in the space of its source.

    Attributes:
        operation: PyTorch's name, "identity" (which covers dropout and reshaping) or "scale" (times a number).
        function: computes it, on a tensor of any shape.
    """

    operation: str
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sum(Step):
    """The sum (sign 1) or difference (sign -1) of two results; all three lie in one space."""

    sign: int


@dataclass(frozen=True)
class Concatenation(Step):
    """The channels of several results one after the other: on flattened feature maps, their entries."""


@dataclass(frozen=True)
class Opaque(Step):
    """Anything else, such as maximum pooling or a product: its result begins a space that nothing is known of."""

    operation: str


def concatenated(tensors: tuple[str, ...]) -> Callable[[Mapping[str, Tensor]], Floats]:
    """The values of these tensors one after the other."""

    def fill(weights: Mapping[str, Tensor]) -> Floats:
        return np.concatenate([weights[name].detach().cpu().double().numpy().ravel() for name in tensors])

    return fill


def normalisation(layer: str, channels: int, epsilon: float) -> Callable[[Mapping[str, Tensor]], Floats]:
    """Batch normalisation in evaluation: scale g / sqrt(v + epsilon), then shift b - m * scale, [2 * channels]."""

    def fill(weights: Mapping[str, Tensor]) -> Floats:
        def vector(name: str, otherwise: float) -> Floats:
            found = weights.get(f"{layer}.{name}")
            return np.full(channels, otherwise) if found is None else found.detach().cpu().double().numpy()

        scale = vector("weight", 1.0) / np.sqrt(vector("running_var", 1.0) + epsilon)
        return np.concatenate([scale, vector("bias", 0.0) - vector("running_mean", 0.0) * scale])

    return fill


def constant(values: Floats) -> Callable[[Mapping[str, Tensor]], Floats]:
    """The same values whatever the weights are."""
    return lambda weights: values
