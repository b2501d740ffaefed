"""What channel transforms do to tensors: the formula on dense matrices, declared treatments, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch
import torch.nn.functional as F
from random_networks import randomised
from small_networks import IMAGE, keyed_example
from torch import Tensor, nn

from defenses.keynet.channel import ChannelTransform, Treatment
from defenses.keynet.keys import ChannelKey, ChannelKeys, KeyPolicy, draw_keys, identity_keys
from defenses.keynet.mixing import SoftKey
from federation.channels import trace_channels
from federation.errors import MalformedMessage, UsageError
from federation.secret_root import SecretRoot


def matrix_of(key: Any, pixels: int) -> Any:
    """A x I over pixels, channel by channel, as a sparse matrix, from the parts of the key."""
    if isinstance(key, ChannelKey):
        matrix = np.diag(key.gains) @ np.eye(key.size)[key.permutation]
    elif isinstance(key, SoftKey):
        terms = zip(key.weights, key.permutations, strict=True)
        matrix = np.diag(key.gains) @ sum(weight * np.eye(key.size)[order] for weight, order in terms)
    else:
        matrix = key.orthogonal
    return scipy.sparse.kron(scipy.sparse.csr_matrix(matrix), scipy.sparse.eye(pixels)).tocsr()


def toeplitz(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """The layer's matrix on flattened feature maps, from its Jacobian."""
    jacobian = torch.func.jacrev(lambda features: layer(features.reshape(1, *shape)).flatten())
    return jacobian(torch.zeros(int(np.prod(shape)), dtype=torch.float64)).numpy()


@pytest.mark.parametrize("kind", ["monomial", "soft", "orthogonal"])
@pytest.mark.parametrize(("groups", "width"), [(1, 6), (3, 6), (6, 6), (6, 12)])
def test_kernels_are_those_of_the_dense_matrices(groups: int, width: int, kind: Any) -> None:
    """What = A_out W A_in^-1 on Toeplitz matrices, entry by entry, for an ordinary, a grouped and depthwise layers."""
    network = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, width, 3, stride=2, padding=1, groups=groups), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 4, 5),
    )  # fmt: skip
    randomised(network, 3)
    channel_map = trace_channels(network, (2, 4, 3))
    keys = draw_keys(channel_map, SecretRoot(b"dense" * 8), KeyPolicy(4.0, "monomial", kind))
    image, first, second, output = keys.keys
    protected = ChannelTransform(keys, channel_map).protect(network.state_dict())
    plain = {name: tensor.double() for name, tensor in network.state_dict().items()}
    hat = {name: tensor.double() for name, tensor in protected.items()}

    def check(layer: Callable[..., Tensor], name: str, shape: tuple[int, ...], out: Any, inside: Any) -> None:
        expected = out @ toeplitz(lambda x: layer(x, plain[name]), shape) @ np.linalg.inv(inside.toarray())
        assert toeplitz(lambda x: layer(x, hat[name]), shape) == pytest.approx(
            expected, rel=3e-7, abs=1e-6 * (kind != "monomial") + 1e-12
        )

    def strided(features: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(features, kernel, stride=2, padding=1, groups=groups)

    check(F.conv2d, "0.weight", (2, 4, 3), matrix_of(first, 12), matrix_of(image, 12))
    check(strided, "2.weight", (6, 4, 3), matrix_of(second, 4), matrix_of(first, 12))
    check(F.linear, "5.weight", (width * 4,), matrix_of(output, 1), matrix_of(second, 4))
    for name, key in (("0.bias", first), ("2.bias", second), ("5.bias", output)):
        assert hat[name].numpy() == pytest.approx(matrix_of(key, 1) @ plain[name].numpy(), rel=3e-7, abs=1e-6)


class DenseBlock(nn.Module):
    """The image, new features and the image again, side by side; then batch norm, a kernel, and vectors of it all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.norm, self.kernel = nn.BatchNorm2d(11), nn.Conv2d(11, 5, (3, 1))
        self.head = nn.Linear(12 * 11, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.cat([images, self.first(images)], 1)
        features = torch.cat([features, torch.cat([self.second(features), images], 1)], 1)
        return self.kernel(self.norm(features)).mean((2, 3)) + self.head(features.flatten(1))


@pytest.mark.parametrize("kind", ["monomial", "soft", "orthogonal"])
def test_keys_of_a_concatenation_are_blocks_on_a_diagonal(kind: Any) -> None:
    """Against dense matrices with the parts' keys as blocks, in double precision."""
    network = randomised(DenseBlock(), 4)
    channel_map = trace_channels(network, (2, 4, 3))
    policy = KeyPolicy(4.0, "monomial", kind)
    keys = draw_keys(channel_map, SecretRoot(b"dense" * 8), policy)
    weights = network.state_dict()
    transform = ChannelTransform(keys, channel_map)
    protected = transform.protect(weights)
    image, first, second, output = (matrix_of(key, 1).toarray() for key in keys.keys)
    everything = scipy.linalg.block_diag(image, first, second, image)

    def product(name: str, out: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Every tap of the kernel by itself."""
        taps = weights[name].double().numpy().reshape(len(out), len(inside), -1)
        return np.einsum("oi,ijt,jk->okt", out, taps, np.linalg.inv(inside))

    for name, expected in {
        "second.weight": product("second.weight", second, scipy.linalg.block_diag(image, first)),
        "kernel.weight": product("kernel.weight", output, everything),
        "head.weight": product("head.weight", output, everything),
        "norm.weight": everything @ weights["norm.weight"].double().numpy(),
        "norm.running_mean": everything @ weights["norm.running_mean"].double().numpy(),
    }.items():
        assert protected[name].numpy().ravel() == pytest.approx(expected.ravel(), rel=3e-7, abs=1e-6)
    for name, tensor in transform.recover(protected).items():
        bound = transform.recovery_error(name) * float(tensor.abs().max())
        assert float((tensor - weights[name]).abs().max()) <= bound


@pytest.mark.parametrize("kind", ["monomial", "orthogonal"])
def test_a_part_of_one_group_is_not_mixed(kind: Any) -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 1), Twice(), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(12, 5))
    randomised(network, 5)
    channel_map = trace_channels(network, (2, 4, 3))
    keys = draw_keys(channel_map, SecretRoot(b"dense" * 8), KeyPolicy(4.0, "monomial", kind))
    protected = ChannelTransform(keys, channel_map).protect(network.state_dict())
    part, one, other = (matrix_of(key, 1).toarray() for key in keys.keys[1:4])
    plain = network.state_dict()["2.weight"].double().numpy()
    for rows, out in ((slice(0, 3), one), (slice(3, 6), other)):
        expected = np.einsum("oi,ijhw,jk->okhw", out, plain[rows], np.linalg.inv(part))
        assert protected["2.weight"].numpy()[rows] == pytest.approx(expected, rel=3e-7)


class Twice(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, features], 1)


def test_a_protected_kernel_is_what_the_formula_says_to_the_last_bit() -> None:
    """Each value times the product of both gains in float32: the bytes of default messages stand on it."""
    network, transform = keyed_example(2.0)
    keys = draw_keys(trace_channels(network, IMAGE), SecretRoot(b"example!" * 4), KeyPolicy(2.0)).monomial
    kernel = network.state_dict()["3.weight"].numpy()
    factors = keys[2].gains.astype(np.float32)[:, None] * (1 / keys[1].gains).astype(np.float32)
    expected = kernel[keys[2].permutation][:, keys[1].permutation] * factors[..., None, None]
    assert np.array_equal(transform.protect(network.state_dict())["3.weight"].numpy(), expected)
    mean = network.state_dict()["1.running_mean"].numpy()[keys[1].permutation] * keys[1].gains.astype(np.float32)
    assert np.array_equal(transform.protect(network.state_dict())["1.running_mean"].numpy(), mean)


def test_treatments_are_what_happens() -> None:
    for gain_range, expected in ((1.0, Treatment.PERMUTED), (2.0, Treatment.PERMUTED_AND_SCALED)):
        network, transform = keyed_example(gain_range)
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
    network, _ = keyed_example(1.0)
    channel_map = trace_channels(network, IMAGE)
    transform = ChannelTransform(identity_keys(channel_map), channel_map)
    weights = network.state_dict()
    for step in (transform.protect, transform.recover):
        for name, tensor in step(weights).items():
            assert transform.treatment(name) is Treatment.PLAIN
            assert torch.equal(tensor, weights[name])
            assert tensor.data_ptr() != weights[name].data_ptr()


def test_inputs_stay_as_they_are_and_need_no_order_in_memory() -> None:
    network, transform = keyed_example(2.0)
    weights = {"3.weight": network.state_dict()["3.weight"]}
    before = weights["3.weight"].clone()
    protected = transform.protect(weights)
    kept = protected["3.weight"].clone()
    transform.recover(protected)
    assert torch.equal(weights["3.weight"], before)
    assert torch.equal(protected["3.weight"], kept)
    for variant in (before.to(memory_format=torch.channels_last), before.clone().requires_grad_()):
        found = transform.protect({"3.weight": variant})["3.weight"]
        assert torch.equal(found, kept)
        assert not found.requires_grad


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
    _, transform = keyed_example(2.0)
    for step in (transform.protect, transform.recover):
        with pytest.raises(MalformedMessage, match=message):
            step({name: tensor})


def test_keys_of_another_network_are_refused() -> None:
    network, _ = keyed_example(1.0)
    channel_map = trace_channels(network, IMAGE)
    with pytest.raises(UsageError, match="4 channel spaces"):
        ChannelTransform(ChannelKeys(identity_keys(channel_map).keys[:2]), channel_map)
