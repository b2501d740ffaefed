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
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from defenses.base import Magnitudes
from defenses.keynet.channel import GAIN_ERROR, ChannelTransform, Treatment
from defenses.keynet.defense import KeyNet
from defenses.keynet.equivalence import obstacles
from defenses.keynet.keys import ChannelKey, ChannelKeys, KeyPolicy, draw_keys, identity_keys
from defenses.keynet.mixing import SoftKey
from federation.channels import trace_channels
from federation.errors import MalformedMessage, UsageError
from federation.models import build_model
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
        expected = network.double()(images(shape=shape))[:, keys.monomial[-1].permutation]
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


every_policy = st.builds(
    KeyPolicy,
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(["identity", "permutation", "monomial"]),
    st.sampled_from(["monomial", "soft", "orthogonal"]),
)


@settings(max_examples=50, deadline=None)
@given(networks(batch_norm=True, activations=ALL_ACTIVATIONS), roots, every_policy)
def test_where_there_is_no_obstacle_the_function_stays(network: nn.Module, root: SecretRoot, policy: KeyPolicy) -> None:
    channel_map = trace_channels(network, IMAGE)
    assume(not obstacles(channel_map, policy))
    keys = draw_keys(channel_map, root, policy)
    twin = keyed(network, keys, ChannelTransform(keys, channel_map))
    with torch.no_grad():
        expected = network.double()(images()) @ torch.from_numpy(keys.keys[-1].matrix).T
        found = twin.double()(images())
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("layer", "policy", "told"),
    [
        (nn.ReLU, KeyPolicy(2.0), None),
        (nn.ReLU, KeyPolicy(kind="soft"), "relu on the outputs of 0: soft keys do not pass it; use monomial keys"),
        (nn.ReLU6, KeyPolicy(1.0), None),
        (nn.ReLU6, KeyPolicy(2.0), "relu6 on the outputs of 0: gains do not pass it; use ReLU"),
        (nn.Sigmoid, KeyPolicy(2.0), "sigmoid on the outputs of 0: gains do not pass it; use permutations alone"),
        (lambda: nn.BatchNorm2d(6), KeyPolicy(1.0), None),
        (lambda: nn.BatchNorm2d(6), KeyPolicy(2.0), "batch_norm on the outputs of 0, 1: gains do not pass it; fold"),
        (lambda: nn.BatchNorm2d(6), KeyPolicy(kind="orthogonal"), "batch_norm on the outputs of 0, 1: orthogonal keys"),
        (lambda: nn.MaxPool2d(2), KeyPolicy(2.0), None),
        (lambda: nn.MaxPool2d(2), KeyPolicy(kind="orthogonal"), "max_pool on the outputs of 0: orthogonal keys"),
        (lambda: nn.AvgPool2d(2), KeyPolicy(2.0, kind="soft"), None),
        (nn.Dropout, KeyPolicy(2.0, kind="orthogonal"), None),
    ],
)
def test_obstacles_are_named_and_real(layer: Callable[[], nn.Module], policy: KeyPolicy, told: str | None) -> None:
    network = nn.Sequential(nn.Conv2d(2, 6, 3), layer(), nn.Flatten(), nn.LazyLinear(5)).eval()
    network(torch.zeros(1, *IMAGE))
    randomised(network, 0)
    channel_map = trace_channels(network, IMAGE)
    found = obstacles(channel_map, policy)
    keys = draw_keys(channel_map, SecretRoot(bytes(32)), policy)
    twin = keyed(network, keys, ChannelTransform(keys, channel_map))
    with torch.no_grad():
        expected = network.double()(images()) @ torch.from_numpy(keys.keys[-1].matrix).T
        off = float((twin.double()(images()) - expected).abs().max() / expected.abs().max())
    if told is None:
        assert not found
        assert off < 1e-5
    else:
        assert [str(obstacle)[: len(told)] for obstacle in found] == [told]
        assert not off <= 0.01  # a mixed variance may be negative, and its root no number


def test_gains_stand_in_running_variances_for_who_has_images() -> None:
    """What the module states: the true variance of a keyed layer is A^2 v, its keyed statistic A v."""
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.Flatten(), nn.Linear(336, 4))
    with torch.no_grad():
        network.train()(images(400).float())
    channel_map = trace_channels(network.eval(), IMAGE)
    keys = draw_keys(channel_map, SecretRoot(bytes(32)), KeyPolicy(3.0)).monomial
    protected = ChannelTransform(keys_of(keys), channel_map).protect(network.state_dict())
    others = torch.randn(400, *IMAGE, generator=torch.Generator().manual_seed(6))
    outputs = F.conv2d(others, protected["0.weight"])
    guessed = outputs.var(dim=(0, 2, 3)) / protected["1.running_var"]
    assert guessed.numpy() == pytest.approx(keys[1].gains, rel=0.1)


def keys_of(keys: Sequence[ChannelKey]) -> ChannelKeys:
    return ChannelKeys(tuple(keys))


@pytest.mark.parametrize("kind", ["monomial", "soft", "orthogonal"])
@pytest.mark.parametrize("architecture", ["lenet5", "resnet18", "mobilenet_v2"])
def test_known_networks_are_keyed_without_naming_a_layer(architecture: str, kind: Any) -> None:
    """Weights that are averaged may have any keys, gains through ReLU6 included."""
    shape = (1, 28, 28) if architecture == "lenet5" else (3, 32, 32)
    if architecture == "mobilenet_v2":
        network = models.mobilenet_v2(weights=None, num_classes=10)
    else:
        network = build_model(architecture, shape, 10, seed=0)
    channel_map = trace_channels(network, shape)
    policy = KeyPolicy(1.5, kind=kind)
    keys = draw_keys(channel_map, SecretRoot(bytes(32)), policy)
    transform = ChannelTransform(keys, channel_map)
    weights = network.state_dict()
    protected = transform.protect(weights)
    recovered = transform.recover(protected)
    for name, tensor in weights.items():
        error = float((recovered[name].double() - tensor.double()).abs().max())
        assert error <= transform.recovery_error(name) * float(tensor.abs().max())
        constant = tensor.numel() == 1 or float(tensor.double().std()) == 0
        assert constant or not torch.equal(protected[name], tensor)
    told = {obstacle.operation for obstacle in obstacles(channel_map, policy)}
    blocking = {"lenet5": set(), "resnet18": {"batch_norm"}, "mobilenet_v2": {"batch_norm", "relu6"}}[architecture]
    if kind == "monomial":
        assert told == blocking
        assert not obstacles(channel_map, KeyPolicy(1.0))
    else:
        assert told >= blocking
        assert told


def test_a_flat_permutation_is_no_equivalent_network() -> None:
    """The oracle above can fail: without the key of one space the outputs are others."""
    network = randomised(nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(252, 5)).eval(), 0)
    channel_map = trace_channels(network, IMAGE)
    keys = draw_keys(channel_map, SecretRoot(bytes(32)), KeyPolicy(2.0))
    protected = ChannelTransform(keys, channel_map).protect(network.state_dict())
    protected["0.weight"] = network.state_dict()["0.weight"]
    twin = copy.deepcopy(network)
    twin.load_state_dict(protected)
    expected = network.double()(images())[:, keys.monomial[-1].permutation]
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


policies = st.builds(
    KeyPolicy,
    st.sampled_from([1.0, 1.5, 4.0]),
    st.sampled_from(["identity", "permutation", "monomial"]),
    st.sampled_from(["soft", "orthogonal"]),
    st.sampled_from([2, 4, 16]),
    st.sampled_from([0.6, 0.75]),
)


@settings(max_examples=60, deadline=None)
@given(networks(batch_norm=True, activations=ALL_ACTIVATIONS), roots, policies)
def test_mixed_weights_are_recovered_within_both_stated_errors(
    network: nn.Module, root: SecretRoot, policy: KeyPolicy
) -> None:
    """The bound from the keys themselves, and the one that the defense states before any key is drawn."""
    channel_map = trace_channels(network, IMAGE)
    transform = ChannelTransform(draw_keys(channel_map, root, policy), channel_map)
    weights = network.state_dict()
    protected = transform.protect(weights)
    recovered = transform.recover(protected)
    keynet = KeyNet(policy.gain_range, policy.outputs, False, policy.kind, policy.alpha, policy.dominance)
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            assert torch.equal(recovered[name], tensor)
            continue
        largest = float(tensor.abs().max())
        error = float((recovered[name].double() - tensor.double()).abs().max())
        assert error <= transform.recovery_error(name) * largest
        assert error <= keynet.stated_error(Magnitudes(largest, largest, 1))
        assert float(protected[name].abs().max()) <= keynet.amplification * largest * (1 + 1e-6)
        assert protected[name].dtype == tensor.dtype


@settings(max_examples=40, deadline=None)
@given(networks(batch_norm=True, activations=[nn.ReLU]), roots, gain_ranges)
def test_averages_and_differences_commute_with_the_transform(
    network: nn.Module, root: SecretRoot, gain_range: float
) -> None:
    check_averages(network, root, KeyPolicy(gain_range), 4 * 2.0**-24, elementwise=True)


@settings(max_examples=40, deadline=None)
@given(networks(batch_norm=True, activations=[nn.ReLU]), roots, policies)
def test_averages_and_differences_commute_with_mixing(network: nn.Module, root: SecretRoot, policy: KeyPolicy) -> None:
    check_averages(network, root, policy, 2.0**-24 * (3 * policy.growth**2 + 1), elementwise=False)


def check_averages(network: nn.Module, root: SecretRoot, policy: KeyPolicy, error: float, *, elementwise: bool) -> None:
    """Recovering a combination of protected weights gives the combination of the weights.

    `error` is relative to the combination of the weights' magnitudes, value by value or the largest.
    """
    channel_map = trace_channels(network, IMAGE)
    transform = ChannelTransform(draw_keys(channel_map, root, policy), channel_map)
    clients = [{k: v.clone() for k, v in randomised(network, seed).state_dict().items()} for seed in (1, 2, 3)]
    shares = (0.5, 0.3, -0.2)
    protected = [transform.protect(client) for client in clients]
    for name, tensor in clients[0].items():
        if not tensor.is_floating_point():
            continue
        combined = sum(share * message[name].double() for share, message in zip(shares, protected, strict=True))
        found = transform.recover({name: torch.as_tensor(combined).float()})[name].double()
        terms = torch.stack([share * client[name].double() for share, client in zip(shares, clients, strict=True)])
        magnitudes = terms.abs().sum(dim=0)
        allowed = error * (magnitudes if elementwise else magnitudes.max())
        assert ((found - terms.sum(dim=0)).abs() <= allowed).all()


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


@pytest.mark.parametrize(
    ("policy", "published"),
    [
        (KeyPolicy(1.0), 0.0),
        (KeyPolicy(2.0), 3e-8),
        (KeyPolicy(1.0, kind="soft", alpha=4), 1.3e-7),
        (KeyPolicy(1.0, kind="orthogonal"), 5e-8),
    ],
    ids=["permutation", "gains", "alpha 4", "orthogonal"],
)
def test_errors_are_of_the_size_that_was_measured_before(policy: KeyPolicy, published: float) -> None:
    """Root mean square error of LeNet-5's second convolution, relative; ours come from products in float64."""
    network = build_model("lenet5", (1, 28, 28), 10, seed=0)
    channel_map = trace_channels(network, (1, 28, 28))
    weights = {"conv2.weight": network.state_dict()["conv2.weight"]}
    errors = []
    for index in range(10):
        transform = ChannelTransform(draw_keys(channel_map, SecretRoot(bytes(32)).derive(index), policy), channel_map)
        off = transform.recover(transform.protect(weights))["conv2.weight"].double() - weights["conv2.weight"].double()
        errors.append(float(off.square().mean().sqrt() / weights["conv2.weight"].double().square().mean().sqrt()))
    assert published / 5 <= max(errors) <= published
    assert (max(errors) > 0) == (published > 0)


def test_a_protected_kernel_is_what_the_formula_says_to_the_last_bit() -> None:
    """Each value times the product of both gains in float32: the bytes of default messages stand on it."""
    network, transform = example(2.0)
    keys = draw_keys(trace_channels(network, IMAGE), SecretRoot(b"example!" * 4), KeyPolicy(2.0)).monomial
    kernel = network.state_dict()["3.weight"].numpy()
    factors = keys[2].gains.astype(np.float32)[:, None] * (1 / keys[1].gains).astype(np.float32)
    expected = kernel[keys[2].permutation][:, keys[1].permutation] * factors[..., None, None]
    assert np.array_equal(transform.protect(network.state_dict())["3.weight"].numpy(), expected)
    mean = network.state_dict()["1.running_mean"].numpy()[keys[1].permutation] * keys[1].gains.astype(np.float32)
    assert np.array_equal(transform.protect(network.state_dict())["1.running_mean"].numpy(), mean)


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
    _, transform = example(2.0)
    for step in (transform.protect, transform.recover):
        with pytest.raises(MalformedMessage, match=message):
            step({name: tensor})


def test_keys_of_another_network_are_refused() -> None:
    network, _ = example(1.0)
    channel_map = trace_channels(network, IMAGE)
    with pytest.raises(UsageError, match="4 channel spaces"):
        ChannelTransform(ChannelKeys(identity_keys(channel_map).keys[:2]), channel_map)
