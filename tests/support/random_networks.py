"""Random small networks of everything that Key-Net keys, for property tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.fx
from hypothesis import strategies as st
from torch import Tensor, nn

from federation.errors import UsageError
from federation.network import Network
from federation.secret_root import SecretRoot

HOMOGENEOUS = (nn.ReLU, partial(nn.ReLU, inplace=True), partial(nn.LeakyReLU, 0.2), nn.Identity, nn.Dropout)
"""Activations that gains pass."""

ACTIVATIONS = (*HOMOGENEOUS, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.SiLU)

AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
POOLS = (*AVERAGES, nn.MaxPool2d, nn.AdaptiveMaxPool2d)

CHAINED = ("convolution", "grouped", "pool")
BLOCKS = (*CHAINED, "residual", "concatenation")

_WIDE = 12
"""Channels beyond which no concatenation repeats them."""

roots = st.binary(min_size=32, max_size=32).map(SecretRoot)


@dataclass(frozen=True)
class RandomNetwork:
    """A model in evaluation mode, and the shape of its images."""

    model: nn.Module
    image_shape: tuple[int, int, int]

    @property
    def network(self) -> Network:
        """The same for a federation; whoever builds it gets this very model."""
        return Network(lambda: self.model, self.image_shape, 0)

    def images(self, count: int, seed: int = 5) -> Tensor:
        """Standard normal images, float64 [count, C, H, W]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.image_shape, generator=generator, dtype=torch.float64)

    def has(self, *kinds: type[nn.Module]) -> bool:
        """Whether any of its layers is of one of these kinds."""
        return any(isinstance(layer, kinds) for layer in self.model.modules())

    def node_named_in(self, error: Exception) -> bool:
        """Whether the error names a node of the model's graph."""
        found = re.search(r"node '(\w+)'", str(error))
        nodes = torch.fx.symbolic_trace(self.model).graph.nodes
        return found is not None and found.group(1) in {node.name for node in nodes}


def refusal_of(check: Callable[[], object]) -> UsageError | None:
    """What a check refuses; None where it passes."""
    try:
        check()
    except UsageError as error:
        return error
    return None


class Residual(nn.Module):
    """features + body(features); the body keeps their shape."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


class Concatenated(nn.Module):
    """The channels of several branches, one after the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([branch(features) for branch in self.branches], 1)


@st.composite
def random_networks(
    draw: st.DrawFn,
    *,
    blocks: Sequence[str] = BLOCKS,
    activations: Sequence[Callable[[], nn.Module]] = ACTIVATIONS,
    pools: Sequence[type[nn.Module]] = POOLS,
    batch_norm: bool = True,
    depth: int = 3,
) -> RandomNetwork:
    """Up to `depth` blocks on images of 1 to 3 channels, with sides of 5 to 9 pixels, and one or two linear layers.

    Convolutions have any stride and padding, kernels that need not be square, groups (one a channel among them), biases
    or none. Concatenations are of one to three parts: layers, the features themselves, or concatenations of these.

    Args:
        blocks: the kinds to choose from, of `BLOCKS`.
        activations: what may stand behind a layer.
        pools: kinds of pooling.
        batch_norm: whether it may stand behind a convolution.
        depth: blocks at most.
    """
    shape = (draw(st.integers(1, 3)), draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    builder = _Builder(draw, shape, activations, pools, batch_norm)
    for kind in draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=depth)):
        getattr(builder, kind)()
    builder.head()
    model = nn.Sequential(*builder.layers).eval()
    return RandomNetwork(randomised(model, draw(st.integers(0, 99))), shape)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """The model with random weights, and positive variances, of a size that keeps its values near 1 and ReLUs alive."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            deviation = (2 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.dim() > 1 else 0.3
            values = torch.randn(tensor.shape, generator=generator) * deviation
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model


class _Builder:
    """Draws layers one after the other; `features` is what they make of an image so far."""

    def __init__(
        self,
        draw: st.DrawFn,
        shape: tuple[int, int, int],
        activations: Sequence[Callable[[], nn.Module]],
        pools: Sequence[type[nn.Module]],
        batch_norm: bool,
    ) -> None:
        self._draw, self._activations, self._pools, self._batch_norm = draw, activations, pools, batch_norm
        self.features = torch.zeros(1, *shape)
        self.layers: list[nn.Module] = []

    # Blocks.

    def convolution(self) -> None:
        outputs = self._number(1, 5)
        self._add(self._strided(self._channels, outputs), *self._activation(outputs))

    def grouped(self) -> None:
        """A grouped or depthwise convolution between ordinary ones, which keep its groups off other layers' channels."""
        groups, width, new_width = self._number(2, 4), self._number(1, 2), self._number(1, 2)
        inner, outer = groups * width, groups * new_width
        self._add(nn.Conv2d(self._channels, inner, 1), *self._activation(inner))
        self._add(self._strided(inner, outer, groups), *self._activation(outer))
        self._add(nn.Conv2d(outer, 3, 1))

    def residual(self) -> None:
        channels, inner = self._channels, self._number(1, 4)
        first, second = nn.Conv2d(channels, inner, (3, 1), padding=(1, 0)), nn.Conv2d(inner, channels, 1, bias=False)
        self._add(Residual(nn.Sequential(first, *self._activation(inner), second)), *self._activation(channels))

    def concatenation(self) -> None:
        """New features beside each other or, as in DenseNet, behind those that they are made of, perhaps twice."""
        names = ["layer", "features", "nested"] if self._channels <= _WIDE else ["layer"]
        branches = [self._branch(name) for name in self._draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))]
        self._add(Concatenated(*branches))
        self._add(*self._activation(self._channels))
        if self._draw(st.booleans()):
            self._add(nn.Conv2d(self._channels, self._channels, (1, 2), groups=self._channels, padding=(0, 1)))

    def pool(self) -> None:
        kind, sides = self._draw(st.sampled_from(self._pools)), self.features.shape[2:]
        if kind in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
            self._add(kind(tuple(self._number(1, side) for side in sides)))
            return
        kernel = tuple(self._number(1, min(3, side)) for side in sides)
        padding = tuple(self._number(0, size // 2) for size in kernel)
        options: dict[str, Any] = {"ceil_mode": self._draw(st.booleans())}
        if kind is nn.AvgPool2d:
            options["count_include_pad"] = self._draw(st.booleans())
        self._add(kind(kernel, (self._number(1, 2), self._number(1, 2)), padding, **options))

    def head(self) -> None:
        self._add(nn.Flatten())
        if self._draw(st.booleans()):
            width = self._number(1, 6)
            self._add(nn.Linear(self._channels, width), self._draw(st.sampled_from(self._activations))())
        self._add(nn.Linear(self._channels, self._number(2, 5), bias=self._draw(st.booleans())))

    # Parts of them.

    def _branch(self, name: str) -> nn.Module:
        """Layers that keep height and width."""
        if name == "features":
            return nn.Identity()
        outputs = self._number(1, 3)
        if name == "nested":
            return Concatenated(nn.Conv2d(self._channels, outputs, 1), nn.Identity())
        kernel = nn.Conv2d(self._channels, outputs, (1, 3), padding=(0, 1))
        return nn.Sequential(kernel, *self._activation(outputs))

    def _strided(self, channels: int, outputs: int, groups: int = 1) -> nn.Module:
        padding = (self._number(0, 2), self._number(0, 2))
        sides = (side + 2 * zeros for side, zeros in zip(self.features.shape[2:], padding, strict=True))
        kernel = tuple(self._number(1, min(3, side)) for side in sides)
        stride, bias = (self._number(1, 3), self._number(1, 3)), self._draw(st.booleans())
        return nn.Conv2d(channels, outputs, kernel, stride, padding, groups=groups, bias=bias)

    def _activation(self, channels: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(channels)] if self._batch_norm and self._draw(st.booleans()) else []
        return [*norm, self._draw(st.sampled_from(self._activations))()]

    def _add(self, *layers: nn.Module) -> None:
        with torch.no_grad():
            for layer in layers:
                self.features = layer.eval()(self.features)
        self.layers += layers

    @property
    def _channels(self) -> int:
        return self.features.shape[1]

    def _number(self, lowest: int, highest: int) -> int:
        return self._draw(st.integers(lowest, highest))
