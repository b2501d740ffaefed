"""Keys that Key-Net really draws, found again in one ciphertext: every pixel and channel, and the gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attacks.adaptive.grid.gains import LayerKey
from attacks.adaptive.grid.layer import recover_layer
from attacks.adaptive.grid.template import ConvolutionTemplate, KeyNotFoundError, posed
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.weights import weights_of

ROOT = SecretRoot(b"keys that an attack shall find.." * 2)


@dataclass
class Keyed:
    """One layer under keys of its own."""

    matrix: scipy.sparse.csr_array
    template: ConvolutionTemplate
    source: PixelKey
    target: PixelKey

    def assert_found(self, key: LayerKey) -> int:
        """Every row and column in its place, up to one of the template's poses; returns which."""
        template = self.template
        columns, rows = self.source.permutation[key.places.columns], self.target.permutation[key.places.rows]
        grid = np.arange(template.pixels).reshape(template.source)
        read = key.places.columns[:, 0] >= 0
        poses = [
            pose
            for pose in template.symmetries
            if np.all((columns % template.pixels == template.moved(grid, pose).reshape(-1, 1))[read])
        ]
        assert poses
        locations = posed(np.arange(template.locations).reshape(template.target), poses[0]).reshape(-1, 1)
        assert np.all(rows % template.locations == locations)
        assert all(pure(columns[pixels] // template.pixels) for pixels in template.connected)
        assert pure(rows // template.locations)
        return poses[0]


def pure(channels: np.ndarray) -> bool:
    """Each column of the table holds one channel, and no two the same."""
    return bool(np.all(channels == channels[0]) and len(set(channels[0])) == channels.shape[1])


def key(size: int, gain_range: float, label: str, alpha: int = 1) -> PixelKey:
    return PixelKey.draw(ROOT.derive(label).reader(), size, gain_range=gain_range, alpha=alpha)


def keyed(template: ConvolutionTemplate, seed: int, gain_range: float = 2.0, **changes: Any) -> Keyed:
    rows, columns = (size - 1 for size in template.layout.shape)
    target, source = key(rows, gain_range, f"rows {seed}"), key(columns, gain_range, f"columns {seed}", **changes)
    values = np.random.default_rng(seed).normal(size=template.layout.value_count)
    matrix = target.matrix @ template.layout.matrix(values) @ source.inverse
    return Keyed(scipy.sparse.csr_array(matrix.astype(np.float32)), template, source, target)


def lenet5_layer(name: str, gain_range: float) -> tuple[Keyed, np.ndarray, np.ndarray]:
    """A layer of LeNet-5 as Key-Net sends it, and its true kernels and bias."""
    network = Network(lambda: build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28), 10)
    form = PixelForm.of(network)
    keys = draw_pixel_keys(form, ROOT, PixelKeyPolicy(gain_range)).spaces
    step, weights = form.layers[name], weights_of(network.build())
    source, target = step.source_spaces[0], step.space
    template = ConvolutionTemplate.of_layer(network, step, form.network.spaces[source], form.network.spaces[target])
    assert template is not None
    matrix = keys[target].matrix @ step.layout.matrix(step.fill(weights)) @ keys[source].inverse
    whole = Keyed(scipy.sparse.csr_array(matrix.astype(np.float32)), template, keys[source], keys[target])
    return whole, weights[f"{name}.weight"].numpy(), weights[f"{name}.bias"].numpy()


@pytest.mark.parametrize("gain_range", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_lenet5_is_found_whole(name: str, gain_range: float) -> None:
    layer, weight, bias = lenet5_layer(name, gain_range)
    found = recover_layer(layer.matrix, layer.template)
    pose = layer.assert_found(found)
    assert not found.offsets
    true_rows, true_columns = layer.target.gains[found.places.rows], layer.source.gains[found.places.columns]
    errors = [np.log(found.rows / true_rows), np.log(found.columns / true_columns)]
    for error in errors:
        assert error.std(0).max() < 1e-6  # up to one number a channel
        assert np.abs(error).max() <= 2 * np.log(gain_range) * 10 / len(error) + 1e-6  # and that is near 1

    outputs = layer.target.permutation[found.places.rows[0]] // layer.template.locations
    inputs = layer.source.permutation[found.places.columns[0]] // layer.template.pixels
    true_kernels = posed(weight[outputs][:, inputs], pose)
    scale = np.exp(errors[1][0][None, :] - errors[0][0][:, None])[..., None, None]
    np.testing.assert_allclose(found.kernels(layer.matrix), true_kernels * scale, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.bias(layer.matrix), bias[outputs] / np.exp(errors[0][0]), rtol=1e-5)


SHAPES = [
    ((1, 9, 9), 3, (3, 3), (1, 1), (1, 1)),
    ((3, 8, 8), 4, (3, 3), (1, 1), (0, 0)),
    ((2, 7, 10), 3, (3, 2), (1, 1), (1, 0)),
    ((1, 12, 12), 5, (5, 5), (2, 2), (2, 2)),
    ((1, 13, 8), 4, (5, 3), (2, 1), (1, 1)),
    ((2, 6, 6), 2, (2, 2), (1, 1), (0, 0)),
    ((3, 12, 12), 4, (5, 5), (2, 2), (2, 2)),
    ((1, 10, 10), 3, (3, 3), (2, 2), (0, 0)),  # the last row and column of pixels stand in no window
]


@pytest.mark.parametrize(("image", "outputs", "kernel", "stride", "padding"), SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_kernel_shape(
    image: tuple[int, int, int],
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    bias: bool,
) -> None:
    template = ConvolutionTemplate.of(image, outputs, kernel, stride=stride, padding=padding, bias=bias)
    layer = keyed(template, seed=3)
    found = recover_layer(layer.matrix, template)
    layer.assert_found(found)
    # without a bias column the trend over the pixels is a guess from the gains alone
    tolerance = 1e-5 if bias else 0.1
    for pixels in template.connected:
        error = np.log(found.columns[pixels] / layer.source.gains[found.places.columns[pixels]])
        assert np.ptp(error, axis=0).max() < tolerance
    error = np.log(found.rows / layer.target.gains[found.places.rows])
    assert np.ptp(error, axis=0).max() < tolerance


@pytest.mark.parametrize("pose", range(8))
def test_a_layer_in_another_pose_has_turned_kernels(pose: int) -> None:
    template = ConvolutionTemplate.of((1, 9, 9), 3, (3, 3), padding=(1, 1))
    layer = keyed(template, seed=1)
    found = recover_layer(layer.matrix, template)
    turned = found.in_pose(pose)
    layer.assert_found(turned)
    np.testing.assert_allclose(turned.kernels(layer.matrix), posed(found.kernels(layer.matrix), pose), rtol=1e-6)
    np.testing.assert_allclose(turned.bias(layer.matrix), found.bias(layer.matrix), rtol=1e-6)


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    outputs=st.integers(1, 4),
    kernel=pairs,
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 1000),
)
def test_what_is_found_is_right(
    channels: int,
    size: tuple[int, int],
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    seed: int,
) -> None:
    assume(all(taps <= length + 2 * zeros for taps, length, zeros in zip(kernel, size, padding, strict=True)))
    template = ConvolutionTemplate.of((channels, *size), outputs, kernel, stride=stride, padding=padding)
    layer = keyed(template, seed)
    try:
        found = recover_layer(layer.matrix, template)
    except KeyNotFoundError:
        return  # some shapes do not tell; what matters is that none is taken for another
    layer.assert_found(found)


def test_the_layer_after_is_read_in_the_frame_of_the_one_before() -> None:
    """Two layers that share a space: nothing is left open between them, and no window of the second need be whole."""
    first = ConvolutionTemplate.of((1, 14, 14), 3, (5, 5), stride=(2, 2), padding=(2, 2))
    second = ConvolutionTemplate.of((3, 7, 7), 4, (5, 5), stride=(2, 2), padding=(2, 2))
    one = keyed(first, seed=1)
    two = keyed(second, seed=2)
    values = np.random.default_rng(2).normal(size=second.layout.value_count)
    two.source = one.target
    two.matrix = scipy.sparse.csr_array(two.target.matrix @ second.layout.matrix(values) @ one.target.inverse)
    key_one = recover_layer(one.matrix, first)
    pose = one.assert_found(key_one)
    key_two = recover_layer(two.matrix, second, key_one.target)
    assert np.array_equal(key_two.places.columns, key_one.places.rows)
    assert two.assert_found(key_two) == pose
    error = np.log(key_two.rows / two.target.gains[key_two.places.rows])
    assert error.std(0).max() < 1e-4


def test_a_bias_of_zero_is_no_offset() -> None:
    template = ConvolutionTemplate.of((1, 9, 9), 3, (3, 3), padding=(1, 1))
    values = np.random.default_rng(0).normal(size=template.layout.value_count)
    values[-3:] = 0
    matrix = scipy.sparse.csr_array(keyed(template, seed=0).target.matrix @ template.layout.matrix(values))
    found = recover_layer(matrix, template)
    assert not found.offsets
    assert np.array_equal(found.bias(matrix), np.zeros(3))


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_single_output_channel_is_enough_for_a_single_input(outputs: int) -> None:
    template = ConvolutionTemplate.of((1, 9, 9), outputs, (3, 3), padding=(1, 1))
    layer = keyed(template, seed=5)
    layer.assert_found(recover_layer(layer.matrix, template))


@pytest.mark.parametrize(
    "shape", [((1, 8, 8), 4, (1, 1), (1, 1)), ((1, 8, 8), 4, (2, 2), (2, 2)), ((1, 8, 8), 4, (4, 4), (2, 2))], ids=str
)
def test_a_grid_that_is_none_is_refused(shape: tuple[Any, ...]) -> None:
    image, outputs, kernel, stride = shape
    template = ConvolutionTemplate.of(image, outputs, kernel, stride=stride)
    with pytest.raises(KeyNotFoundError, match=r"ways|which it is"):
        recover_layer(keyed(template, seed=0).matrix, template)


def soft(layer: Keyed) -> scipy.sparse.csr_array:
    return keyed(layer.template, seed=0, alpha=4).matrix


def of_another_shape(layer: Keyed) -> scipy.sparse.csr_array:
    return keyed(ConvolutionTemplate.of((1, 8, 8), 3, (3, 3), padding=(1, 1)), seed=0).matrix


def one_entry_elsewhere(layer: Keyed) -> scipy.sparse.csr_array:
    moved = layer.matrix.tolil()
    row = layer.matrix[[0]].toarray()[0]
    there, empty = np.flatnonzero(row[:-1])[0], np.flatnonzero(row == 0)[0]
    moved[0, empty], moved[0, there] = row[there], 0
    return scipy.sparse.csr_array(moved)


def values_of_noise(layer: Keyed) -> scipy.sparse.csr_array:
    data = np.random.default_rng(0).normal(size=layer.matrix.nnz)
    return scipy.sparse.csr_array((data, layer.matrix.indices, layer.matrix.indptr), shape=layer.matrix.shape)


def a_kernel_of_zeros(layer: Keyed) -> scipy.sparse.csr_array:
    data = np.where(layer.matrix.indices < layer.matrix.shape[1] - 1, 0.0, layer.matrix.data)
    return scipy.sparse.csr_array((data, layer.matrix.indices, layer.matrix.indptr), shape=layer.matrix.shape)


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("spoil", [soft, of_another_shape, one_entry_elsewhere, values_of_noise, a_kernel_of_zeros])
def test_what_is_no_such_layer_is_refused(spoil: Callable[[Keyed], scipy.sparse.csr_array], outputs: int) -> None:
    layer = keyed(ConvolutionTemplate.of((1, 8, 8), outputs, (3, 3), padding=(1, 1)), seed=0)
    with pytest.raises(KeyNotFoundError):
        recover_layer(spoil(layer), layer.template)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [((3, 3), (1, 1), (1, 1)), ((2, 3), (2, 1), (0, 1))])
def test_taps_are_those_of_unfold(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
    template = ConvolutionTemplate.of((2, 6, 7), 3, kernel, stride=stride, padding=padding)
    pixels = torch.arange(1, 43, dtype=torch.float64).view(1, 1, 6, 7)  # 0 is the padding
    windows = F.unfold(pixels, kernel, padding=padding, stride=stride)[0].T.long().numpy() - 1
    assert np.array_equal(template.tap_pixels, windows)
