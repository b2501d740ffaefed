"""Devices by name, and the rules of arithmetic on them."""

from __future__ import annotations

import pytest
import torch

from federation.device import computing_on, find_device, gpus_of, kind_of
from federation.errors import KeyholeError, UsageError
from federation.models import MODELS
from federation.training import cross_entropy_gradients

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def with_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "name", "device"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "auto", "cuda"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:0", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_devices_that_are_here(monkeypatch: pytest.MonkeyPatch, count: int, name: str, device: str) -> None:
    with_gpus(monkeypatch, count)
    assert find_device(name) == device


@pytest.mark.parametrize(
    ("count", "name", "message"),
    [
        (0, "cuda", "device 'cuda' is not here; devices of this machine: cpu"),
        (0, "cuda:0", "device 'cuda:0' is not here; devices of this machine: cpu"),
        (2, "cuda:2", "device 'cuda:2' is not here; devices of this machine: cpu, cuda, cuda:0, cuda:1"),
        (1, "gpu", "device 'gpu' is none of auto, cpu, cuda and cuda:N; devices of this machine: cpu, cuda, cuda:0"),
        (
            1,
            "cuda:",
            "device 'cuda:' is none of auto, cpu, cuda and cuda:N; devices of this machine: cpu, cuda, cuda:0",
        ),
        (0, "meta", "device 'meta' is none of auto, cpu, cuda and cuda:N; devices of this machine: cpu"),
        (0, "", "device '' is none of auto, cpu, cuda and cuda:N; devices of this machine: cpu"),
    ],
)
def test_a_device_that_is_not_here_is_one_line_that_names_those_that_are(
    monkeypatch: pytest.MonkeyPatch, count: int, name: str, message: str
) -> None:
    with_gpus(monkeypatch, count)
    with pytest.raises(UsageError) as caught:
        find_device(name)
    assert str(caught.value) == message


def test_what_a_device_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 3)
    assert [gpus_of(device) for device in ("cpu", "cuda", "cuda:1")] == [[], [0, 1, 2], [1]]
    assert [kind_of(device) for device in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda"]


def rules() -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32


def test_cuda_computes_in_full_float32_and_by_fixed_algorithms_inside_the_block_alone() -> None:
    before = rules()
    with computing_on("cpu") as device:
        assert device == torch.device("cpu")
        assert rules() == before
    with computing_on("cuda:1") as device:
        assert device == torch.device("cuda:1")
        assert rules() == (True, False, True, False)
    assert rules() == before


def test_a_gpu_without_room_is_one_line_and_other_errors_pass() -> None:
    before = rules()
    with (
        pytest.raises(
            KeyholeError, match=r"^cuda: CUDA out of memory. Tried to allocate 2.00 GiB; .*--workers"
        ) as caught,
        computing_on("cuda"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\na total capacity")
    assert "\n" not in str(caught.value)
    with pytest.raises(ZeroDivisionError), computing_on("cuda"):
        raise ZeroDivisionError
    assert rules() == before


@needs_cuda
@pytest.mark.parametrize("name", ["lenet-zhu", "lenet5", "resnet18", "mobilenetv2-quarter"])
def test_gradients_of_a_gpu_are_those_of_the_processor(name: str) -> None:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    expected = cross_entropy_gradients(MODELS.get(name)((3, 32, 32), 10, seed=1), images, labels)
    with computing_on("cuda") as device:
        model = MODELS.get(name)((3, 32, 32), 10, seed=1).to(device)
        found = cross_entropy_gradients(model, images.to(device), labels.to(device))
        again = cross_entropy_gradients(model, images.to(device), labels.to(device))
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key].cpu(), tensor, rtol=1e-3, atol=1e-4 * float(tensor.abs().max()))
        torch.testing.assert_close(found[key], again[key], rtol=1e-5, atol=1e-6 * float(tensor.abs().max()))
