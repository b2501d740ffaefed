"""Seconds to protect and recover a network's weights, beside a plain copy of them.

    pytest tests/benchmarks/bench_keynet.py --benchmark-group-by=param:architecture

The table's brackets are ratios within a network; `extra_info.ratio` is (protect + recover) / copy, taken interleaved.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from defenses.keynet.channel import ChannelTransform
from defenses.keynet.keys import KeyPolicy, draw_keys
from federation.channels import trace_channels
from federation.models import build_model
from federation.secret_root import SecretRoot
from federation.vision import models
from federation.weights import Weights, weights_of

IMAGES = {"lenet5": (1, 28, 28), "resnet18": (3, 32, 32), "mobilenet_v2": (3, 32, 32)}
POLICIES = {
    "permutation": KeyPolicy(1.0),
    "gains": KeyPolicy(2.0),
    "soft": KeyPolicy(2.0, kind="soft"),
    "orthogonal": KeyPolicy(kind="orthogonal"),
}


@pytest.fixture(params=IMAGES, scope="module")
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=POLICIES, scope="module")
def transform_and_weights(request: pytest.FixtureRequest, architecture: str) -> tuple[ChannelTransform, Weights]:
    torch.set_num_threads(1)
    network = network_of(architecture)
    channel_map = trace_channels(network, IMAGES[architecture])
    keys = draw_keys(channel_map, SecretRoot(bytes(32)), POLICIES[request.param])
    return ChannelTransform(keys, channel_map), weights_of(network)


def network_of(architecture: str) -> nn.Module:
    if architecture == "mobilenet_v2":
        return models.mobilenet_v2(weights=None, num_classes=10)
    return build_model(architecture, IMAGES[architecture], 10, seed=0)


def copy(weights: Weights) -> Weights:
    return {name: tensor.clone() for name, tensor in weights.items()}


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_copy(benchmark: BenchmarkFixture, transform_and_weights: tuple[ChannelTransform, Weights]) -> None:
    benchmark(copy, transform_and_weights[1])


def test_protect(benchmark: BenchmarkFixture, transform_and_weights: tuple[ChannelTransform, Weights]) -> None:
    transform, weights = transform_and_weights
    benchmark(transform.protect, weights)


def test_recover(benchmark: BenchmarkFixture, transform_and_weights: tuple[ChannelTransform, Weights]) -> None:
    transform, weights = transform_and_weights
    benchmark(transform.recover, transform.protect(weights))


def test_protect_and_recover(
    benchmark: BenchmarkFixture, transform_and_weights: tuple[ChannelTransform, Weights]
) -> None:
    transform, weights = transform_and_weights
    recovered = benchmark(lambda: transform.recover(transform.protect(weights)))
    ratios = [
        seconds(lambda: transform.recover(transform.protect(weights))) / seconds(lambda: copy(weights))
        for _ in range(30)
    ]
    benchmark.extra_info["ratio"] = statistics.median(ratios)
    for name, tensor in weights.items():
        off = float((recovered[name].double() - tensor.double()).abs().max())
        assert off <= transform.recovery_error(name) * float(tensor.abs().max())
