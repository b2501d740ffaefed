"""Seconds to open Key-Net's pixel keys from one ciphertext, and keyed images from one keyed layer.

    pytest tests/benchmarks/bench_keynet_recovery.py

Targets: 10 s a convolution of LeNet-5, with every pixel and channel in its place; 5 s for 28x28 images in 8-bit
ciphertext, keyed as the authors' package does, at 60 dB (permutation), 58 (gains up to 2) and 41 (gains up to 101).
The same for keys that mix the pixels of 4x4 blocks, at 30 dB.
`extra_info` has what was found: the share of places that are right, the largest error of gains, the PSNR.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from pytest_benchmark.fixture import BenchmarkFixture

from attacks.adaptive.grid.layer import recover_layer
from attacks.adaptive.grid.mixed import block_entries
from attacks.adaptive.grid.network import open_network
from attacks.adaptive.grid.template import ConvolutionTemplate
from attacks.adaptive.keynet_image import recover_images
from benchmark.speed.attacks.keynet_blocks import BLOCK_PSNR, BlockKey
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys
from federation.datasets import load_dataset
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.weights import weights_of

LAYER_SECONDS, IMAGE_SECONDS = 10.0, 5.0
SIDE, PIXELS = 28, 784


class Model:
    """A model on 28x28 digits as `keynet-toeplitz` sends it."""

    def __init__(self, name: str, gain_range: float) -> None:
        self.network = Network(lambda: build_model(name, (1, SIDE, SIDE), 10, seed=0), (1, SIDE, SIDE), 10)
        self.form = PixelForm.of(self.network)
        self.keys = draw_pixel_keys(self.form, SecretRoot(bytes(32)), PixelKeyPolicy(gain_range)).spaces
        weights = weights_of(self.network.build())
        self.matrices = {
            layer: scipy.sparse.csr_array(
                (
                    self.keys[step.space].matrix
                    @ step.layout.matrix(step.fill(weights))
                    @ self.keys[step.source_spaces[0]].inverse
                ).astype(np.float32)
            )
            for layer, step in self.form.layers.items()
        }


@pytest.mark.parametrize("gain_range", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_layer_of_lenet5(benchmark: BenchmarkFixture, layer: str, gain_range: float) -> None:
    model = Model("lenet5", gain_range)
    step, spaces = model.form.layers[layer], model.form.network.spaces
    source, target = step.source_spaces[0], step.space
    template = ConvolutionTemplate.of_layer(model.network, step, spaces[source], spaces[target])
    assert template is not None
    found = benchmark.pedantic(recover_layer, args=(model.matrices[layer], template), rounds=5, warmup_rounds=1)
    true = model.keys[source].permutation[found.places.columns]
    grid = np.arange(template.pixels).reshape(template.source)
    right = max(
        float(np.mean(true % template.pixels == template.moved(grid, pose).reshape(-1, 1)))
        for pose in template.symmetries
    )
    channels = true // template.pixels
    logs = np.log(found.columns / model.keys[source].gains[found.places.columns])
    benchmark.extra_info.update(
        pixels_placed=right,
        channels_placed=float(np.mean(channels == channels[0])),
        gain_error=float(np.abs(logs - logs.mean(0)).max()),
    )
    assert right == 1
    assert benchmark.stats["median"] < LAYER_SECONDS


def test_whole_of_dlgs_network(benchmark: BenchmarkFixture) -> None:
    model = Model("lenet-zhu", gain_range=2.0)

    def opened() -> int:
        return len(open_network(model.network, model.matrices, unit_gains=False)[0].spaces)

    assert benchmark.pedantic(opened, rounds=3, warmup_rounds=1) == len(model.form.network.spaces)
    assert benchmark.stats["median"] < LAYER_SECONDS * len(model.matrices)


@pytest.mark.parametrize(("gain", "least"), [(1.0, 60.0), (2.0, 58.0), (101.0, 41.0)])
def test_eight_bit_ciphertext_images(benchmark: BenchmarkFixture, gain: float, least: float) -> None:
    template = ConvolutionTemplate.of((1, SIDE, SIDE), 6, (5, 5), padding=(2, 2))
    generator = np.random.default_rng(0)
    images = load_dataset("mnist5k").victims.images[:8].flatten(1).numpy().astype(np.float64)
    order, gains = generator.permutation(PIXELS), generator.uniform(1, gain, PIXELS)
    inverse = scipy.sparse.csr_array((1 / gains, (order, np.arange(PIXELS))), shape=(PIXELS, PIXELS))
    rows = template.layout.shape[0] - 1
    row_gains = scipy.sparse.diags_array(np.exp(generator.uniform(-1, 1, rows)))
    shuffle = scipy.sparse.csr_array((np.ones(rows), (np.arange(rows), generator.permutation(rows))))
    last = scipy.sparse.eye_array(1)
    values = generator.uniform(-0.2, 0.2, template.layout.value_count)
    layer = scipy.sparse.csr_array(
        scipy.sparse.block_diag([row_gains @ shuffle, last])
        @ template.layout.matrix(values)
        @ scipy.sparse.block_diag([inverse, last])
    )
    keyed = images[:, order] * gains
    low, high = keyed.min(1, keepdims=True), keyed.max(1, keepdims=True)
    pictures = np.round((keyed - low) / (high - low) * 255)
    found = benchmark.pedantic(
        recover_images, args=(layer, pictures, template), kwargs={"grey_levels": True}, rounds=3, warmup_rounds=1
    )
    benchmark.extra_info["psnr"] = reached = _psnr(found.images, images)
    assert reached >= least
    assert benchmark.stats["median"] < IMAGE_SECONDS


@pytest.mark.parametrize("side", [2, 4, 7])
def test_images_mixed_in_blocks(benchmark: BenchmarkFixture, side: int) -> None:
    template = ConvolutionTemplate.of((1, SIDE, SIDE), 6, (5, 5), padding=(2, 2))
    generator = np.random.default_rng(0)
    images = load_dataset("mnist5k").victims.images[:8].flatten(1).numpy()
    key = BlockKey.draw(block_entries((1, SIDE, SIDE), (side, side), "tiles"), SecretRoot(bytes(32)).reader())
    rows = template.layout.shape[0] - 1
    order, gains = np.append(generator.permutation(rows), rows), np.append(np.exp(generator.uniform(-1, 1, rows)), 1)
    plain = template.layout.matrix(generator.uniform(-0.2, 0.2, template.layout.value_count)) @ key.inverse
    layer = scipy.sparse.csr_array(scipy.sparse.diags_array(gains) @ plain.tocsr()[order])
    keyed = key.encrypted(images)
    low, high = keyed.min(1, keepdims=True), keyed.max(1, keepdims=True)
    pictures = np.round((keyed - low) / (high - low) * 255)
    found = benchmark.pedantic(
        recover_images,
        args=(layer, pictures, template),
        kwargs={"grey_levels": True, "blocks": key.blocks},
        rounds=3,
        warmup_rounds=1,
    )
    benchmark.extra_info["psnr"] = reached = _psnr(found.images, images.astype(np.float64))
    assert reached >= BLOCK_PSNR
    assert benchmark.stats["median"] < IMAGE_SECONDS


def _psnr(guesses: np.ndarray, truths: np.ndarray) -> float:
    """Mean over images, capped at 60 dB, in the best of the eight poses, contrast and brightness fitted."""
    reached = []
    for guess, truth in zip(guesses[:, 0], truths, strict=True):
        errors = []
        for turned in (np.rot90(side, turns) for side in (guess, guess.T) for turns in range(4)):
            design = np.stack([turned.ravel(), np.ones(PIXELS)], axis=1)
            fitted = np.clip(np.round(design @ np.linalg.lstsq(design, truth, rcond=None)[0]), 0, 255)
            errors.append(np.mean((fitted - truth) ** 2))
        reached.append(min(60.0, 10 * np.log10(255**2 / max(min(errors), 1e-9))))
    return float(np.mean(reached))
