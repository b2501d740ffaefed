"""The linear equations of a layer's input against autograd, dense matrices and LAPACK."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.inversion.chain import Layer, invertible_chain
from attacks.inversion.columns import Columns
from attacks.inversion.equations import LayerEquations, Sides, layer_equations
from attacks.inversion.layerwise import input_of_linear
from attacks.inversion.least_squares import solve
from attacks.inversion.links import Link, PoolMap
from federation.network import Network

TRIALS = 2


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Layer, nn.Conv2d]:
    """A convolution of some shape, on maps that it fits."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    channels = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    rows, columns = ((side - 1) * dilation[axis] + 1 + draw(st.integers(0, 4)) for axis, side in enumerate(kernel))
    size = rows, columns
    module = nn.Conv2d(*channels, kernel, stride, padding, dilation).double()
    _, out, height, width = module(torch.zeros(1, channels[0], *size).double()).shape
    layer = Layer(
        "c", "c.weight", "c.bias", False, (channels[0], *size), (out, height, width), kernel, stride, padding, dilation
    )
    return layer, module


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_columns_are_what_a_convolution_reads(case: tuple[Layer, nn.Conv2d]) -> None:
    layer, module = case
    maps, gradient = drawn(TRIALS, *layer.inputs), drawn(TRIALS, *layer.outputs, seed=1)
    columns = Columns(layer).of(maps)
    assert columns.shape[1] * columns.shape[2] == layer.column_values
    made = (module.weight.flatten(1) @ columns).view(TRIALS, *layer.outputs)
    torch.testing.assert_close(made, convolved(layer, maps, module.weight))
    for trial in range(TRIALS):
        made = module(maps[trial : trial + 1])
        (weight,) = torch.autograd.grad(made, module.weight, gradient[trial : trial + 1])
        ours = gradient[trial].flatten(1) @ columns[trial].T
        torch.testing.assert_close(ours, weight.flatten(1))
    # <columns(a), b> = <a, back(b)>
    other = drawn(*columns.shape, seed=2)
    torch.testing.assert_close((columns * other).sum(), (maps * Columns(layer).back(other)).sum())


def convolved(layer: Layer, maps: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.conv2d(maps, weight, None, layer.stride, layer.padding, layer.dilation)


@settings(max_examples=25, deadline=None)
@given(convolutions())
def test_the_gram_matrix_is_that_of_the_gradients_equations(case: tuple[Layer, nn.Conv2d]) -> None:
    layer, _ = case
    one_map = dataclasses.replace(layer, inputs=(1, *layer.inputs[1:]))
    gradient = drawn(TRIALS, layer.outputs[0], layer.outputs[1] * layer.outputs[2])
    pixels = one_map.inputs[1] * one_map.inputs[2]
    units = torch.eye(pixels, dtype=torch.float64).view(pixels, *one_map.inputs)
    for trial, found in enumerate(Columns(one_map).gram(gradient)):
        dense = (gradient[trial] @ Columns(one_map).of(units).transpose(1, 2)).flatten(1)
        torch.testing.assert_close(found, dense @ dense.T)


def chain_layer(*after: nn.Module) -> Layer:
    """A convolution to three channels of 5 x 4, and what follows it."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), *after, nn.Flatten(), nn.LazyLinear(4))

    def whole() -> nn.Module:
        module = build()
        module(torch.zeros(1, 2, 5, 4))
        return module

    return invertible_chain(Network(whole, (2, 5, 4), 4)).layers[0]


def equations(layer: Layer, truth: Tensor, seed: int = 3) -> LayerEquations:
    """Of known maps, with drawn weights and gradient at what follows the layer."""
    link, weight = Link(layer.after, layer.outputs), drawn(layer.outputs[0], layer.inputs[0], *layer.kernel, seed=seed)
    made = convolved(layer, truth, weight)
    around = link.linearised(made)
    gradient = around.adjoint(drawn(len(truth), *link.result_shape, seed=seed + 1))
    observed = gradient.flatten(2) @ Columns(layer).of(truth).transpose(1, 2)
    return layer_equations(layer, weight, around, around.forward(made), gradient, observed.view(-1, *weight.shape))


def dense(system: LayerEquations, trial: int, shape: tuple[int, ...]) -> Tensor:
    """The equations of one trial as a matrix."""
    values = torch.Size(shape).numel()
    units = torch.eye(values, dtype=torch.float64).view(values, *shape)
    sides = system.select(torch.full((values,), trial)).forward(units)
    return torch.cat([sides.outputs.flatten(1), sides.gradient.flatten(1)], dim=1).T


LINKS: dict[str, list[nn.Module]] = {
    "sigmoid": [nn.Sigmoid()],
    "relu": [nn.ReLU()],
    "tanh, pooled": [nn.Tanh(), nn.AvgPool2d(2)],
    "pooled, sigmoid": [nn.AvgPool2d(2), nn.Sigmoid()],
    "pooled in overlaps, sigmoid": [nn.AvgPool2d((2, 1), stride=1), nn.Sigmoid()],
    "nothing": [],
}


@pytest.mark.parametrize("after", LINKS.values(), ids=LINKS)
def test_adjoint_and_solution_are_those_of_the_dense_system(after: list[nn.Module]) -> None:
    layer = chain_layer(*after)
    truth = drawn(TRIALS, *layer.inputs)
    system = equations(layer, truth)
    sides, maps = system.forward(truth), drawn(TRIALS, *layer.inputs, seed=9)
    other = Sides(drawn(*sides.outputs.shape, seed=5), drawn(*sides.gradient.shape, seed=6))
    left = (system.forward(maps).outputs * other.outputs).sum() + (system.forward(maps).gradient * other.gradient).sum()
    torch.testing.assert_close(left, (maps * system.adjoint(other)).sum())
    torch.testing.assert_close(sides.outputs, system.right.outputs)
    torch.testing.assert_close(sides.gradient, system.right.gradient)

    disturbed = dataclasses.replace(system, right=system.right.minus(other, torch.full((TRIALS,), -0.1).double()))
    found = solve(disturbed, torch.zeros_like(truth), iterations=400, tolerance=1e-24)
    for trial in range(TRIALS):
        matrix = dense(disturbed, trial, layer.inputs)
        right = torch.cat([disturbed.right.outputs[trial].flatten(), disturbed.right.gradient[trial].flatten()])
        best = torch.linalg.lstsq(matrix, right[:, None], driver="gelsd").solution[:, 0]
        torch.testing.assert_close(found.maps[trial].flatten(), best, rtol=1e-5, atol=1e-6)
        residual = (right - matrix @ best).norm() / right.norm()
        torch.testing.assert_close(found.residual[trial], residual, rtol=1e-5, atol=1e-9)


def test_a_system_does_not_see_the_others() -> None:
    layer = chain_layer(nn.Sigmoid())
    truth = drawn(3, *layer.inputs)
    truth[2] = float("nan")
    together = solve(equations(layer, truth), torch.zeros_like(truth), iterations=60, tolerance=1e-20)
    system = equations(layer, truth).select(torch.tensor([0]))
    alone = solve(system, torch.zeros_like(truth[:1]), iterations=60, tolerance=1e-20)
    torch.testing.assert_close(together.maps[:1], alone.maps)
    torch.testing.assert_close(alone.maps, truth[:1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LINKS)
def test_a_link_and_its_derivative(name: str) -> None:
    layer = chain_layer(*LINKS[name])
    link = Link(layer.after, layer.outputs)
    outputs = drawn(TRIALS, *layer.outputs)
    along = drawn(TRIALS, *layer.outputs, seed=1)
    result, derivative = torch.func.jvp(link, (outputs,), (along,))  # type: ignore[misc]
    torch.testing.assert_close(link.linearised(outputs).forward(along), derivative)
    variable = outputs.clone().requires_grad_()
    (pulled,) = torch.autograd.grad(link(variable).sum(), variable)
    torch.testing.assert_close(link.linearised(outputs).adjoint(torch.ones_like(result)), pulled)
    if not link.mixes:
        torch.testing.assert_close(link(link.undone(result)), result)
    assert link.mixes == (name in ("tanh, pooled", "pooled in overlaps, sigmoid"))


def test_pooling_with_padding_has_the_right_adjoint() -> None:
    (pool,) = chain_layer(nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)).after
    one, other = drawn(1, 3, 5, 4), drawn(1, 3, 3, 2, seed=1)
    pooled = PoolMap(pool)  # type: ignore[arg-type]
    torch.testing.assert_close((pooled.forward(one) * other).sum(), (one * pooled.adjoint(other)).sum())


def test_the_input_of_a_linear_layer_is_the_least_squares_solution_over_all_rows() -> None:
    inputs, bias = drawn(3, 7), drawn(3, 5, seed=1)
    exact = bias[:, :, None] * inputs[:, None]
    found, left = input_of_linear(exact, bias)
    torch.testing.assert_close(found, inputs)
    assert float(left.max()) < 1e-12
    noisy = exact + 0.1 * drawn(3, 5, 7, seed=2)
    found, left = input_of_linear(noisy, bias)
    for trial in range(3):
        best = torch.linalg.lstsq(bias[trial][:, None], noisy[trial])
        torch.testing.assert_close(found[trial], best.solution[0])
        unexplained = (noisy[trial] - bias[trial][:, None] @ best.solution).square().sum()
        torch.testing.assert_close(left[trial].square(), unexplained / noisy[trial].square().sum())
