"""What is known of a layer's input: two sets of linear equations, for all trials at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.inversion.chain import Layer
from attacks.inversion.columns import Columns
from attacks.inversion.links import Linearised

_LIGHT = 0.05
"""Weight of the output's equations beside the gradient's where these alone could do; see `layer_equations`."""

_SHIFT = 0.1
"""Of what the output's equations add to a preconditioner that knows the gradient's alone, the share that it allows for."""

_LARGEST_MAP = 1024
"""Pixels of a feature map up to which the gradient's equations are factorised."""


@dataclass(frozen=True)
class Sides:
    """Both sets' left or right hand sides.

    Attributes:
        outputs: [T, ...], of the equations of the layer's output.
        gradient: [T, O, K], of those of its weight's gradient.
    """

    outputs: Tensor
    gradient: Tensor

    def minus(self, other: Sides, factor: Tensor) -> Sides:
        """This less `factor` [T] of the other."""
        return Sides(
            self.outputs - _each(factor, self.outputs) * other.outputs,
            self.gradient - _each(factor, self.gradient) * other.gradient,
        )

    def squared(self) -> Tensor:
        """Squared norm of each trial, [T]."""
        return self.outputs.flatten(1).square().sum(1) + self.gradient.flatten(1).square().sum(1)

    def select(self, trials: Tensor) -> Sides:
        """Of the trials with the given indices."""
        return Sides(self.outputs[trials], self.gradient[trials])


@dataclass(frozen=True)
class LayerEquations:
    """Linear equations for the input a [T, C, H, W] of a layer.

    J (W columns(a)) = J (z - b), of the layer's output, J the derivative of what follows it: the error of an output that
    was read back through an activation is that of the activation over its slope, which J makes up for. And
    dz columns(a)^T = dW, of the weight's gradient. Both are scaled trial by trial to be of like size.

    Attributes:
        columns: of the layer.
        weight: [O, K].
        outputs: (O, H', W').
        link: J.
        scale: of the first set, [T].
        gradient: dz, [T, O, L], of norm 1.
        right: the right hand sides, scaled.
        inverse: preconditioner, symmetric [T, HW, HW] for every feature map alike; None for none.
    """

    columns: Columns
    weight: Tensor
    outputs: tuple[int, ...]
    link: Linearised
    scale: Tensor
    gradient: Tensor
    right: Sides
    inverse: Tensor | None

    def forward(self, maps: Tensor) -> Sides:
        """The left hand sides at maps [T, C, H, W]."""
        columns = self.columns.of(maps)
        outputs = self.link.forward((self.weight @ columns).view(len(maps), *self.outputs))
        return Sides(outputs * _each(self.scale, outputs), self.gradient @ columns.transpose(1, 2))

    def adjoint(self, sides: Sides) -> Tensor:
        """The transposed map: sides to maps [T, C, H, W]."""
        outputs = self.link.adjoint(sides.outputs * _each(self.scale, sides.outputs)).flatten(2)
        columns = torch.baddbmm(self.weight.T @ outputs, sides.gradient.transpose(1, 2), self.gradient)
        return self.columns.back(columns)

    def preconditioned(self, maps: Tensor) -> Tensor:
        """About the inverse of the normal equations times maps."""
        return maps if self.inverse is None else (maps.flatten(2) @ self.inverse).view_as(maps)

    def select(self, trials: Tensor) -> LayerEquations:
        """Of the trials with the given indices."""
        return replace(
            self,
            link=self.link.select(trials),
            scale=self.scale[trials],
            gradient=self.gradient[trials],
            right=self.right.select(trials),
            inverse=None if self.inverse is None else self.inverse[trials],
        )


def layer_equations(
    layer: Layer, weight: Tensor, link: Linearised, rows: Tensor, gradient: Tensor, observed: Tensor
) -> LayerEquations:
    """The equations of a layer's input.

    Where the gradient has as many equations as a feature map has pixels (output channels times kernel places), it all but
    determines the input, each map by itself: its normal equations are factorised then, and those of the output, which carry
    the errors of the layers above, are made light.

    Args:
        layer: the layer.
        weight: [O, C, *kernel] or [O, C].
        link: the derivative of what follows the layer.
        rows: what J (W columns(a)) is known to be, [T, ...].
        gradient: dz, [T, O, H', W'].
        observed: the weight's gradient, [T, *weight's shape].
    """
    columns, flat, dz = Columns(layer), weight.flatten(1), gradient.flatten(2)
    size = _reciprocal(torch.linalg.vector_norm(dz.flatten(1), dim=1))
    dz = dz * _each(size, dz)
    channels, pixels = layer.inputs[0], layer.inputs[1] * layer.inputs[2]
    mostly_gradient = flat.shape[0] * math.prod(layer.kernel) >= pixels and pixels <= _LARGEST_MAP
    slopes = link.adjoint(torch.ones_like(rows)).abs()
    row = torch.linalg.vector_norm(flat, dim=1).mean()
    scale = (_LIGHT if mostly_gradient else 1.0) * _reciprocal(row * slopes.flatten(1).amax(1))
    inverse = None
    if mostly_gradient:
        share = (slopes.flatten(1) * scale[:, None]).square().sum(1) * row.square() / (channels * pixels)
        inverse = _inverse(columns.gram(dz), _SHIFT * share)
    right = Sides(rows * _each(scale, rows), observed.flatten(2) * _each(size, dz))
    return LayerEquations(columns, flat, layer.outputs, link, scale, dz, right, inverse)


def _inverse(gram: Tensor, shift: Tensor) -> Tensor:
    """Of symmetric [T, n, n] plus `shift` [T] on the diagonal; the identity where rounding left one without an inverse."""
    floor = 1e-6 * gram.diagonal(dim1=1, dim2=2).amax(1)
    gram.diagonal(dim1=1, dim2=2).add_(torch.maximum(shift, floor)[:, None])
    factor, failed = torch.linalg.cholesky_ex(gram)
    identity = torch.eye(gram.shape[1]).to(gram)
    factor = torch.where((failed == 0)[:, None, None], factor, identity)
    return torch.cholesky_inverse(factor)


def _reciprocal(norms: Tensor) -> Tensor:
    """1 over norms [T]; 0 where there is nothing to be scaled."""
    return torch.where(norms > 1e-30, 1 / norms, torch.zeros_like(norms))


def _each(factor: Tensor, like: Tensor) -> Tensor:
    """A factor [T] of each trial, to be multiplied with [T, ...]."""
    return factor.view(-1, *[1] * (like.dim() - 1))
