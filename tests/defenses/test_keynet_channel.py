"""Channel transforms: exact recovery, linearity, and networks that compute the same function under their keys."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from defenses.keynet.channel import GAIN_ERROR, ChannelTransform, Treatment
from defenses.keynet.keys import ChannelKey, ChannelKeys, KeyPolicy, draw_keys, identity_keys
from federation.channels import trace_channels
from federation.errors import MalformedMessage, UsageError
from federation.secret_root import SecretRoot
from federation.vision import models

IMAGE = (2, 9, 8)

roots = st.binary(min_size=32, max_size=32).map(SecretRoot)
gain_ranges = st.sampled_from([1.0, 1.5, 10.0, 1000.0])


class Residual(nn.Module):
    """features + body(features), cut to the same size."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


@st.composite
def networks(draw: st.DrawFn, *, batch_norm: bool, activations: Sequence[Callable[[], nn.Module]]) -> nn.Module:
    """A random small network from images of shape `IMAGE` to 2 to 5 outputs."""

    def number(lowest: int, highest: int) -> int:
        return draw(st.integers(lowest, highest))

    def activation() -> list[nn.Module]:
        norm = [nn.LazyBatchNorm2d()] if batch_norm and draw(st.booleans()) else []
        return [*norm, draw(st.sampled_from(activations))()]

    layers: list[nn.Module] = []
    channels = IMAGE[0]
    for kind in draw(st.lists(st.sampled_from(["plain", "grouped", "residual", "pool"]), max_size=4)):
        if kind == "plain":
            new = number(1, 5)
            kernel = (number(1, 3), number(1, 3))
            layers += [nn.Conv2d(channels, new, kernel, number(1, 2), 1, bias=draw(st.booleans())), *activation()]
            channels = new
        elif kind == "grouped":
            groups, width, new_width = number(1, 4), number(1, 3), number(1, 3)
            layers += [nn.Conv2d(channels, groups * width, 1), *activation()]
            layers += [nn.Conv2d(groups * width, groups * new_width, 3, 1, 1, groups=groups), *activation()]
            layers += [nn.Conv2d(groups * new_width, 3, 1)]
            channels = 3
        elif kind == "residual":
            inner = number(1, 4)
            first, second = nn.Conv2d(channels, inner, 3, padding=1), nn.Conv2d(inner, channels, 1)
            layers += [Residual(nn.Sequential(first, *activation(), second)), *activation()]
        elif kind == "pool":
            layers += [draw(st.sampled_from([nn.AvgPool2d, nn.MaxPool2d]))(3, 2, 1)]
    layers += [draw(st.sampled_from([nn.Identity(), nn.AdaptiveAvgPool2d(1)])), nn.Flatten()]
    if draw(st.booleans()):
        layers += [nn.LazyLinear(number(1, 6)), draw(st.sampled_from(activations))(), nn.Dropout()]
    network = nn.Sequential(*layers, nn.LazyLinear(number(2, 5))).eval()
    network(torch.zeros(1, *IMAGE))
    return randomised(network, number(0, 99))


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """The network with weights, and positive variances, of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator) * (2 / max(tensor[0].numel(), 1)) ** 0.5
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return network


def images(count: int = 3, shape: tuple[int, ...] = IMAGE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def keyed(network: nn.Module, keys: ChannelKeys, transform: ChannelTransform) -> nn.Module:
    twin = copy.deepcopy(network)
    twin.load_state_dict(transform.protect(network.state_dict()))
    return twin


def check_same_function(network: nn.Module, root: SecretRoot, gain_range: float, shape: tuple[int, ...]) -> None:
    """keyed network(x) is network(x), its outputs permuted, to 1e-5 of the largest output."""
    channel_map = trace_channels(network, shape)
    keys = draw_keys(channel_map, root, KeyPolicy(gain_range))
    twin = keyed(network, keys, ChannelTransform(keys, channel_map))
    with torch.no_grad():
        expected = network.double()(images(shape=shape))[:, keys.keys[-1].permutation]
        found = twin.double()(images(shape=shape))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


ACTIVATIONS_OF_GAINS = [nn.ReLU, nn.LeakyReLU, nn.Identity]
ALL_ACTIVATIONS = [*ACTIVATIONS_OF_GAINS, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.SiLU]


@settings(max_examples=60, deadline=None)
@given(networks(batch_norm=False, activations=ACTIVATIONS_OF_GAINS), roots, st.sampled_from([1.0, 2.0, 10.0]))
def test_gains_leave_the_function_of_a_relu_network(network: nn.Module, root: SecretRoot, gain_range: float) -> None:
    check_same_function(network, root, gain_range, IMAGE)


@settings(max_examples=60, deadline=None)
@given(networks(batch_norm=True, activations=ALL_ACTIVATIONS), roots)
def test_permutations_leave_the_function_of_any_network(network: nn.Module, root: SecretRoot) -> None:
    check_same_function(network, root, 1.0, IMAGE)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2"])
def test_permutations_leave_the_function_of_known_networks(architecture: str) -> None:
    network = randomised(getattr(models, architecture)(weights=None, num_classes=10).eval(), 0)
    check_same_function(network, SecretRoot(bytes(32)), 1.0, (3, 32, 32))


def test_a_flat_permutation_is_no_equivalent_network() -> None:
    """The oracle above can fail: without the key of one space the outputs are others."""
    network = randomised(nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(252, 5)).eval(), 0)
    channel_map = trace_channels(network, IMAGE)
    keys = draw_keys(channel_map, SecretRoot(bytes(32)), KeyPolicy(2.0))
    protected = ChannelTransform(keys, channel_map).protect(network.state_dict())
    protected["0.weight"] = network.state_dict()["0.weight"]
    twin = copy.deepcopy(network)
    twin.load_state_dict(protected)
    expected = network.double()(images())[:, keys.keys[-1].permutation]
    assert (twin.double()(images()) - expected).abs().max() > 0.1 * expected.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    networks(batch_norm=True, activations=[nn.ReLU]), roots, gain_ranges, st.sampled_from(["permutation", "monomial"])
)
def test_weights_are_recovered_within_the_stated_error(
    network: nn.Module, root: SecretRoot, gain_range: float, outputs: Any
) -> None:
    channel_map = trace_channels(network, IMAGE)
    transform = ChannelTransform(draw_keys(channel_map, root, KeyPolicy(gain_range, outputs)), channel_map)
    weights = network.state_dict()
    protected = transform.protect(weights)
    recovered = transform.recover(protected)
    assert recovered.keys() == protected.keys() == weights.keys()
    for name, tensor in weights.items():
        error = (recovered[name].double() - tensor.double()).abs()
        assert (error <= transform.recovery_error(name) * tensor.abs()).all()
        assert protected[name].dtype == tensor.dtype
        assert protected[name].shape == tensor.shape
        assert gain_range > 1 or transform.recovery_error(name) == 0
        if name.endswith("running_var"):
            assert (protected[name] > 0).all()


@settings(max_examples=30, deadline=None)
@given(networks(batch_norm=True, activations=[nn.ReLU]), roots, gain_ranges)
def test_averages_and_differences_commute_with_the_transform(
    network: nn.Module, root: SecretRoot, gain_range: float
) -> None:
    channel_map = trace_channels(network, IMAGE)
    transform = ChannelTransform(draw_keys(channel_map, root, KeyPolicy(gain_range)), channel_map)
    clients = [{k: v.clone() for k, v in randomised(network, seed).state_dict().items()} for seed in (1, 2, 3)]
    shares = (0.5, 0.3, -0.2)
    protected = [transform.protect(client) for client in clients]
    for name, tensor in clients[0].items():
        if not tensor.is_floating_point():
            continue
        combined = sum(share * message[name].double() for share, message in zip(shares, protected, strict=True))
        found = transform.recover({name: torch.as_tensor(combined).float()})[name].double()
        terms = torch.stack([share * client[name].double() for share, client in zip(shares, clients, strict=True)])
        assert ((found - terms.sum(dim=0)).abs() <= 4 * 2.0**-24 * terms.abs().sum(dim=0)).all()


def matrix_of(key: ChannelKey, pixels: int) -> Any:
    """A x I over pixels, channel by channel, as a sparse matrix."""
    order = scipy.sparse.csr_matrix(np.eye(key.size)[key.permutation])
    return scipy.sparse.kron(scipy.sparse.diags(key.gains) @ order, scipy.sparse.eye(pixels)).tocsr()


def toeplitz(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """The layer's matrix on flattened feature maps, from its Jacobian."""
    jacobian = torch.func.jacrev(lambda features: layer(features.reshape(1, *shape)).flatten())
    return jacobian(torch.zeros(int(np.prod(shape)), dtype=torch.float64)).numpy()


@pytest.mark.parametrize(("groups", "width"), [(1, 6), (3, 6), (6, 6), (6, 12)])
def test_kernels_are_those_of_the_dense_matrices(groups: int, width: int) -> None:
    """What = A_out W A_in^-1 on Toeplitz matrices, entry by entry, for an ordinary, a grouped and depthwise layers."""
    network = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, width, 3, stride=2, padding=1, groups=groups), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 4, 5),
    )  # fmt: skip
    randomised(network, 3)
    channel_map = trace_channels(network, (2, 4, 3))
    keys = draw_keys(channel_map, SecretRoot(b"dense" * 8), KeyPolicy(4.0, "monomial"))
    image, first, second, output = keys.keys
    protected = ChannelTransform(keys, channel_map).protect(network.state_dict())
    plain = {name: tensor.double() for name, tensor in network.state_dict().items()}
    hat = {name: tensor.double() for name, tensor in protected.items()}

    def check(layer: Callable[..., Tensor], name: str, shape: tuple[int, ...], out: Any, inside: Any) -> None:
        expected = out @ toeplitz(lambda x: layer(x, plain[name]), shape) @ np.linalg.inv(inside.toarray())
        assert toeplitz(lambda x: layer(x, hat[name]), shape) == pytest.approx(expected, rel=3e-7, abs=1e-12)

    def strided(features: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(features, kernel, stride=2, padding=1, groups=groups)

    check(F.conv2d, "0.weight", (2, 4, 3), matrix_of(first, 12), matrix_of(image, 12))
    check(strided, "2.weight", (6, 4, 3), matrix_of(second, 4), matrix_of(first, 12))
    check(F.linear, "5.weight", (width * 4,), matrix_of(output, 1), matrix_of(second, 4))
    for name, key in (("0.bias", first), ("2.bias", second), ("5.bias", output)):
        assert hat[name].numpy() == pytest.approx(matrix_of(key, 1) @ plain[name].numpy(), rel=3e-7)


def example(gain_range: float) -> tuple[nn.Module, ChannelTransform]:
    network = nn.Sequential(
        nn.Conv2d(2, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 60, 3), nn.Flatten(), nn.Linear(1200, 9)
    )
    channel_map = trace_channels(network, IMAGE)
    keys = draw_keys(channel_map, SecretRoot(b"example!" * 4), KeyPolicy(gain_range))
    return randomised(network, 0), ChannelTransform(keys, channel_map)


def test_error_of_gains_is_that_of_two_roundings() -> None:
    network, transform = example(2.0)
    weights = network.state_dict()
    recovered = transform.recover(transform.protect(weights))
    relative = ((recovered["3.weight"] - weights["3.weight"]) / weights["3.weight"]).double()
    assert 2e-8 < float(relative.square().mean().sqrt()) < 4e-8
    assert float(relative.abs().max()) <= GAIN_ERROR == transform.recovery_error("3.weight")


def test_treatments_are_what_happens() -> None:
    for gain_range, expected in ((1.0, Treatment.PERMUTED), (2.0, Treatment.PERMUTED_AND_SCALED)):
        network, transform = example(gain_range)
        weights = network.state_dict()
        protected = transform.protect(weights)
        treatments = {name: transform.treatment(name) for name in weights}
        assert treatments.pop("1.num_batches_tracked") is Treatment.PLAIN
        assert treatments.pop("5.bias") is Treatment.PERMUTED
        assert set(treatments.values()) == {expected}
        for name, tensor in weights.items():
            same_values = torch.equal(protected[name].flatten().sort().values, tensor.flatten().sort().values)
            assert same_values == (transform.treatment(name) is not Treatment.PERMUTED_AND_SCALED)
            assert torch.equal(protected[name], tensor) == (transform.treatment(name) is Treatment.PLAIN)


def test_gains_alone_are_called_so() -> None:
    channel_map = trace_channels(nn.Sequential(nn.Flatten(), nn.Linear(8, 1), nn.Linear(1, 1)), (2, 2, 2))
    keys = [*identity_keys(channel_map).keys]
    keys[1] = ChannelKey(np.zeros(1, dtype=np.int64), np.full(1, 3.0))
    transform = ChannelTransform(ChannelKeys(tuple(keys)), channel_map)
    assert transform.treatment("1.weight") is Treatment.SCALED
    assert torch.equal(transform.protect({"1.bias": torch.tensor([2.0])})["1.bias"], torch.tensor([6.0]))


def test_identity_keys_leave_every_tensor_plain_in_memory_of_its_own() -> None:
    network, _ = example(1.0)
    channel_map = trace_channels(network, IMAGE)
    transform = ChannelTransform(identity_keys(channel_map), channel_map)
    weights = network.state_dict()
    for step in (transform.protect, transform.recover):
        for name, tensor in step(weights).items():
            assert transform.treatment(name) is Treatment.PLAIN
            assert torch.equal(tensor, weights[name])
            assert tensor.data_ptr() != weights[name].data_ptr()


def test_inputs_stay_as_they_are_and_need_no_order_in_memory() -> None:
    network, transform = example(2.0)
    weights = {"3.weight": network.state_dict()["3.weight"]}
    before = weights["3.weight"].clone()
    protected = transform.protect(weights)
    kept = protected["3.weight"].clone()
    transform.recover(protected)
    assert torch.equal(weights["3.weight"], before)
    assert torch.equal(protected["3.weight"], kept)
    shuffled = before.to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(transform.protect({"3.weight": shuffled})["3.weight"], kept)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("7.weight", torch.zeros(1), "no tensor '7.weight'"),
        ("3.weight", torch.zeros(60, 40, 3, 3).double(), "float64"),
        ("3.weight", torch.zeros(60, 39, 3, 3), r"need float32 \(60, 40, ...\)"),
        ("3.weight", torch.zeros(61, 40, 3, 3), "3.weight"),
        ("3.weight", torch.zeros(60 * 40 * 9), "3.weight"),
        ("3.weight", torch.tensor(1.0), "3.weight"),
        ("5.weight", torch.zeros(9, 60), r"need float32 \(9, 1200, ...\)"),
        ("5.bias", torch.zeros(8), "5.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name: str, tensor: Tensor, message: str) -> None:
    _, transform = example(2.0)
    for step in (transform.protect, transform.recover):
        with pytest.raises(MalformedMessage, match=message):
            step({name: tensor})


def test_keys_of_another_network_are_refused() -> None:
    network, _ = example(1.0)
    channel_map = trace_channels(network, IMAGE)
    with pytest.raises(UsageError, match="4 channel spaces"):
        ChannelTransform(ChannelKeys(identity_keys(channel_map).keys[:2]), channel_map)
