"""Affine image keys: what they are, how they are drawn, their bytes, and encrypted inference under them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import randomised, roots
from scipy import stats
from torch import Tensor, nn

from defenses.keynet.image_key import LARGEST_OFFSET, ImageKey, ImageKeyPolicy, draw_image_key
from defenses.keynet.inference import KeyedNetwork, check_keys, decrypt_outputs, encrypt_images
from defenses.keynet.inference_keys import InferenceKeys, draw_inference_keys
from defenses.keynet.mixing import OrthogonalKey
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_keys import PixelKeyPolicy
from federation.errors import MalformedMessage, UsageError
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.models import build_model
from federation.secret_root import SecretRoot
from federation.toeplitz import trace_toeplitz

ROOT = SecretRoot(b"image keys are drawn from this.." * 2)

POLICIES = {
    "affine": ImageKeyPolicy(),
    "offsets alone": ImageKeyPolicy(gain_range=1.0, offset_range=100.0, largest_condition=1e6),
    "soft": ImageKeyPolicy(alpha=3),
    "orthogonal": ImageKeyPolicy("orthogonal"),
    "orthogonal without offsets": ImageKeyPolicy("orthogonal", offset_range=0.0),
    "no offsets": ImageKeyPolicy(offset_range=0.0),
}


def dense(key: ImageKey) -> np.ndarray:
    """[L t; 0 1] from the parts of the key."""
    if isinstance(key.linear, OrthogonalKey):
        linear = key.linear.orthogonal
    else:
        permutations = np.stack([np.eye(key.size)[order] for order in key.linear.permutations])
        linear = np.diag(key.linear.gains) @ np.tensordot(key.linear.shares, permutations, axes=1)
    return np.block([[linear, key.offsets[:, None]], [np.zeros(key.size), np.ones(1)]])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), roots, st.sampled_from(list(POLICIES.values())))
def test_a_key_is_affine_and_its_inverse_undoes_it(size: int, root: SecretRoot, policy: ImageKeyPolicy) -> None:
    key = draw_image_key(size, root, policy)
    assert np.allclose(key.matrix.toarray(), dense(key))
    assert np.allclose(key.inverse.toarray() @ dense(key), np.eye(size + 1), atol=1e-9)
    assert key.condition_number == pytest.approx(np.linalg.cond(dense(key), np.inf), rel=1e-6)
    assert key.condition_number <= policy.largest_condition
    assert np.abs(key.offsets).max() <= policy.offset_range
    assert key.has_offsets == (policy.offset_range > 0)
    assert key.is_monomial == (not policy.mixes and policy.offset_range == 0)
    assert not key.is_permutation


def test_offsets_are_uniform_and_everything_follows_from_the_root() -> None:
    policy = ImageKeyPolicy(offset_range=3.0)
    key = draw_image_key(4000, ROOT, policy)
    assert stats.kstest(key.offsets, "uniform", args=(-3, 6)).pvalue > 1e-3
    again, other = draw_image_key(4000, ROOT, policy), draw_image_key(4000, ROOT.derive("other"), policy)
    assert np.array_equal(key.offsets, again.offsets)
    assert np.array_equal(key.linear.permutation, again.linear.permutation)
    assert not np.array_equal(key.offsets, other.offsets)
    assert "secret" in repr(key)
    assert str(key.offsets[0])[:6] not in repr(key)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"kind": "soft"}, "'pixel' or 'orthogonal', not 'soft'"),
        ({"gain_range": 0.5}, "gain range is between 1"),
        ({"alpha": 0}, "alpha is between 1"),
        ({"offset_range": -1.0}, "offset range is between 0 and 1024, not -1"),
        ({"offset_range": math.nan}, "offset range is between 0"),
        ({"offset_range": 2e3}, "offset range is between 0"),
        ({"largest_condition": 1e7}, "condition bound is between"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        ImageKeyPolicy(**options)


def test_keys_beyond_the_bound_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"32 image keys for 16 values have conditions over 1000, the last of .*narrow"
    ):
        draw_image_key(16, ROOT, ImageKeyPolicy(offset_range=500.0))
    with pytest.raises(
        UsageError, match="images of 5000 values are too large to be mixed, at most 4096 are; use alpha 1"
    ):
        draw_image_key(5000, ROOT, ImageKeyPolicy("orthogonal"))
    singular = PixelKey(np.array([[0, 1], [1, 0]]), np.array([0.5, 0.5]), np.ones(2))
    assert ImageKey(singular, np.zeros(2)).condition_number > 1e12


@pytest.mark.parametrize(
    "offsets", [np.zeros(3), np.zeros((2, 1)), np.zeros(2, np.float32), np.array([0, math.nan]), np.full(2, 1e4)]
)
def test_what_are_no_offsets_is_refused(offsets: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"not an image key: .*offsets"):
        ImageKey(PixelKey.identity(2), offsets)


class Strided(nn.Module):
    """One convolution, not square, that pads, strides and leaves an odd image over; then everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, (3, 2), stride=(2, 3), padding=(2, 1))
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3 * 5 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


def lenet5() -> nn.Module:
    return build_model("lenet5", (1, 12, 12), 10, seed=0)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "lenet5": (lenet5, (1, 12, 12)),
    "strided": (Strided, (1, 7, 9)),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 5])
def test_networks_run_on_affine_images_and_a_wrong_key_opens_nothing(
    case: str, policy: ImageKeyPolicy, batch: int
) -> None:
    build, shape = CASES[case]
    model = randomised(build().eval(), 0)
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    network = trace_toeplitz(model, shape)
    keys = draw_inference_keys(network, ROOT, policy)
    keyed = KeyedNetwork.of(network, model.state_dict(), keys.spaces)
    with torch.no_grad():
        truth = model(images).double()
        exact = copy.deepcopy(model).double()(images.double())
    found = decrypt_outputs(keyed.run(encrypt_images(images, keys.image)), keys.outputs(network))
    assert torch.allclose(found, truth, rtol=0, atol=1e-5)
    assert torch.allclose(found, exact, rtol=0, atol=1e-9)
    other = draw_inference_keys(network, ROOT.derive("other"), policy)
    wrong = decrypt_outputs(keyed.run(encrypt_images(images, other.image)), keys.outputs(network))
    assert float((wrong - truth).abs().max()) > 0.05 * float(truth.abs().max())


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_first_layer_is_scipys_correlation_of_the_opened_image(policy: ImageKeyPolicy) -> None:
    """Row by row, what the keyed layer makes of a keyed image, against scipy on the image itself, in float64."""
    model = randomised(Strided(), 0)
    network = trace_toeplitz(model, (1, 7, 9))
    keys = draw_inference_keys(network, ROOT, policy, PixelKeyPolicy(gain_range=1.0))
    conv = KeyedNetwork.of(network, model.state_dict(), keys.spaces).matrices["conv"]
    image = torch.rand(1, 1, 7, 9)
    keyed = conv @ encrypt_images(image, keys.image)[0]
    padded = np.pad(image[0, 0].double().numpy(), ((2, 2), (1, 1)))
    kernels, biases = model.conv.weight.detach().double().numpy(), model.conv.bias.detach().double().numpy()
    maps = [
        scipy.signal.correlate2d(padded, kernel[0], "valid")[::2, ::3] + bias
        for kernel, bias in zip(kernels, biases, strict=True)
    ]
    expected = np.append(np.stack(maps).ravel(), 1.0)
    assert np.allclose(keys.maps[0].inverse @ keyed, expected, rtol=0, atol=1e-10)
    linear, offsets = dense(keys.image)[:-1, :-1], keys.image.offsets
    plain = network.linear[0].layout.matrix(network.linear[0].fill(model.state_dict())).toarray()
    folded = plain[:, -1] - plain[:, :-1] @ np.linalg.solve(linear, offsets)
    assert np.allclose(conv.toarray()[:, -1], keys.maps[0].matrix @ folded, rtol=0, atol=1e-9)


class Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + x).flatten(1)


class Scales(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (2 * x).flatten(1)


@pytest.mark.parametrize(
    ("first", "place"),
    [
        (nn.ReLU(), r"layer '0' \(ReLU\), node '_0': relu: offsets do not commute with it; use a key without offsets"),
        (nn.Tanh(), r"layer '0' \(Tanh\), node '_0': tanh: offsets"),
        (Sums(), r"node 'add' \(add in module '0'\): sum: offsets do not commute .* or put a linear layer before it"),
        (Scales(), r"node 'mul' \(mul in module '0'\): scale: offsets do not commute"),
    ],
)
def test_what_offsets_do_not_pass_is_named(first: nn.Module, place: str) -> None:
    network = trace_toeplitz(nn.Sequential(first, nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4))
    with pytest.raises(UsageError, match=place):
        check_keys(network, draw_inference_keys(network, ROOT).spaces)
    if not isinstance(first, nn.Tanh):
        check_keys(network, draw_inference_keys(network, ROOT, ImageKeyPolicy(offset_range=0.0)).spaces)


def test_offsets_behind_the_first_layer_are_refused_where_an_activation_reads_them() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    network = trace_toeplitz(model, (1, 4, 4))
    spaces = list(draw_inference_keys(network, ROOT).spaces)
    before_relu, pooled = (draw_image_key(space.size, ROOT, ImageKeyPolicy()) for space in network.spaces[1:3])
    with pytest.raises(UsageError, match=r"layer '1' \(ReLU\), node '_1': relu: offsets do not commute"):
        check_keys(network, [spaces[0], before_relu, *spaces[2:]])
    keys = [*spaces[:2], pooled, *spaces[3:]]  # linear layers alone write and read this one
    images = torch.rand(2, 1, 4, 4)
    keyed = KeyedNetwork.of(network, model.state_dict(), keys)
    found = decrypt_outputs(keyed.run(encrypt_images(images, keys[0])), keys[-1])
    assert torch.allclose(found, model.double()(images.double()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_keys_come_back_from_their_bytes(policy: ImageKeyPolicy) -> None:
    network = trace_toeplitz(lenet5(), (1, 12, 12))
    keys = draw_inference_keys(network, ROOT, policy, PixelKeyPolicy(alpha=2))
    again = InferenceKeys.from_bytes(keys.to_bytes(), network)
    assert again.to_bytes() == keys.to_bytes()
    assert again.condition_numbers == keys.condition_numbers
    assert max(keys.condition_numbers[1:]) <= 1e3


def changed(tensors: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """The tensors with some of the image's parts replaced, or left out."""
    named = {**tensors, **{f"image.{part}": tensor for part, tensor in changes.items()}}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def test_malformed_keys_are_refused() -> None:
    network = trace_toeplitz(Strided(), (1, 7, 9))
    pixel, orthogonal = (
        raw_tensors_from_bytes(draw_inference_keys(network, ROOT, policy).to_bytes(), "keys")
        for policy in (ImageKeyPolicy(), ImageKeyPolicy("orthogonal"))
    )
    large = torch.full((63,), LARGEST_OFFSET, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    small = {"permutations": torch.zeros(1, 1, dtype=torch.int64), "shares": one, "gains": one.clone()}
    cases = {
        "missing or unknown": changed(pixel, gains=None),
        r"unknown tensors \['offsets'\]": changed(orthogonal, offsets=None),
        "63 float64 offsets are due": changed(pixel, offsets=pixel["image.offsets"][:-1].clone()),
        "63 float64 offsets are due, not float32": changed(pixel, offsets=pixel["image.offsets"].float()),
        "not all between": changed(pixel, offsets=2 * large),
        "conditioned worse than 1e\\+06": changed(pixel, offsets=large),
        "not an orthogonal key": changed(orthogonal, orthogonal=2 * orthogonal["image.orthogonal"]),
        "it has 62 entries, not 63": changed(
            orthogonal, orthogonal=torch.eye(62, dtype=torch.float64), offsets=large[1:].clone()
        ),
        "it has 1 entries, not 63": changed(pixel, **small, offsets=one.clone() / 2),
        "does not hold every entry": changed(pixel, permutations=torch.zeros_like(pixel["image.permutations"])),
        r"unknown tensors \['1.gains'\]": {name: t for name, t in pixel.items() if name != "1.gains"},
        "key 1: its gains": {**pixel, "1.gains": torch.zeros_like(pixel["1.gains"])},
    }
    for fault, tensors in cases.items():
        with pytest.raises(MalformedMessage, match=f"inference keys: .*{fault}"):
            InferenceKeys.from_bytes(tensors_to_bytes(tensors), network)
