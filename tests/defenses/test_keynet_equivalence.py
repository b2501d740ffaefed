"""Channel-keyed networks compute the same function, or the node that keeps them from it is named."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import (
    HOMOGENEOUS,
    Concatenated,
    RandomNetwork,
    random_networks,
    randomised,
    refusal_of,
    roots,
)
from small_networks import IMAGE
from torch import Tensor, nn

from defenses.keynet.channel import ChannelTransform
from defenses.keynet.equivalence import check_equivalent, obstacles
from defenses.keynet.keys import ChannelKeys, KeyPolicy, draw_keys
from federation.channels import trace_channels
from federation.errors import UsageError
from federation.models import build_model
from federation.secret_root import SecretRoot
from federation.vision import models


def images(count: int = 3, shape: tuple[int, ...] = IMAGE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def keyed(network: nn.Module, keys: ChannelKeys, transform: ChannelTransform) -> nn.Module:
    twin = copy.deepcopy(network)
    twin.load_state_dict(transform.protect(network.state_dict()))
    return twin


def check_same_function(network: nn.Module, shape: tuple[int, ...], root: SecretRoot, gain_range: float) -> None:
    """keyed network(x) is network(x), its outputs permuted, to 1e-5 of the largest output."""
    channel_map = trace_channels(network, shape)
    keys = draw_keys(channel_map, root, KeyPolicy(gain_range))
    twin = keyed(network, keys, ChannelTransform(keys, channel_map))
    with torch.no_grad():
        expected = network.double()(images(shape=shape))[:, keys.monomial[-1].permutation]
        found = twin.double()(images(shape=shape))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    random_networks(batch_norm=False, activations=HOMOGENEOUS),
    roots,
    st.sampled_from([1.0, 2.0, 10.0]),
)
def test_gains_leave_the_function_of_a_relu_network(case: RandomNetwork, root: SecretRoot, gain_range: float) -> None:
    check_same_function(case.model, case.image_shape, root, gain_range)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(random_networks(), roots)
def test_permutations_leave_the_function_of_any_network(case: RandomNetwork, root: SecretRoot) -> None:
    check_same_function(case.model, case.image_shape, root, 1.0)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v2"])
def test_permutations_leave_the_function_of_known_networks(architecture: str) -> None:
    network = randomised(getattr(models, architecture)(weights=None, num_classes=10).eval(), 0)
    check_same_function(network, (3, 32, 32), SecretRoot(bytes(32)), 1.0)


def test_permutations_leave_the_function_of_a_densenet() -> None:
    network = models.DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=6, bn_size=2, num_classes=5)
    check_same_function(randomised(network.eval(), 0), (3, 32, 32), SecretRoot(bytes(32)), 1.0)


class Inception(nn.Module):
    """Branches side by side, and a residual sum of one layer with all of them, as in Inception-ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.narrow = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(5, 3, 1)
        self.mixed, self.depthwise = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 24, 3, groups=12)
        self.head = nn.Linear(24 * 5, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.stem(images))
        branches = [self.wide(features), self.narrow(features), F.max_pool2d(features, 3, 1, 1)]
        features = F.relu(torch.cat(branches, dim=1))
        features = F.relu(features + self.mixed(features))
        return self.head(self.depthwise(F.avg_pool2d(features, (1, 2))).flatten(1))


@pytest.mark.parametrize("gain_range", [1.0, 5.0])
def test_keys_leave_the_function_of_an_inception_with_a_residual_sum(gain_range: float) -> None:
    check_same_function(randomised(Inception(), 0), IMAGE, SecretRoot(bytes(32)), gain_range)


def test_a_node_behind_a_concatenation_is_counted_once() -> None:
    network = nn.Sequential(Concatenated(nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1)), nn.Sigmoid(), nn.Conv2d(7, 2, 1))
    channel_map = trace_channels(network, IMAGE)
    assert [obstacle.layers for obstacle in obstacles(channel_map, KeyPolicy(2.0))] == [
        ("0.branches.0",), ("0.branches.1",),
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"layer '1' \(Sigmoid\), node '_1': gains .*\(gain_range 1\)$"):
        check_equivalent(channel_map, KeyPolicy(2.0))


every_policy = st.builds(
    KeyPolicy,
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(["identity", "permutation", "monomial"]),
    st.sampled_from(["monomial", "soft", "orthogonal"]),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(random_networks(), roots, every_policy)
def test_the_function_stays_or_a_node_is_named(case: RandomNetwork, root: SecretRoot, policy: KeyPolicy) -> None:
    network, shape = case.model, case.image_shape
    refusal = refusal_of(lambda: check_equivalent(trace_channels(network, shape), policy))
    if refusal is not None:
        assert case.node_named_in(refusal)
        assert policy.kind != "monomial" or policy.gain_range > 1
        return
    channel_map = trace_channels(network, shape)
    keys = draw_keys(channel_map, root, policy)
    twin = keyed(network, keys, ChannelTransform(keys, channel_map))
    with torch.no_grad():
        expected = network.double()(images(shape=shape)) @ torch.from_numpy(keys.keys[-1].matrix).T
        found = twin.double()(images(shape=shape))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("layer", "policy", "told"),
    [
        (nn.ReLU, KeyPolicy(2.0), None),
        (
            nn.ReLU,
            KeyPolicy(kind="soft"),
            "(ReLU), node '_1': soft keys on the outputs of 0 do not pass relu; use monomial keys",
        ),
        (nn.ReLU6, KeyPolicy(1.0), None),
        (nn.ReLU6, KeyPolicy(2.0), "(ReLU6), node '_1': gains on the outputs of 0 do not pass relu6; use ReLU"),
        (
            nn.Sigmoid,
            KeyPolicy(2.0),
            "(Sigmoid), node '_1': gains on the outputs of 0 do not pass sigmoid; use permutations",
        ),
        (lambda: nn.BatchNorm2d(6), KeyPolicy(1.0), None),
        (
            lambda: nn.BatchNorm2d(6),
            KeyPolicy(2.0),
            "(BatchNorm2d), node '_1': gains on the outputs of 0, 1 do not pass batch_norm; fold",
        ),
        (
            lambda: nn.BatchNorm2d(6),
            KeyPolicy(kind="orthogonal"),
            "(BatchNorm2d), node '_1': orthogonal keys on the outputs of 0, 1",
        ),
        (lambda: nn.MaxPool2d(2), KeyPolicy(2.0), None),
        (
            lambda: nn.MaxPool2d(2),
            KeyPolicy(kind="orthogonal"),
            "(MaxPool2d), node '_1': orthogonal keys on the outputs of 0 do not pass max_pool; use average",
        ),
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
        assert len(found) == 1
        assert str(found[0]).startswith(f"layer '1' {told}")
        with pytest.raises(UsageError, match="layer '1' "):
            check_equivalent(channel_map, policy)
        assert not off <= 0.01  # a mixed variance may be negative, and its root no number


@pytest.mark.parametrize(
    ("architecture", "policy", "node"),
    [
        ("mobilenet_v2", KeyPolicy(2.0), "layer 'features.0.2' (ReLU6), node 'features_0_2': gains on"),
        ("resnet18", KeyPolicy(kind="soft"), "layer 'maxpool' (MaxPool2d), node 'maxpool': soft keys on"),
        ("resnet18", KeyPolicy(kind="soft"), "layer 'layer1.0.relu' (ReLU), node 'layer1_0_relu_1': soft keys on"),
    ],
)
def test_nodes_of_known_networks_are_named(architecture: str, policy: KeyPolicy, node: str) -> None:
    channel_map = trace_channels(getattr(models, architecture)(num_classes=10), (3, 32, 32))
    found = obstacles(channel_map, policy)
    assert sum(str(obstacle).startswith(node) for obstacle in found) == 1
    assert all("; use " in str(obstacle) or "; fold " in str(obstacle) for obstacle in found)
    with pytest.raises(UsageError, match=rf"; it is the first of {len(found)} such nodes$"):
        check_equivalent(channel_map, policy)
    check_equivalent(channel_map, KeyPolicy(1.0))


def test_lenet5_keeps_its_function_under_gains() -> None:
    check_equivalent(trace_channels(build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28)), KeyPolicy(2.0))


class Block(nn.Module):
    """A layer, and an activation and a product that are no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, features: Tensor) -> Tensor:
        features = F.relu6(self.conv(features))
        return features * features


def test_nodes_of_networks_written_by_hand_are_named_with_their_caller() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()
            self.fc = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(torch.sigmoid(self.block(images)).mean((2, 3)))

    found = [str(obstacle) for obstacle in obstacles(trace_channels(Net(), IMAGE), KeyPolicy(2.0))]
    assert [text.partition(":")[0] for text in found] == [
        "node 'relu6' (relu6 in module 'block')",
        "node 'mul' (mul in module 'block')",
        "node 'sigmoid' (sigmoid in the network's own forward)",
    ]
    assert all("on the outputs of block.conv do not pass" in text for text in found)


def test_gains_stand_in_running_variances_for_who_has_images() -> None:
    """What the module states: the true variance of a keyed layer is A^2 v, its keyed statistic A v."""
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.Flatten(), nn.Linear(336, 4))
    with torch.no_grad():
        network.train()(images(400).float())
    channel_map = trace_channels(network.eval(), IMAGE)
    keys = draw_keys(channel_map, SecretRoot(bytes(32)), KeyPolicy(3.0)).monomial
    protected = ChannelTransform(ChannelKeys(keys), channel_map).protect(network.state_dict())
    others = torch.randn(400, *IMAGE, generator=torch.Generator().manual_seed(6))
    outputs = F.conv2d(others, protected["0.weight"])
    guessed = outputs.var(dim=(0, 2, 3)) / protected["1.running_var"]
    assert guessed.numpy() == pytest.approx(keys[1].gains, rel=0.1)


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
