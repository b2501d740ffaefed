"""Keyed images opened from a keyed first layer: real digits, exact or 8-bit ciphertexts, gains and offsets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from keyed_digits import CAP, PIXELS, SIDE, as_pictures, psnr

from attacks.adaptive.grid.template import ConvolutionTemplate, KeyNotFoundError
from attacks.adaptive.keynet_image import RecoveredImages, recover_images
from defenses.keynet.inference import encrypt_images
from defenses.keynet.pixel import PixelKey
from federation.datasets import load_dataset
from federation.errors import UsageError
from federation.secret_root import SecretRoot

ROOT = SecretRoot(b"keys of images that fall ......." * 2)
DIGITS = 3
LENET = ConvolutionTemplate.of((1, SIDE, SIDE), 6, (5, 5), padding=(2, 2))


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """[DIGITS, PIXELS], grey levels 0 to 255."""
    return load_dataset("mnist5k").victims.images[:DIGITS].flatten(1).numpy().astype(np.float64)


@dataclass
class Scheme:
    """A first layer and images under one key; gains and offsets as the authors' package draws its photometric keys."""

    layer: scipy.sparse.csr_array
    image_key: scipy.sparse.csr_array

    @classmethod
    def drawn(cls, seed: int, gain: float, offset: float = 0.0) -> Scheme:
        """Gains uniform on [1, gain], offsets uniform on [0, offset]; the rows' gains log-uniform on [1/2, 2]."""
        generator = np.random.default_rng(seed)
        gains, offsets = generator.uniform(1, gain, PIXELS), generator.uniform(0, offset, PIXELS)
        order = generator.permutation(PIXELS)
        places = np.arange(PIXELS), order
        forward = scipy.sparse.csr_array((gains, places), shape=(PIXELS, PIXELS))
        inverse = scipy.sparse.csr_array((1 / gains, places[::-1]), shape=(PIXELS, PIXELS))
        rows = PixelKey.draw(ROOT.derive("rows", seed).reader(), LENET.layout.shape[0] - 1, gain_range=2.0, alpha=1)
        values = generator.uniform(-0.2, 0.2, LENET.layout.value_count)
        layer = rows.matrix @ LENET.layout.matrix(values) @ homogeneous(inverse, -(inverse @ offsets))
        return cls(scipy.sparse.csr_array(layer), homogeneous(forward, offsets))

    def encrypted(self, images: np.ndarray) -> np.ndarray:
        with_one = np.hstack([images, np.ones((len(images), 1))])
        return np.asarray((self.image_key @ with_one.T).T)[:, :-1]


def homogeneous(matrix: scipy.sparse.csr_array, column: np.ndarray) -> scipy.sparse.csr_array:
    last = scipy.sparse.csr_array(np.ones((1, 1)))
    return scipy.sparse.csr_array(scipy.sparse.block_array([[matrix, column[:, None]], [None, last]]))


KEYS: dict[str, dict[str, float]] = {
    "permutation": {"gain": 1.0},
    "gains up to 2": {"gain": 2.0},
    "gains up to 101": {"gain": 101.0},
    "affine": {"gain": 2.0, "offset": 255.0},
}


@pytest.mark.parametrize("kind", KEYS)
def test_exact_ciphertexts_open_exactly(digits: np.ndarray, kind: str) -> None:
    scheme = Scheme.drawn(0, **KEYS[kind])
    found = recover_images(scheme.layer, scheme.encrypted(digits), LENET)
    assert found.key.offsets == (kind == "affine")
    assert found.images.min() == 0
    assert found.images.max() == 1
    assert psnr(found.images, digits) == CAP


@pytest.mark.parametrize(("kind", "least"), list(zip(KEYS, (60.0, 58.0, 41.0, 50.0), strict=True)))
@pytest.mark.parametrize("seed", range(2))
def test_eight_bits_are_enough(digits: np.ndarray, kind: str, least: float, seed: int) -> None:
    scheme = Scheme.drawn(seed, **KEYS[kind])
    pictures = as_pictures(scheme.encrypted(digits))
    found = recover_images(scheme.layer, pictures, LENET, grey_levels=True)
    assert psnr(found.images, digits) >= least


@pytest.mark.parametrize("kind", KEYS)
def test_another_networks_layer_opens_nothing(digits: np.ndarray, kind: str) -> None:
    scheme, other = (Scheme.drawn(seed, **KEYS[kind]) for seed in (0, 1))
    pictures = as_pictures(scheme.encrypted(digits))
    found = recover_images(other.layer, pictures, LENET, grey_levels=True)
    ciphertext = psnr(pictures, digits)
    assert 7 <= ciphertext <= 18
    assert psnr(found.images, digits) <= ciphertext + 1


@pytest.mark.parametrize("stride", [1, 2])
def test_keyholes_own_encrypted_inference_falls(stride: int) -> None:
    """Colour photographs under a key of `keynet-toeplitz`, sent with their last coordinate, in float32.

    With a stride of 2 the layer does not say which colours of even and odd pixels belong together; the pictures do.
    """
    template = ConvolutionTemplate.of((3, 32, 32), 5, (5, 5), stride=(stride, stride), padding=(2, 2))
    rows, columns = (size - 1 for size in template.layout.shape)
    target, source = (
        PixelKey.draw(ROOT.derive("own", size).reader(), size, gain_range=2.0, alpha=1) for size in (rows, columns)
    )
    values = np.random.default_rng(0).normal(size=template.layout.value_count)
    layer = scipy.sparse.csr_array((target.matrix @ template.layout.matrix(values) @ source.inverse).astype(np.float32))
    images = load_dataset("photos32").victims.pixels()[:4]
    found = recover_images(layer, encrypt_images(images, source).astype(np.float32), template)
    assert 0 in found.poses
    assert best_match(found, images.numpy()) > 0.999


def best_match(found: RecoveredImages, truth: np.ndarray) -> float:
    """Correlation, the least over images and channels, at the best pose and order of the channels."""
    scores = []
    for pose in found.poses:
        turned = np.rot90(np.swapaxes(truth, -1, -2) if pose >= 4 else truth, pose % 4, axes=(-2, -1))
        for order in itertools.permutations(range(3)):
            ours, theirs = (part.reshape(12, -1) for part in (found.images, turned[:, list(order)]))
            scores.append(min(np.corrcoef(*pair)[0, 1] for pair in zip(ours, theirs, strict=True)))
    return max(scores)


def test_permuted_rows_with_gains_do_not_help(digits: np.ndarray) -> None:
    """What the output's key does to the rows costs the attack nothing, not even at gains up to 101."""
    scheme = Scheme.drawn(0, gain=101.0)
    pictures = as_pictures(scheme.encrypted(digits))
    inverse = scipy.sparse.linalg.inv(scipy.sparse.csc_array(scheme.image_key))
    generator = np.random.default_rng(1)
    plain = LENET.layout.matrix(generator.uniform(-0.2, 0.2, LENET.layout.value_count)) @ inverse
    rows = LENET.layout.shape[0] - 1
    gains, order = np.append(generator.uniform(1, 101, rows), 1.0), np.append(generator.permutation(rows), rows)
    reached = [
        psnr(recover_images(scipy.sparse.csr_array(layer), pictures, LENET, grey_levels=True).images, digits)
        for layer in (plain, scipy.sparse.diags_array(gains) @ plain.tocsr()[order])
    ]
    assert min(reached) > 41
    assert reached[0] == pytest.approx(reached[1], abs=0.5)


def soft_layer() -> scipy.sparse.csr_array:
    source = PixelKey.draw(ROOT.derive("soft").reader(), PIXELS, gain_range=1.0, alpha=3)
    values = np.random.default_rng(0).normal(size=LENET.layout.value_count)
    return scipy.sparse.csr_array(LENET.layout.matrix(values) @ source.inverse)


def test_a_soft_key_is_not_opened(digits: np.ndarray) -> None:
    with pytest.raises(KeyNotFoundError, match="do not stand where"):
        recover_images(soft_layer(), digits, LENET)


@pytest.mark.parametrize("images", [np.zeros(PIXELS), np.zeros((2, 10))], ids=["no batch", "another size"])
def test_ciphertexts_of_another_size_are_refused(images: Any) -> None:
    with pytest.raises(UsageError, match="keyed images are"):
        recover_images(Scheme.drawn(0, gain=1.0).layer, images, LENET)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvolutionTemplate.of((1, 4, 4), 1, (5, 5)),
        lambda: ConvolutionTemplate.of((1, 4, 4), 1, (2, 2), stride=(0, 1)),
        lambda: ConvolutionTemplate.of((1, 4, 4), 0, (2, 2)),
        lambda: ConvolutionTemplate.of((1, 4, 4), 1, (2, 2), padding=(-1, 0)),
    ],
)
def test_shapes_that_are_no_layer_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match="no convolution"):
        build()


def test_pixels_that_no_window_has_are_grey(digits: np.ndarray) -> None:
    """A stride of 2 on 28 pixels leaves out the last row and column; the others still open exactly."""
    template = ConvolutionTemplate.of((1, SIDE, SIDE), 4, (5, 5), stride=(2, 2))
    generator = np.random.default_rng(0)
    order, gains = generator.permutation(PIXELS), generator.uniform(1, 2, PIXELS)
    inverse = scipy.sparse.csr_array((1 / gains, (order, np.arange(PIXELS))), shape=(PIXELS, PIXELS))
    values = generator.normal(size=template.layout.value_count)
    layer = scipy.sparse.csr_array(template.layout.matrix(values) @ homogeneous(inverse, np.zeros(PIXELS)))
    for grey_levels in (False, True):
        keyed = digits[:, order] * gains
        found = recover_images(layer, as_pictures(keyed) if grey_levels else keyed, template, grey_levels=grey_levels)
        assert np.all(found.images[..., -1, :] == 0.5)
        assert np.all(found.images[..., :, -1] == 0.5)
        seen = digits.reshape(-1, SIDE, SIDE)[:, :-1, :-1]
        scores = [
            np.corrcoef(template.moved(found.images, pose)[:, 0, :-1, :-1].ravel(), seen.ravel())[0, 1]
            for pose in found.poses
        ]
        assert max(scores) > 0.999


def test_the_darkest_pixel_is_none_that_rounding_has_moved(digits: np.ndarray) -> None:
    """Without contrast and brightness fitted: digits span black to white, and so do the pictures that come out."""
    scheme = Scheme.drawn(0, gain=101.0)
    found = recover_images(scheme.layer, as_pictures(scheme.encrypted(digits)), LENET, grey_levels=True).images[:, 0]
    truth = digits.reshape(-1, SIDE, SIDE)
    errors = [
        np.mean((np.rot90(side, turns, (-2, -1)) * 255 - truth) ** 2)
        for side in (found, np.swapaxes(found, -1, -2))
        for turns in range(4)
    ]
    assert 10 * np.log10(255**2 / min(errors)) > 38
