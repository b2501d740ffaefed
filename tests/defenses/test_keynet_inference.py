"""Encrypted inference: keyed images through keyed networks give the results of the plain ones, or the node is named."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import (
    AVERAGES,
    CHAINED,
    HOMOGENEOUS,
    Concatenated,
    RandomNetwork,
    random_networks,
    randomised,
    refusal_of,
    roots,
)
from torch import Tensor, nn

from defenses.keynet.image_key import ImageKeyPolicy
from defenses.keynet.inference import (
    KeyedNetwork,
    check_keys,
    decrypt_outputs,
    encrypt_images,
    encrypted_examples,
)
from defenses.keynet.inference_keys import draw_inference_keys
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys, identity_pixel_keys
from defenses.keynet.space_key import SpaceKey
from federation.errors import UsageError
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.toeplitz import Concatenation, ToeplitzNetwork, trace_toeplitz
from federation.vision import models

ROOT = SecretRoot(b"inference keys are drawn from it" * 2)


def drawn(
    model: nn.Module, shape: tuple[int, int, int], policy: PixelKeyPolicy, root: SecretRoot = ROOT
) -> tuple[ToeplitzNetwork, tuple[PixelKey, ...]]:
    """The steps of a model, and keys for them."""
    form = PixelForm.of(Network(lambda: model, shape, 0))
    return form.network, draw_pixel_keys(form, root, policy).spaces


def outputs(network: ToeplitzNetwork, keys: Sequence[SpaceKey], model: nn.Module, images: Tensor) -> Tensor:
    """The opened results of the keyed network on keyed images."""
    keyed = KeyedNetwork.of(network, model.state_dict(), keys)
    return decrypt_outputs(keyed.run(encrypt_images(images, keys[0])), keys[network.result_space])


def plain(model: nn.Module, images: Tensor) -> Tensor:
    """The plain network's results, in float64 so that its own rounding does not blur the comparison."""
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(images.double())


def initialised(model: nn.Module) -> nn.Module:
    """Weights and running statistics of a network that has been trained a little, or so it seems."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            low = 0.5 if name.endswith("running_var") else -0.5
            tensor.uniform_(low, 1)
    return model


every_policy = st.builds(
    PixelKeyPolicy,
    st.sampled_from([1.0, 2.0, 8.0]),
    st.sampled_from([1, 2]),
    st.sampled_from(["identity", "permutation", "monomial"]),
)
image_policies = st.builds(
    ImageKeyPolicy,
    st.sampled_from(["pixel", "orthogonal"]),
    st.sampled_from([1.0, 4.0]),
    st.sampled_from([1, 3]),
    st.sampled_from([0.0, 1.0, 20.0]),
    st.just(1e6),
)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    random_networks(activations=HOMOGENEOUS, pools=AVERAGES),
    roots,
    every_policy,
    st.integers(1, 3),
)
def test_keyed_networks_agree_with_plain_ones(
    case: RandomNetwork, root: SecretRoot, policy: PixelKeyPolicy, batch: int
) -> None:
    network, keys = drawn(case.model, case.image_shape, policy, root)
    check_same_results(case, network, keys, batch)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    random_networks(blocks=CHAINED, activations=HOMOGENEOUS, pools=AVERAGES), roots, image_policies, st.integers(1, 3)
)
def test_any_image_key_agrees_where_linear_layers_alone_read_the_image(
    case: RandomNetwork, root: SecretRoot, policy: ImageKeyPolicy, batch: int
) -> None:
    network = trace_toeplitz(case.model, case.image_shape)
    check_same_results(case, network, draw_inference_keys(network, root, policy).spaces, batch)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(random_networks(), roots, image_policies, every_policy)
def test_any_network_agrees_or_a_node_is_named(
    case: RandomNetwork, root: SecretRoot, image: ImageKeyPolicy, maps: PixelKeyPolicy
) -> None:
    network = trace_toeplitz(case.model, case.image_shape)
    keys = draw_inference_keys(network, root, image, maps).spaces
    refusal = refusal_of(lambda: check_keys(network, keys))
    if refusal is not None:
        assert case.node_named_in(refusal)
        opaque = case.has(nn.MaxPool2d, nn.AdaptiveMaxPool2d)
        scaled = case.has(nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.SiLU) and maps.gain_range > 1
        assert opaque or scaled or network.spaces[0].activations or network.spaces[0].origins > {"image"}
        return
    check_same_results(case, network, keys, 2)


def check_same_results(case: RandomNetwork, network: ToeplitzNetwork, keys: Sequence[SpaceKey], batch: int) -> None:
    """The keyed network's opened results are the plain ones to 1e-9 of the largest."""
    images = case.images(batch)
    truth = plain(case.model, images)
    scale = max(1.0, float(truth.abs().max()))
    assert torch.allclose(outputs(network, keys, case.model, images), truth, rtol=0, atol=1e-9 * scale)


def test_the_image_itself_may_be_concatenated_under_offsets() -> None:
    layers = Concatenated(nn.Identity(), nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()), nn.Identity())
    model = nn.Sequential(layers, nn.ReLU(), nn.Flatten(), nn.Linear(7 * 30, 4)).eval()
    case = RandomNetwork(randomised(model, 1), (2, 5, 6))
    network = trace_toeplitz(model, case.image_shape)
    keys = draw_inference_keys(network, SecretRoot(bytes(32)), ImageKeyPolicy(offset_range=5.0)).spaces
    assert keys[0].has_offsets
    check_same_results(case, network, keys, 3)
    (step,) = (step for step in network.steps if isinstance(step, Concatenation))
    matrix = KeyedNetwork.of(network, model.state_dict(), keys).matrices[step.node]
    assert matrix.shape == (7 * 30 + 1, 7 * 30 + 1)


def test_a_concatenation_along_pixels_is_named() -> None:
    class Wide(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([images, images], 2)

    network = trace_toeplitz(Wide(), (1, 2, 2))
    with pytest.raises(UsageError, match=r"node 'cat' .*: no pixel key can be carried through cat"):
        check_keys(network, draw_inference_keys(network, SecretRoot(bytes(32))).spaces)


class Residual(nn.Module):
    """A residual sum, a depthwise convolution, normalisation, a mean, a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.depthwise(x) * 0.5 - x) + x
        return self.fc(x.mean((2, 3)))


def test_residual_networks_run_keyed() -> None:
    model, images = initialised(Residual()), torch.rand(3, 1, 7, 5)
    network, keys = drawn(model, (1, 7, 5), PixelKeyPolicy(2.0))
    assert torch.allclose(outputs(network, keys, model, images), plain(model, images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [1, 2])
def test_lenet5_runs_keyed_and_a_wrong_key_does_not(alpha: int) -> None:
    model, images = build_model("lenet5", (1, 12, 12), 10, seed=0), torch.rand(8, 1, 12, 12)
    network, keys = drawn(model, (1, 12, 12), PixelKeyPolicy(2.0, alpha))
    truth = plain(model, images)
    assert torch.allclose(outputs(network, keys, model, images), truth, rtol=0, atol=1e-9)
    _, others = drawn(model, (1, 12, 12), PixelKeyPolicy(2.0, alpha), ROOT.derive("other"))
    keyed = KeyedNetwork.of(network, model.state_dict(), keys)
    wrong_image = decrypt_outputs(keyed.run(encrypt_images(images, others[0])), keys[-1])
    wrong_output = decrypt_outputs(keyed.run(encrypt_images(images, keys[0])), others[-1])
    for wrong in (wrong_image, wrong_output, decrypt_outputs(keyed.run(plain_homogeneous(images)), keys[-1])):
        assert float((wrong - truth).abs().max()) > 1e-3


def plain_homogeneous(images: Tensor) -> np.ndarray:
    return encrypt_images(images, PixelKey.identity(images[0].numel()))


def test_what_runs_keyed_is_neither_image_nor_weights() -> None:
    model, images = build_model("lenet5", (1, 12, 12), 10, seed=0), torch.rand(2, 1, 12, 12)
    network, keys = drawn(model, (1, 12, 12), PixelKeyPolicy(2.0))
    sent = encrypt_images(images, keys[0])[:, :-1]
    flat = images.flatten(1).double().numpy()
    assert np.mean(np.isclose(sent, flat, atol=1e-3)) < 0.05
    assert np.allclose(np.sort(sent / keys[0].gains), np.sort(flat))
    keyed = KeyedNetwork.of(network, model.state_dict(), keys)
    unkeyed = KeyedNetwork.of(network, model.state_dict(), identity_keys(network))
    for node, matrix in keyed.matrices.items():
        assert matrix.nnz == unkeyed.matrices[node].nnz
        assert (matrix != unkeyed.matrices[node]).nnz > matrix.nnz / 2
    assert keyed.entries == unkeyed.entries == sum(step.layout.entries for step in network.linear)


def identity_keys(network: ToeplitzNetwork) -> list[PixelKey]:
    return [PixelKey.identity(space.size) for space in network.spaces]


def test_identity_keys_are_the_plain_network() -> None:
    model, images = initialised(Residual()), torch.rand(2, 1, 6, 6)
    form = PixelForm.of(Network(lambda: model, (1, 6, 6), 5))
    keys = identity_pixel_keys(form).spaces
    assert torch.allclose(outputs(form.network, keys, model, images), plain(model, images), rtol=0, atol=1e-9)


def test_activations_that_gains_do_not_pass_run_under_permutations() -> None:
    model, images = build_model("lenet-zhu", (1, 12, 12), 10, seed=0), torch.rand(2, 1, 12, 12)
    network, keys = drawn(model, (1, 12, 12), PixelKeyPolicy(1.0))
    assert torch.allclose(outputs(network, keys, model, images), plain(model, images), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_mobilenet_v2_runs_keyed() -> None:
    model, images = models.mobilenet_v2(num_classes=10), torch.rand(2, 3, 32, 32)
    for module in model.modules():  # running statistics of the images at hand, so that the result depends on them
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.rand(16, 3, 32, 32))
    network, keys = drawn(model, (3, 32, 32), PixelKeyPolicy(1.0))
    truth = plain(model, images)
    scale = float(truth.abs().max())
    assert float((truth[0] - truth[1]).abs().max()) > 1e-3 * scale
    assert torch.allclose(outputs(network, keys, model, images), truth, rtol=0, atol=1e-9 * scale)
    with pytest.raises(
        UsageError, match=r"layer 'features.0.2' \(ReLU6\), node 'features_0_2': .* permutation keys only"
    ):
        check_keys(network, drawn(model, (3, 32, 32), PixelKeyPolicy(2.0))[1])


@pytest.mark.parametrize(
    ("architecture", "policy", "node"),
    [
        ("mobilenet_v2", PixelKeyPolicy(1.0), None),
        (
            "mobilenet_v2",
            PixelKeyPolicy(2.0),
            r"layer 'features.0.2' \(ReLU6\), node 'features_0_2': .* permutation keys",
        ),
        (
            "resnet18",
            PixelKeyPolicy(1.0, alpha=2),
            r"layer 'maxpool' \(MaxPool2d\), node 'maxpool': .* use average pooling",
        ),
    ],
)
def test_nodes_of_known_networks_are_named(architecture: str, policy: PixelKeyPolicy, node: str | None) -> None:
    network, keys = drawn(getattr(models, architecture)(num_classes=10), (3, 8, 8), policy)
    refusal = refusal_of(lambda: check_keys(network, keys))
    assert refusal is None if node is None else re.search(node, str(refusal))


def test_the_layer_that_is_too_large_for_a_matrix_is_named() -> None:
    place = r"layer 'conv1' \(Conv2d\), node 'conv1': .* use channel keys"
    with pytest.raises(UsageError, match=place):
        trace_toeplitz(models.resnet18(num_classes=10), (3, 96, 96))


class Named(nn.Module):
    """A convolution, something called `odd`, and a linear layer."""

    def __init__(self, odd: nn.Module, features: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.odd = odd
        self.fc = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.odd(self.conv(x)).flatten(1))


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


@pytest.mark.parametrize(
    ("odd", "features", "reason"),
    [
        (
            nn.ReLU6(),
            32,
            r"layer 'odd' \(ReLU6\), node 'odd': relu6: gains do not commute with it; permutation keys only",
        ),
        (nn.Sigmoid(), 32, r"layer 'odd' \(Sigmoid\), node 'odd': sigmoid: gains .* permutation keys only"),
        (
            nn.MaxPool2d(2),
            8,
            r"layer 'odd' \(MaxPool2d\), node 'odd': .* split its windows; use average pooling, or channel keys",
        ),
        (
            Product(),
            32,
            r"node '(mul|sigmoid)' \((mul|sigmoid) in module 'odd'\): (no pixel key .* mul; use|sigmoid: gains)",
        ),
        (nn.Softmax(1), 32, r"layer 'odd' \(Softmax\), node 'odd': no pixel key can be carried through"),
    ],
)
def test_what_keys_cannot_pass_is_named(odd: nn.Module, features: int, reason: str) -> None:
    model = Named(odd, features)
    network, keys = drawn(model, (1, 4, 4), PixelKeyPolicy(2.0))
    with pytest.raises(UsageError, match=reason):
        KeyedNetwork.of(network, model.state_dict(), keys)


def test_a_soft_key_before_an_activation_is_refused() -> None:
    model = Named(nn.ReLU())
    network, keys = drawn(model, (1, 4, 4), PixelKeyPolicy(2.0))
    soft = PixelKey.draw(ROOT.reader(), 32, gain_range=1, alpha=2)
    with pytest.raises(
        UsageError, match=r"layer 'odd' \(ReLU\), node 'odd': relu: a key that mixes entries .* alpha 1 only"
    ):
        check_keys(network, [keys[0], soft, keys[2]])


def test_keys_of_other_sizes_are_refused() -> None:
    model = Named(nn.ReLU())
    network, keys = drawn(model, (1, 4, 4), PixelKeyPolicy(2.0))
    with pytest.raises(UsageError, match=r"do not fit the network's spaces, \[16, 32, 3\]"):
        check_keys(network, keys[:2])
    with pytest.raises(UsageError, match="images of 25 values do not fit a key of 16"):
        encrypt_images(torch.zeros(1, 1, 5, 5), keys[0])
    with pytest.raises(UsageError, match="results of 4 values do not fit a key of 3"):
        decrypt_outputs(np.zeros((1, 5)), keys[2])


def test_examples_for_figures() -> None:
    model, images = build_model("lenet5", (1, 12, 12), 10, seed=0), torch.rand(6, 1, 12, 12)
    network, keys = drawn(model, (1, 12, 12), PixelKeyPolicy(2.0))
    examples = encrypted_examples(model.train(), network, keys, images)
    assert model.training
    assert torch.equal(examples.plain_classes, model.eval()(images).argmax(1))
    assert torch.equal(examples.encrypted_classes, examples.plain_classes)
    assert examples.encrypted.shape == images.shape
    assert torch.allclose(examples.encrypted.flatten(1).aminmax(dim=1).min, torch.zeros(6))
    assert torch.allclose(examples.encrypted.flatten(1).aminmax(dim=1).max, torch.ones(6))
    assert float((examples.encrypted - images).abs().mean()) > 0.1


def test_constant_images_have_a_picture() -> None:
    model = build_model("lenet5", (1, 12, 12), 10, seed=0)
    network = trace_toeplitz(model, (1, 12, 12))
    examples = encrypted_examples(model, network, identity_keys(network), torch.zeros(1, 1, 12, 12))
    assert torch.equal(examples.encrypted, torch.zeros(1, 1, 12, 12))
