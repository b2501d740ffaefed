"""Channel transforms recover weights and their averages within the stated errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork, Residual, random_networks, randomised, roots
from small_networks import keyed_example
from torch import nn

from defenses.base import Magnitudes
from defenses.keynet.channel import GAIN_ERROR, ChannelTransform
from defenses.keynet.defense import KeyNet
from defenses.keynet.equivalence import obstacles
from defenses.keynet.keys import KeyPolicy, draw_keys
from federation.channels import trace_channels
from federation.models import build_model
from federation.secret_root import SecretRoot
from federation.vision import models

gain_ranges = st.sampled_from([1.0, 1.5, 10.0, 1000.0])


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_networks(), roots, gain_ranges, st.sampled_from(["permutation", "monomial"]))
def test_weights_are_recovered_within_the_stated_error(
    case: RandomNetwork, root: SecretRoot, gain_range: float, outputs: Any
) -> None:
    network, channel_map = case.model, trace_channels(case.model, case.image_shape)
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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_networks(), roots, policies)
def test_mixed_weights_are_recovered_within_both_stated_errors(
    case: RandomNetwork, root: SecretRoot, policy: KeyPolicy
) -> None:
    """The bound from the keys themselves, and the one that the defense states before any key is drawn."""
    network, channel_map = case.model, trace_channels(case.model, case.image_shape)
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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(random_networks(), roots, gain_ranges)
def test_averages_and_differences_commute_with_the_transform(
    case: RandomNetwork, root: SecretRoot, gain_range: float
) -> None:
    check_averages(case, root, KeyPolicy(gain_range), 4 * 2.0**-24, elementwise=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(random_networks(), roots, policies)
def test_averages_and_differences_commute_with_mixing(case: RandomNetwork, root: SecretRoot, policy: KeyPolicy) -> None:
    check_averages(case, root, policy, 2.0**-24 * (3 * policy.rounding_growth + 1), elementwise=False)


def check_averages(
    case: RandomNetwork, root: SecretRoot, policy: KeyPolicy, error: float, *, elementwise: bool
) -> None:
    """Recovering a combination of protected weights gives the combination of the weights, and protecting that the same.

    `error` is relative to the combination of the weights' magnitudes, value by value or the largest.
    """
    network, channel_map = case.model, trace_channels(case.model, case.image_shape)
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
        of_combined = transform.protect({name: terms.sum(dim=0).float()})[name].double()
        keyed = torch.stack([share * message[name].double() for share, message in zip(shares, protected, strict=True)])
        magnitudes = keyed.abs().sum(dim=0)
        assert ((of_combined - combined).abs() <= error * (magnitudes if elementwise else magnitudes.max())).all()


def test_error_of_gains_is_that_of_two_roundings() -> None:
    network, transform = keyed_example(2.0)
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


@pytest.mark.parametrize("options", [{}, {"gain_range": 1.0}, {"rotation": 1}], ids=str)
def test_the_stated_error_of_orthogonal_keys_holds_for_kernels_that_they_grow_most(options: dict[str, Any]) -> None:
    """A kernel of equal values lies in one direction, which a key may turn to one channel; a residual one meets a key
    on both sides. Keyed values are ten times as large, and what comes back is far within the bound."""
    layer = nn.Conv2d(24, 24, 1)
    network = nn.Sequential(nn.Conv2d(2, 24, 1), Residual(layer), nn.Conv2d(24, 24, 1), nn.Flatten(), nn.Linear(24, 2))
    channel_map = trace_channels(network, (2, 1, 1))
    keynet = KeyNet(kind="orthogonal", **options)
    weights = {name: torch.full_like(network.state_dict()[name], 0.7) for name in ("1.body.weight", "2.weight")}
    errors, growths = [], []
    for draw in range(200):
        keys = draw_keys(channel_map, SecretRoot(bytes(32)).derive(draw), keynet.policy)
        transform = ChannelTransform(keys, channel_map)
        protected = transform.protect(weights)
        growths += [float(tensor.abs().max()) / 0.7 for tensor in protected.values()]
        errors += [float((tensor - 0.7).abs().max()) for tensor in transform.recover(protected).values()]
    assert 8 < max(growths) <= keynet.amplification
    assert max(errors) <= keynet.stated_error(Magnitudes(0.7, 0.7, 1))
    assert KeyNet(kind="orthogonal").stated_error(Magnitudes(1.0, 1.0, 1)) < 3.1e-5
