"""The built-in networks: shapes, seeds, published counts, and a graph that can be traced."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from federation.datasets import load_dataset
from federation.errors import UsageError
from federation.models import MODELS, build_model
from federation.models.base import model

NAMES = ["lenet-zhu", "lenet-zhu-default", "lenet5", "logistic", "resnet18"]


def toeplitz_entries(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Non-zeros of the homogeneous matrices [W b; 0 1] of the layers with weights: taps in the image, biases, ones."""
    entries = 0
    shape = torch.zeros(1, *image_shape)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            ones = torch.ones_like(shape)
            taps = F.conv2d(ones, torch.ones_like(layer.weight), stride=layer.stride, padding=layer.padding)
            entries += int(taps.sum()) + taps.numel() + 1
        elif isinstance(layer, nn.Linear):
            entries += layer.weight.numel() + layer.bias.numel() + 1
        shape = layer(shape)
    return entries


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("image_shape", "classes"), [((1, 28, 28), 10), ((3, 32, 32), 8), ((2, 37, 45), 3)])
def test_any_images_and_class_count(name, image_shape, classes):
    network = build_model(name, image_shape, classes, seed=0).eval()
    scores = network(torch.zeros(2, *image_shape))
    assert scores.shape == (2, classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_the_global_state_stays(name):
    torch.manual_seed(77)
    before = torch.get_rng_state()
    first, again = (build_model(name, (1, 16, 16), 4, seed=1).state_dict() for _ in range(2))
    other = build_model(name, (1, 16, 16), 4, seed=2).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_shows_every_layer_as_a_module(name):
    network = build_model(name, (3, 32, 32), 5, seed=0).eval()
    traced = torch.fx.symbolic_trace(network)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(traced(images), network(images))
    others = {
        str(node.target) for node in traced.graph.nodes if node.op not in ("call_module", "placeholder", "output")
    }
    assert others <= {"<built-in function add>"}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_can_be_batched_and_differentiated_again(name):
    network = build_model(name, (1, 16, 16), 3, seed=0).eval()
    parameters = dict(network.named_parameters())
    buffers = dict(network.named_buffers())

    def gradient_size(image: torch.Tensor) -> torch.Tensor:
        def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
            scores = torch.func.functional_call(network, {**weights, **buffers}, image[None])
            return F.cross_entropy(scores, torch.tensor([1]))

        return sum(gradient.square().sum() for gradient in torch.func.grad(loss)(parameters).values())

    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    second = torch.func.vmap(torch.func.grad(gradient_size))(images)
    assert second.shape == images.shape
    assert torch.isfinite(second).all()
    assert second.abs().sum() > 0


def test_lenet5_is_the_classic_one():
    # 413,179: the non-zeros counted for the classic LeNet-5 in the sparse Toeplitz form of Key-Net.
    network = build_model("lenet5", (1, 28, 28), 10, seed=0)
    assert toeplitz_entries(network, (1, 28, 28)) == 413_179
    # 61,706 weights: LeNet-5 with the full second convolution, on 28x28 padded or on 32x32.
    assert sum(parameter.numel() for parameter in network.parameters()) == 61_706
    unpadded = build_model("lenet5", (1, 32, 32), 10, seed=0)
    assert unpadded.conv1.padding == (0, 0)
    assert sum(parameter.numel() for parameter in unpadded.parameters()) == 61_706


def test_lenet_zhu_starts_as_in_the_paper():
    network = build_model("lenet-zhu", (3, 32, 32), 10, seed=0)
    assert network.fc.in_features == 768
    values = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    assert values.abs().max() <= 0.5
    assert float(values.std()) == pytest.approx(1 / math.sqrt(12), rel=0.02)
    narrow = build_model("lenet-zhu-default", (3, 32, 32), 10, seed=0)
    assert [name for name, _ in narrow.named_modules()] == [name for name, _ in network.named_modules()]
    assert narrow.fc.weight.abs().max() <= 1 / math.sqrt(768) + 1e-7


def test_resnet18_has_the_size_known_for_small_images():
    # 11,173,962: the usual count of ResNet-18 with a 3x3 stem and ten classes.
    network = build_model("resnet18", (3, 32, 32), 10, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962
    assert network.layer1(network.relu(network.bn1(network.conv1(torch.zeros(1, 3, 32, 32))))).shape[2:] == (32, 32)
    assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize("name", ["lenet5"])
def test_images_too_small_are_one_clear_line(name):
    build_model(name, (1, 12, 12), 2, seed=0)
    with pytest.raises(UsageError, match="11 x 11 pixels are too small for lenet5"):
        build_model(name, (1, 11, 11), 2, seed=0)


def test_unknown_models_and_a_model_of_ones_own():
    with pytest.raises(UsageError, match="did you mean lenet5"):
        build_model("lenet", (1, 28, 28), 10, seed=0)

    @model("own-model-of-the-test")
    def build(image_shape: tuple[int, int, int], class_count: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), class_count))

    first, second = (MODELS.get("own-model-of-the-test")((1, 2, 2), 3, seed=5) for _ in range(2))
    assert torch.equal(first[1].weight, second[1].weight)


@pytest.mark.slow
def test_lenet5_learns_mnist5k_to_95_percent():
    data = load_dataset("mnist5k")
    network = build_model("lenet5", data.image_shape, data.class_count, seed=0)
    mean, deviation = torch.tensor(data.mean)[:, None, None], torch.tensor(data.deviation)[:, None, None]
    images, labels = (data.training.pixels() - mean) / deviation, data.training.labels
    epochs, batch = 12, 32
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for members in torch.randperm(len(labels), generator=generator).split(batch):
            optimiser.zero_grad()
            F.cross_entropy(network(images[members]), labels[members]).backward()
            optimiser.step()
        schedule.step()
    with torch.no_grad():
        predicted = network((data.test.pixels() - mean) / deviation).argmax(dim=1)
    accuracy = float((predicted == data.test.labels).double().mean())
    print(f"accuracy of lenet5 on mnist5k after {epochs} epochs: {accuracy:.4f}")
    assert accuracy >= 0.95
