"""Speed of the metrics on 100 images: `pytest tests/benchmarks/bench_metrics.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmark.metrics import pixel
from benchmark.metrics.identification import identified
from benchmark.metrics.matching import match
from benchmark.metrics.perceptual import load_lpips, load_st_lpips
from benchmark.metrics.trunk import ALEXNET_CONVOLUTIONS

COUNT = 100
SIZES = [(1, 28), (3, 32)]


def images(seed: int, count: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: speed does not depend on their values."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer, kernel in ALEXNET_CONVOLUTIONS.items():
        weights[f"{layer}.weight"] = torch.randn(kernel, generator=generator) * 0.05
        weights[f"{layer}.bias"] = torch.zeros(kernel[0])
    path = tmp_path_factory.mktemp("trunk") / "random.pth"
    torch.save(weights, path)
    return path


@pytest.mark.parametrize(("channels", "side"), SIZES)
@pytest.mark.parametrize("metric", [pixel.mse, pixel.psnr, pixel.ssim])
def test_pixel(benchmark: BenchmarkFixture, metric: Callable, channels: int, side: int) -> None:
    benchmark(metric, images(0, COUNT, channels, side), images(1, COUNT, channels, side))


@pytest.mark.parametrize(("channels", "side"), SIZES)
@pytest.mark.parametrize("name", ["lpips", "st_lpips"])
def test_perceptual(benchmark: BenchmarkFixture, name: str, channels: int, side: int, trunk_file: Path) -> None:
    metric = load_lpips(trunk_file) if name == "lpips" else load_st_lpips()
    first, second = images(0, COUNT, channels, side), images(1, COUNT, channels, side)
    benchmark.pedantic(metric.distances, (first, second), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize(("channels", "side"), SIZES)
def test_identification(benchmark: BenchmarkFixture, channels: int, side: int) -> None:
    gallery = images(2, 1000, channels, side)
    benchmark(identified, images(0, COUNT, channels, side), torch.arange(COUNT), gallery)


@pytest.mark.parametrize(("channels", "side"), SIZES)
def test_matching(benchmark: BenchmarkFixture, channels: int, side: int) -> None:
    benchmark(match, images(0, COUNT, channels, side), images(1, COUNT, channels, side))
