"""Layers as sparse homogeneous matrices: against PyTorch's own layers, impulse by impulse, and published sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from federation.errors import UsageError
from federation.models import build_model
from federation.network import Network
from federation.toeplitz import (
    Elementwise,
    Linear,
    Opaque,
    Sum,
    ToeplitzNetwork,
    densify_depthwise,
    toeplitz_of,
    trace_toeplitz,
)
from federation.vision import models
from federation.weights import weights_of


def applied(step: Linear, model: nn.Module, images: Tensor) -> Tensor:
    """The step's matrix on [x; 1], for images [N, ...], as float64 [N, outputs]; the last row must give 1."""
    flat = np.hstack([images.double().flatten(1).numpy(), np.ones((len(images), 1))])
    results = step.layout.matrix(step.fill(model.state_dict())) @ flat.T
    assert np.allclose(results[-1], 1)
    return torch.from_numpy(results[:-1].T.copy())


def named(layer: nn.Module) -> nn.Module:
    """A network of one layer: a layer that is traced by itself is no layer of a network."""
    network = nn.Sequential()
    network.add_module("named", layer)
    return network


def only_linear(layer: nn.Module, image_shape: tuple[int, ...]) -> Linear:
    (step,) = trace_toeplitz(named(layer), image_shape).linear
    return step


def agrees(layer: nn.Module, images: Tensor) -> bool:
    """Whether the matrix of a linear layer does what the layer does."""
    step, model = only_linear(layer, images.shape[1:]), named(layer).double().eval()
    with torch.no_grad():
        truth = model(images.double())
    return torch.allclose(applied(step, model, images), truth.flatten(1), rtol=0, atol=1e-6)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Options of a convolution, and an image shape that it takes."""
    groups = draw(st.integers(1, 3))
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, dilation = draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride = draw(pair)
    padding: Any = draw(st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just("valid")))
    if draw(st.booleans()):
        stride, padding = (1, 1), "same"
    smallest = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    height, width = (size + draw(st.integers(0, 6)) for size in smallest)
    channels = groups * draw(st.integers(1, 2))
    options = {
        "in_channels": channels, "out_channels": groups * draw(st.integers(1, 3)), "kernel_size": kernel,
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": draw(st.booleans()),
    }  # fmt: skip
    return options, (channels, height, width)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(deadline=None, max_examples=80)
@given(convolutions(), st.integers(0, 10**6))
def test_a_convolution_is_its_matrix(drawn: tuple[dict[str, Any], tuple[int, int, int]], seed: int) -> None:
    options, shape = drawn
    torch.manual_seed(seed)
    assert agrees(nn.Conv2d(**options), torch.randn(2, *shape))


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    data=st.data(),
    ceil_mode=st.booleans(),
    include=st.booleans(),
    divisor=st.one_of(st.none(), st.integers(1, 5)),
)
def test_average_pooling_is_its_matrix(
    kernel: tuple[int, int],
    stride: tuple[int, int] | None,
    data: st.DataObject,
    ceil_mode: bool,
    include: bool,
    divisor: int | None,
) -> None:
    padding = tuple(data.draw(st.integers(0, size // 2)) for size in kernel)
    height, width = (data.draw(st.integers(size, size + 6)) for size in kernel)
    layer = nn.AvgPool2d(kernel, stride, padding, ceil_mode, include, divisor)
    assert agrees(layer, torch.randn(2, 3, height, width))


@settings(deadline=None, max_examples=30)
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 9)), output=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_adaptive_pooling_is_its_matrix(size: tuple[int, int], output: tuple[int, int]) -> None:
    assert agrees(nn.AdaptiveAvgPool2d(output), torch.randn(2, 2, *size))


class Mean(nn.Module):
    def __init__(self, axes: Any) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=self.axes)


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), 3, [2]])
def test_a_mean_over_pixels_is_its_matrix(axes: Any) -> None:
    assert agrees(Mean(axes), torch.randn(2, 3, 4, 5))


def test_pooling_as_a_function_is_its_matrix() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)

    assert agrees(Pooled(), torch.randn(2, 2, 7, 6))


@pytest.mark.parametrize("bias", [True, False])
def test_a_fully_connected_layer_is_its_matrix(bias: bool) -> None:
    step = only_linear(nn.Linear(7, 4, bias=bias), (7,))
    assert agrees(nn.Linear(7, 4, bias=bias), torch.randn(3, 7))
    assert step.layout.entries == 28 + 4 * bias + 1


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, eps=0.1)])
def test_batch_norm_in_evaluation_is_its_matrix(layer: nn.BatchNorm2d) -> None:
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    assert agrees(layer, torch.randn(4, 3, 3, 5))


def test_the_matrix_is_the_response_to_impulses() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    step = only_linear(layer, (2, 5, 4))
    layer = layer.double()
    with torch.no_grad():
        nothing = layer(torch.zeros(1, 2, 5, 4).double()).flatten()
        responses = layer(torch.eye(40).double().reshape(40, 2, 5, 4)).flatten(1) - nothing
    dense = step.layout.matrix(step.fill(named(layer).state_dict())).toarray()
    assert np.allclose(dense[:-1, :-1], responses.T)
    assert np.allclose(dense[:-1, -1], nothing)
    assert np.array_equal(dense[-1], np.eye(41)[-1])


@settings(deadline=None, max_examples=40)
@given(convolutions(), st.integers(0, 10**6))
def test_values_come_back_from_the_matrix(drawn: tuple[dict[str, Any], tuple[int, int, int]], seed: int) -> None:
    options, shape = drawn
    layout = only_linear(nn.Conv2d(**options), shape).layout
    values = np.random.default_rng(seed).normal(size=layout.value_count)
    back = layout.mean_values(layout.matrix(values))
    placed = np.setdiff1d(np.arange(layout.value_count), layout.separate)
    assert np.allclose(back[placed], values[placed], rtol=1e-12)
    assert np.isnan(back[layout.separate]).all()


@settings(deadline=None, max_examples=40)
@given(convolutions())
def test_entries_are_in_csr_order_and_channels_share_no_value(
    drawn: tuple[dict[str, Any], tuple[int, int, int]],
) -> None:
    options, shape = drawn
    layout = only_linear(nn.Conv2d(**options), shape).layout
    rows = np.repeat(np.arange(layout.shape[0]), np.diff(layout.indptr))
    places = rows * layout.shape[1] + layout.indices
    assert np.all(np.diff(places) > 0)
    pairs = {(row // layout.rows_per_channel, value) for row, value in zip(rows, layout.sources, strict=True)}
    assert len(pairs) == len({value for _, value in pairs})
    assert layout.indptr.dtype == layout.indices.dtype == layout.sources.dtype == np.int32


def test_separate_taps_are_those_that_only_meet_padding() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1, groups=2)
    layout = only_linear(layer, (2, 1, 1)).layout
    assert sorted(layout.separate) == [tap for tap in range(18) if tap % 9 != 4]
    strided = only_linear(nn.Conv2d(1, 1, 3, stride=2, padding=1), (1, 2, 2)).layout
    assert sorted(strided.separate) == [0, 1, 2, 3, 6]


def test_published_size_of_lenet5() -> None:
    traced = trace_toeplitz(build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28))
    assert traced.entries == 413_179
    size = sum(8 * step.layout.entries + 4 * len(step.layout.indptr) for step in traced.weighted)
    assert size == pytest.approx(3.3e6, rel=0.02)
    assert not any(len(step.layout.separate) for step in traced.weighted)


def test_published_size_of_mobilenet_v2() -> None:
    with torch.device("meta"):
        network = models.mobilenet_v2(num_classes=10)
    traced = trace_toeplitz(network, (3, 32, 32))
    assert traced.entries == pytest.approx(6.0e6, rel=0.01)
    size = sum(8 * step.layout.entries + 4 * len(step.layout.indptr) for step in traced.weighted)
    assert size == pytest.approx(48.5e6, rel=0.002)
    assert sum(len(step.layout.separate) for step in traced.weighted) == 25_920
    assert not any(isinstance(step, Opaque) for step in traced.steps)


@settings(deadline=None, max_examples=30)
@given(groups=st.integers(1, 4), width=st.integers(1, 2), multiplier=st.integers(1, 3), kernel=st.integers(1, 3))
def test_densified_depthwise_convolution_gives_the_same(groups: int, width: int, multiplier: int, kernel: int) -> None:
    weight = torch.randn(groups * multiplier, width, kernel, kernel)
    images = torch.randn(2, groups * width, 5, 4)
    dense = densify_depthwise(weight, groups)
    assert dense.shape == (groups * multiplier, groups * width, kernel, kernel)
    assert torch.allclose(F.conv2d(images, dense), F.conv2d(images, weight, groups=groups), atol=1e-5)


def test_densifying_needs_groups_that_divide() -> None:
    with pytest.raises(UsageError, match="5 output channels do not divide into 2 groups"):
        densify_depthwise(torch.zeros(5, 1, 3, 3), 2)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = F.relu6(0.5 * self.depthwise(x) - x)
        return self.fc(self.pool(x).flatten(1))


def test_residual_sums_share_a_space() -> None:
    traced = trace_toeplitz(Residual(), (2, 4, 4))
    assert [type(step) for step in traced.steps] == [
        Linear, Elementwise, Linear, Elementwise, Sum, Elementwise, Opaque, Elementwise, Linear,
    ]  # fmt: skip
    assert [(space.role, space.shape) for space in traced.spaces] == [
        ("input", (2, 4, 4)), ("hidden", (3, 4, 4)), ("hidden", (3, 2, 2)), ("output", (5,)),
    ]  # fmt: skip
    assert traced.spaces[1].activations == {"relu", "relu6"}
    assert [space.origins for space in traced.spaces] == [{"image"}, {"layer"}, {"other"}, {"layer"}]
    (difference,) = (step for step in traced.steps if isinstance(step, Sum))
    assert difference.sign == -1


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


def test_a_sum_of_a_result_with_itself_reads_it_twice() -> None:
    (step,) = trace_toeplitz(Twice(), (1, 2, 2)).steps
    assert isinstance(step, Sum)
    assert step.sources == ("x", "x")


class Overwritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return y.relu_() + y


def test_working_in_place_on_what_is_read_again_is_opaque() -> None:
    assert isinstance(trace_toeplitz(Overwritten(), (1, 2, 2)).steps[1], Opaque)


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), (1, 4, 4), "padding by 'circular'"),
        (nn.Linear(4, 2), (3, 4), "one vector an image"),
        (nn.Conv2d(64, 64, 3, padding=1), (64, 32, 32), "36,257,793 entries, over the"),
    ],
)
def test_refusals_name_the_layer(layer: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=f"layer 'named' .*{reason}"):
        trace_toeplitz(named(layer), shape)


def test_a_federations_network_is_laid_out_once() -> None:
    network = Network(lambda: build_model("logistic", (1, 3, 3), 4, seed=0), (1, 3, 3), 4)
    traced = toeplitz_of(network)
    assert isinstance(traced, ToeplitzNetwork)
    assert toeplitz_of(network) is traced
    (step,) = traced.weighted
    assert step.tensors == ("linear.weight", "linear.bias")
    weights = weights_of(network.build())
    values = step.fill(weights)
    assert len(values) == sum(math.prod(spec.shape) for spec in network.layout) == step.layout.value_count
