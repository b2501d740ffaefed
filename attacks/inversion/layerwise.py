"""From the gradient of one image to the image: the input of every layer, the last one first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.inversion.chain import Chain, Layer
from attacks.inversion.columns import Columns
from attacks.inversion.equations import layer_equations
from attacks.inversion.least_squares import Solutions, solve
from attacks.inversion.links import Link


@dataclass(frozen=True)
class Effort:
    """How hard a layer's equations are tried.

    Attributes:
        iterations: of least squares in each layer at most, all of its sweeps together.
        tolerance: where least squares end in a hidden layer, whose errors every layer below magnifies; see
            `least_squares.solve`.
        last_tolerance: where they end in the first layer, whose input is the image.
        sweeps: how often a layer is linearised anew where pooling mixes what an activation made.
    """

    iterations: int
    tolerance: float
    last_tolerance: float
    sweeps: int


@dataclass(frozen=True)
class Inverted:
    """What came of the gradients of T images.

    Attributes:
        images: network inputs [T, C, H, W].
        residuals: by layer, the norm of what its equations leave over that of their right hand sides, [T].
        iterations: the most that any layer took, [T].
    """

    images: Tensor
    residuals: Mapping[str, Tensor]
    iterations: Tensor


@dataclass(frozen=True)
class Known:
    """What is known at some point of the network.

    Attributes:
        values: what passes there, [T, ...].
        gradient: the loss's gradient there, of the same shape.
    """

    values: Tensor
    gradient: Tensor

    def shaped(self, shape: tuple[int, ...]) -> Known:
        """The same, an image's values in another shape."""
        return Known(self.values.view(-1, *shape), self.gradient.view(-1, *shape))


def invert(chain: Chain, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], effort: Effort) -> Inverted:
    """Invert the gradients of single images.

    Args:
        chain: the layers.
        weights: at which the gradients were taken, by name.
        gradients: [T, *parameter shape] by name.
        effort: how hard to try.
    """
    last = chain.layers[-1]
    assert last.bias is not None, "a chain ends with a layer that has one"
    values, residual = input_of_linear(gradients[last.weight], gradients[last.bias])
    known = Known(values, gradients[last.bias] @ weights[last.weight])
    residuals = {last.name: residual}
    most = torch.zeros(len(values), dtype=torch.long, device=values.device)
    for layer in reversed(chain.layers[:-1]):
        tolerance = effort.last_tolerance if layer is chain.layers[0] else effort.tolerance
        found, gradient = _input_of(layer, weights, gradients[layer.weight], known, effort, tolerance)
        known, residuals[layer.name] = Known(found.maps, gradient), found.residual
        most = torch.maximum(most, found.iterations)
    return Inverted(known.values.view(-1, *chain.image_shape), residuals, most)


def input_of_linear(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The input of a fully connected layer from its gradients (Gusain 2021, eq. 2.2, corrected).

    Row i of the weight's gradient is the input times entry i of the bias's, so that any row over its entry gives it. All
    rows are used, weighted by their entries squared: the least-squares solution.

    Args:
        weight: [T, O, D].
        bias: [T, O].

    Returns:
        The inputs [T, D], and the share of the weight's gradient that they leave unexplained, [T].
    """
    tiny = torch.finfo(weight.dtype).tiny
    inputs = (bias[:, None] @ weight)[:, 0] / bias.square().sum(1, keepdim=True).clamp_min(tiny)
    left = weight - bias[:, :, None] * inputs[:, None]
    missing, whole = (torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (left, weight))
    return inputs, missing / whole.clamp_min(tiny)


def _input_of(
    layer: Layer, weights: Mapping[str, Tensor], observed: Tensor, above: Known, effort: Effort, tolerance: float
) -> tuple[Solutions, Tensor]:
    """A layer's input and the loss's gradient there, from what the next layer reads.

    Where the output follows from what the next layer reads, this is one linear system. Where pooling mixes what an
    activation made, it is linearised around the output as far as it is known, sweep by sweep (Gauss-Newton, without the
    change of the gradient).
    """
    link, columns = Link(layer.after, layer.outputs), Columns(layer)
    above = above.shaped(link.result_shape)
    weight = weights[layer.weight]
    bias = (weight.new_zeros(len(weight)) if layer.bias is None else weights[layer.bias]).view(-1, 1, 1)
    outputs = link.undone(above.values)
    found = Solutions.none_yet(weight.new_zeros(len(outputs), *layer.inputs))
    sweeps = effort.sweeps if link.mixes else 1
    for _ in range(sweeps):
        around = link.linearised(outputs)
        gradient = around.adjoint(above.gradient)
        rows = around.forward(outputs - bias)
        if link.mixes:
            rows = rows + above.values - link(outputs)
        equations = layer_equations(layer, weight, around, rows, gradient, observed)
        iterations = effort.iterations // sweeps
        found = found.followed_by(solve(equations, found.maps, iterations=iterations, tolerance=tolerance))
        if link.mixes:
            outputs = (weight.flatten(1) @ columns.of(found.maps)).view_as(outputs) + bias
    return found, columns.back(weight.flatten(1).T @ gradient.flatten(2))
