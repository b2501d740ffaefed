"""The stages of a chain of layers, each with what differentiating its gradient once more takes.

A stage maps values [N, ...] of N images. `pull` applies the transpose of its Jacobian, which takes slopes of the loss from
its outputs to its inputs; `push` applies the Jacobian, which is how a change of those slopes travels in the other direction.
A convolution is a product with the patches that its kernel reads, so that a batch of trials is a few large products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_CHANNELS = 8
"""Inputs of fewer channels are folded from products with patches; with more, a grouped convolution is faster."""


class Activation(NamedTuple):
    """An elementwise function, and its first two derivatives as functions of its value.

    Attributes:
        apply: the function.
        slope: its derivative.
        bend: its second derivative from value and slope; None where it vanishes almost everywhere.
    """

    apply: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor, Tensor], Tensor] | None = None


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation(F.relu, torch.sign),
    nn.Sigmoid: Activation(
        torch.sigmoid, lambda value: value - value.square(), lambda value, slope: slope - 2 * value * slope
    ),
    nn.Tanh: Activation(torch.tanh, lambda value: 1 - value.square(), lambda value, slope: -2 * value * slope),
}


@dataclass(frozen=True)
class Elementwise:
    """An activation."""

    activation: Activation


@dataclass(frozen=True)
class AveragePool:
    """`nn.AvgPool2d`; linear and without parameters."""

    options: tuple[Any, ...]

    @staticmethod
    def of(layer: nn.AvgPool2d) -> AveragePool:
        """The stage that the layer is."""
        kernel, stride, padding = map(_pair, (layer.kernel_size, layer.stride, layer.padding))
        return AveragePool((kernel, stride, padding, layer.ceil_mode, layer.count_include_pad, layer.divisor_override))

    def push(self, values: Tensor) -> Tensor:
        """The averages."""
        return F.avg_pool2d(values, *self.options)

    def pull(self, slopes: Tensor, inputs: Tensor) -> Tensor:
        """Its transpose."""
        return torch.ops.aten.avg_pool2d_backward(slopes, inputs, *self.options)


@dataclass(frozen=True)
class Flatten:
    """`nn.Flatten` of everything but the images' own dimension."""

    def push(self, values: Tensor) -> Tensor:
        """One row an image."""
        return values.flatten(1)

    def pull(self, slopes: Tensor, inputs: Tensor) -> Tensor:
        """Back in shape."""
        return slopes.view_as(inputs)


@dataclass(frozen=True)
class Convolution:
    """`nn.Conv2d` without groups or dilation, padded with zeros.

    Attributes:
        weight: [O, C, k, l].
        bias: [O], or None.
        names: of the weight and, where there is one, of the bias.
        stride, padding: (vertical, horizontal).
    """

    weight: Tensor
    bias: Tensor | None
    names: tuple[str, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def read(self, inputs: Tensor) -> Tensor:
        """The patches that the kernel reads, [N, C*k*l, P] of inputs [N, C, H, W]."""
        vertical, horizontal = self.padding
        if vertical or horizontal:
            inputs = F.pad(inputs, (horizontal, horizontal, vertical, vertical))
        places = _patch_places(tuple(inputs.shape[1:]), tuple(self.weight.shape[2:]), self.stride, inputs.device)
        # `F.unfold` takes four times as long, and copying strided windows twice
        return inputs.flatten(1).index_select(1, places).view(len(inputs), math.prod(self.weight.shape[1:]), -1)

    def apply(self, inputs: Tensor, patches: Tensor) -> Tensor:
        """The outputs [N, O, h, w]."""
        return F.conv2d(inputs, self.weight, self.bias, self.stride, self.padding)

    def push(self, values: Tensor) -> Tensor:
        """The convolution without its bias."""
        return F.conv2d(values, self.weight, None, self.stride, self.padding)

    def pull(self, slopes: Tensor, inputs: Tensor) -> Tensor:
        """Its transpose."""
        return F.conv_transpose2d(slopes, self.weight, None, self.stride, self.padding, self._rest(slopes, inputs))

    def gradients(self, slopes: Tensor, patches: Tensor, trials: int) -> tuple[Tensor, ...]:
        """Of weight and bias, [T, *parameter shape], summed over each trial's images."""
        flat = slopes.flatten(2)
        weight = _sum_of_images(flat.bmm(patches.transpose(1, 2)), trials).unflatten(2, self.weight.shape[1:])
        return (weight,) if self.bias is None else (weight, _sum_of_images(flat.sum(2), trials))

    def push_gradients(
        self, wanted: tuple[Tensor, ...], slopes: Tensor, patches: Tensor, pushed: Tensor | None
    ) -> Tensor:
        """How the total changes with the slopes of the loss at the outputs, [N, O, h, w].

        Args:
            wanted: how it changes with `gradients`.
            slopes: the slopes there.
            patches: what the kernel read.
            pushed: how it changes with the slopes at the inputs, already pushed; None at the first stage.
        """
        count = len(slopes)
        weight = _for_images(wanted[0].flatten(2), count)
        through = weight.bmm(patches) if pushed is None else torch.baddbmm(pushed.flatten(2), weight, patches)
        if self.bias is not None:
            through += _for_images(wanted[1], count)[:, :, None]
        return through.view_as(slopes)

    def pull_gradients(self, wanted: tuple[Tensor, ...], slopes: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
        """How the total changes with the inputs [N, C, H, W]: through the gradients, and through the outputs.

        Args:
            wanted: how it changes with `gradients`.
            slopes: of the loss at the outputs.
            outputs: how the total changes with the outputs.
            inputs: of the shape to return.
        """
        # both at once, as one product: the weights stand below what is wanted of theirs, a kernel for each image
        count, kernel = len(slopes), self.weight.shape[2:]
        kernels = torch.cat([_for_images(wanted[0].flatten(2), count), self._matrix.expand(count, -1, -1)], dim=1)
        both = torch.cat([slopes, outputs], dim=1)
        if self.weight.shape[1] < FEW_CHANNELS:
            columns = kernels.transpose(1, 2).bmm(both.flatten(2))
            return F.fold(columns, inputs.shape[2:], kernel, padding=self.padding, stride=self.stride)
        by_group = both.flatten(0, 1)[None], kernels.view(-1, *self.weight.shape[1:])
        rest = self._rest(slopes, inputs)
        return F.conv_transpose2d(*by_group, None, self.stride, self.padding, rest, groups=count).view_as(inputs)

    @property
    def _matrix(self) -> Tensor:
        return self.weight.flatten(1)

    def _rest(self, slopes: Tensor, inputs: Tensor) -> list[int]:
        """How many of the last rows and columns of the inputs the kernel never reads."""
        return [
            size - ((count - 1) * stride - 2 * padding + kernel)
            for size, count, stride, padding, kernel in zip(
                inputs.shape[2:], slopes.shape[2:], self.stride, self.padding, self.weight.shape[2:], strict=True
            )
        ]


@dataclass(frozen=True)
class Linear:
    """`nn.Linear` on rows. Its methods are those of `Convolution`; what it reads are its inputs.

    Attributes:
        weight: [O, F].
        bias: [O], or None.
        names: of the weight and, where there is one, of the bias.
    """

    weight: Tensor
    bias: Tensor | None
    names: tuple[str, ...]

    def read(self, inputs: Tensor) -> Tensor:
        """The inputs [N, F]."""
        return inputs

    def apply(self, inputs: Tensor, patches: Tensor) -> Tensor:
        """The outputs [N, O]."""
        return F.linear(inputs, self.weight, self.bias)

    def push(self, values: Tensor) -> Tensor:
        """The product without the bias."""
        return F.linear(values, self.weight)

    def pull(self, slopes: Tensor, inputs: Tensor) -> Tensor:
        """Its transpose."""
        return slopes @ self.weight

    def gradients(self, slopes: Tensor, patches: Tensor, trials: int) -> tuple[Tensor, ...]:
        """See `Convolution.gradients`."""
        by_trial, read = (rows.unflatten(0, (trials, -1)) for rows in (slopes, patches))
        weight = by_trial.transpose(1, 2).bmm(read)
        return (weight,) if self.bias is None else (weight, by_trial.sum(1))

    def push_gradients(
        self, wanted: tuple[Tensor, ...], slopes: Tensor, patches: Tensor, pushed: Tensor | None
    ) -> Tensor:
        """See `Convolution.push_gradients`."""
        read = patches.unflatten(0, (len(wanted[0]), -1))
        through = read.bmm(wanted[0].transpose(1, 2))
        if self.bias is not None:
            through += wanted[1][:, None]
        through = through.flatten(0, 1)
        return through if pushed is None else through + pushed

    def pull_gradients(self, wanted: tuple[Tensor, ...], slopes: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
        """See `Convolution.pull_gradients`."""
        through = slopes.unflatten(0, (len(wanted[0]), -1)).bmm(wanted[0]).flatten(0, 1)
        return torch.addmm(through, outputs, self.weight)


Weighted: TypeAlias = Convolution | Linear
Fixed: TypeAlias = AveragePool | Flatten
Stage: TypeAlias = Weighted | Fixed | Elementwise


def stage_of(layer: nn.Module, name: str, parameters: dict[str, Tensor]) -> Stage | None:
    """The stage that a layer is, or None where there is no such stage.

    Args:
        layer: of the network.
        name: its name there.
        parameters: the shared weights, by name.
    """
    if type(layer) in ACTIVATIONS:
        return Elementwise(ACTIVATIONS[type(layer)])
    if type(layer) is nn.AvgPool2d:
        return AveragePool.of(layer)
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return Flatten()
    if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and _plain(layer)):
        own = tuple(f"{name}.{part}" for part, _ in layer.named_parameters())
        weight, bias = parameters[own[0]], parameters[own[1]] if len(own) > 1 else None
        if type(layer) is nn.Linear:
            return Linear(weight, bias, own)
        return Convolution(weight, bias, own, _pair(layer.stride), _pair(layer.padding))
    return None


@lru_cache(maxsize=64)
def _patch_places(
    shape: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, int], device: torch.device
) -> Tensor:
    """Where in flattened inputs [C, H, W] each entry of the patches [C*k*l, P] stands, int64 [C*k*l*P]."""
    windows = torch.arange(math.prod(shape), device=device).view(shape)
    windows = windows.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # [C, h, w, k, l]
    return windows.permute(0, 3, 4, 1, 2).reshape(-1)


def _plain(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _sum_of_images(values: Tensor, trials: int) -> Tensor:
    """[T * m, ...] -> [T, ...]."""
    return values if len(values) == trials else values.unflatten(0, (trials, -1)).sum(1)


def _for_images(values: Tensor, count: int) -> Tensor:
    """[T, ...] -> [T * m, ...], each trial's m times in a row."""
    return values if len(values) == count else values.repeat_interleave(count // len(values), dim=0)
