"""Seconds to key LeNet-5 as Toeplitz matrices and to recover it, beside SciPy's sparse products in the same run.

    pytest tests/benchmarks/bench_keynet_toeplitz.py

`extra_info.ratio` is SciPy's time over the relabelling's, the shortest of runs taken in turn, for protect and recover
together. SciPy's side has its keys ready: only the products, filling the matrix and, to recover, the mean over each
value's entries are timed. `extra_info.products_ratio` leaves all but the products out.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys
from defenses.keynet.pixel_message import KeyedModel
from defenses.keynet.pixel_transform import MonomialKeying, PixelTransform, Singles, SparseKeying
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.weights import weights_of

Step = Callable[[], object]


class Layers:
    """The layers of LeNet-5 on 28x28 pixels: keyed both ways, with values to key and the keyed entries."""

    def __init__(self, gain_range: float) -> None:
        self.network = Network(lambda: build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28), 10)
        self.form = PixelForm.of(self.network)
        self.keys = draw_pixel_keys(self.form, SecretRoot(bytes(32)), PixelKeyPolicy(gain_range))
        self.weights = weights_of(self.network.build())
        steps = self.form.layers.values()
        pairs = [(self.keys.spaces[step.space], self.keys.spaces[step.source_spaces[0]]) for step in steps]
        self.fast = [MonomialKeying(step.layout, *pair) for step, pair in zip(steps, pairs, strict=True)]
        self.scipy = [SparseKeying(step.layout, *pair) for step, pair in zip(steps, pairs, strict=True)]
        self.products = [(*pair, step.layout) for step, pair in zip(steps, pairs, strict=True)]
        self.values: list[Singles] = [step.fill(self.weights).astype(np.float32) for step in steps]
        self.entries = self.protect(self.fast)
        self.recover(self.fast)
        self.recover(self.scipy)  # everything that is worked out once now is

    def protect(self, keyings: list[MonomialKeying] | list[SparseKeying]) -> list[Singles]:
        return [keying.protect(values) for keying, values in zip(keyings, self.values, strict=True)]

    def recover(self, keyings: list[MonomialKeying] | list[SparseKeying]) -> list[Singles]:
        return [keying.recover(entries) for keying, entries in zip(keyings, self.entries, strict=True)]

    def multiply(self) -> None:
        """Nothing but the four sparse products of each layer, on matrices that are ready."""
        for output, source, plain, keyed in self.ready:
            _ = output.matrix @ plain @ source.inverse
            _ = output.inverse @ keyed @ source.matrix

    def make_ready(self) -> None:
        self.ready = [
            (output, source, layout.matrix(values), product.product(values))
            for (output, source, layout), values, product in zip(self.products, self.values, self.scipy, strict=True)
        ]


@pytest.fixture(params=[1.0, 2.0], scope="module", ids=["permutation", "gains"])
def layers(request: pytest.FixtureRequest) -> Layers:
    torch.set_num_threads(1)
    found = Layers(request.param)
    found.make_ready()
    return found


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return int(request.param)


def seconds(function: Step) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_protect(benchmark: BenchmarkFixture, layers: Layers, threads: int) -> None:
    benchmark(layers.protect, layers.fast)


def test_recover(benchmark: BenchmarkFixture, layers: Layers, threads: int) -> None:
    benchmark(layers.recover, layers.fast)


def test_protect_with_scipy(benchmark: BenchmarkFixture, layers: Layers) -> None:
    benchmark(layers.protect, layers.scipy)


def test_recover_with_scipy(benchmark: BenchmarkFixture, layers: Layers) -> None:
    benchmark(layers.recover, layers.scipy)


def test_against_scipy(benchmark: BenchmarkFixture, layers: Layers, threads: int) -> None:
    def both(keyings: list[MonomialKeying] | list[SparseKeying]) -> None:
        layers.protect(keyings)
        layers.recover(keyings)

    benchmark(both, layers.fast)
    rounds = [
        (seconds(lambda: both(layers.fast)), seconds(lambda: both(layers.scipy)), seconds(layers.multiply))
        for _ in range(15)
    ]
    fast, scipy, products = (min(column) for column in zip(*rounds, strict=True))
    ratio, products_ratio = scipy / fast, products / fast
    benchmark.extra_info.update(ratio=ratio, products_ratio=products_ratio)
    assert ratio >= 5


def test_whole_message(benchmark: BenchmarkFixture, layers: Layers, threads: int) -> None:
    """Weights to bytes and back, checks included."""
    transform = PixelTransform(layers.form, layers.keys)

    def there_and_back() -> object:
        payload = transform.protect(layers.weights).to_bytes()
        benchmark.extra_info["bytes"] = len(payload)
        return transform.recover(KeyedModel.from_bytes(payload, layers.form, "a message"), "a message")

    benchmark(there_and_back)
