"""MobileNetV2 against torchvision's own network: sizes, outputs, channel spaces, gradients, training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from federation.channel_map import ChannelMap
from federation.models import build_model
from federation.network import Network
from federation.tasks import find_task
from federation.training import LocalTraining, cross_entropy_gradients, train_locally
from federation.vision import models
from federation.weights import Weights, weights_of

IMAGE = (3, 32, 32)
WIDTHS = {"mobilenetv2-imagenet-strides": 1.0, "mobilenetv2": 1.0, "mobilenetv2-quarter": 0.25}
FEATURE_SIZE = {"mobilenetv2-imagenet-strides": 1, "mobilenetv2": 4, "mobilenetv2-quarter": 4}


def torchvisions(name: str) -> nn.Module:
    """torchvision's network of the same width, without dropout, with CIFAR strides set by hand where `name` has them."""
    network = models.mobilenet_v2(weights=None, num_classes=10, width_mult=WIDTHS[name], dropout=0.0)
    if name != "mobilenetv2-imagenet-strides":
        network.features[0][0].stride = (1, 1)
        block = network.features[2]
        block.conv[1][0].stride = (1, 1)
        # The paper: a residual connection where the stride is 1 and the numbers of channels are equal.
        block.use_res_connect = block.conv[0][0].in_channels == block.out_channels
    return network


def with_the_weights_of(name: str, reference: nn.Module) -> nn.Module:
    """Our network with the reference's weights, tensor by tensor in the order of the state dicts."""
    network = build_model(name, IMAGE, 10, seed=1)
    values = reference.state_dict().values()
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return network


def random_images(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize(("image_shape", "classes"), [((1, 28, 28), 10), (IMAGE, 8), ((2, 37, 45), 3)])
def test_any_images_and_class_count(name: str, image_shape: tuple[int, int, int], classes: int) -> None:
    network = build_model(name, image_shape, classes, seed=0).eval()
    assert network(torch.zeros(2, *image_shape)).shape == (2, classes)


@pytest.mark.parametrize("name", WIDTHS)
def test_the_tensors_are_torchvisions(name: str) -> None:
    ours, theirs = build_model(name, IMAGE, 10, seed=0), torchvisions(name)
    shapes = [[tensor.shape for tensor in network.state_dict().values()] for network in (ours, theirs)]
    assert shapes[0] == shapes[1]
    parameters = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    assert parameters[0] == parameters[1]


def test_full_width_has_the_published_size() -> None:
    # 3,504,872: torchvision's figure for 1000 classes, of which the linear layer from 1280 features has 1,281,000.
    expected = 3_504_872 - 1281 * 1000 + 1281 * 10
    for name in ("mobilenetv2", "mobilenetv2-imagenet-strides"):
        assert sum(parameter.numel() for parameter in build_model(name, IMAGE, 10, seed=0).parameters()) == expected


@pytest.mark.parametrize("name", WIDTHS)
def test_outputs_are_torchvisions(name: str) -> None:
    images = random_images(4, *IMAGE)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        reference = torchvisions(name).train()
        ours = with_the_weights_of(name, reference).train()
        assert torch.allclose(ours(images), reference(images), rtol=0, atol=1e-5)
        for _ in range(5):  # running statistics that are neither zero nor one
            reference(random_images(4, *IMAGE) * 2 + 1)
        ours = with_the_weights_of(name, reference).eval()
        expected = reference.eval()(images)
        assert expected.abs().max() > 1e-2
        assert torch.allclose(ours(images), expected, rtol=0, atol=1e-5)
    assert ours.get_submodule("features")(images).shape[2:] == (FEATURE_SIZE[name],) * 2


@pytest.mark.parametrize("name", WIDTHS)
def test_the_seed_decides_and_the_global_state_stays(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (build_model(name, IMAGE, 4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.0.0.weight"], other["features.0.0.weight"])


@pytest.mark.parametrize("name", WIDTHS)
def test_every_layer_is_a_module_of_the_graph_and_nothing_is_random_or_in_place(name: str) -> None:
    network = build_model(name, IMAGE, 5, seed=0).eval()
    graph = torch.fx.symbolic_trace(network).graph
    others = {str(node.target) for node in graph.nodes if node.op not in ("call_module", "placeholder", "output")}
    assert others == {"<built-in function add>"}
    assert not any(getattr(module, "inplace", False) for module in network.modules())
    assert not any(isinstance(module, nn.Dropout) for module in network.modules())


def channels_of(build: Callable[[], nn.Module]) -> ChannelMap:
    return Network(build, IMAGE, 10).channels


@pytest.mark.parametrize("name", WIDTHS)
def test_channel_spaces_are_found_and_depthwise_layers_share_a_key(name: str) -> None:
    network = build_model(name, IMAGE, 10, seed=0)
    channels = channels_of(lambda: network)
    assert channels.axes.keys() == network.state_dict().keys()
    depthwise = [
        layer_name
        for layer_name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
    ]
    assert len(depthwise) == 17  # Table 2 of the paper: one in each block
    for layer_name in depthwise:
        axes = channels.axes[f"{layer_name}.weight"]
        reads, writes = (channels.spaces[space] for space in (*axes.in_spaces, *axes.out_spaces))
        assert reads.blocks == writes.blocks == reads.size == writes.size
        assert reads.block_family is not None
        assert reads.block_family == writes.block_family
    # torchvision's network, whose layers have other names, has the same spaces in the same order.
    theirs = channels_of(lambda: torchvisions(name))
    assert theirs.spaces == channels.spaces
    assert list(theirs.axes.values()) == list(channels.axes.values())


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv2-imagenet-strides"])
def test_the_residual_streams_are_those_of_the_paper(name: str) -> None:
    channels = channels_of(lambda: build_model(name, IMAGE, 10, seed=0))
    free = [space.size for space in channels.spaces if space.role == "hidden" and space.blocks == 1]
    assert free == [16, 24, 32, 64, 96, 160, 320, 1280]


def test_the_first_two_stages_at_quarter_width_are_one_residual_stream() -> None:
    channels = channels_of(lambda: build_model("mobilenetv2-quarter", IMAGE, 10, seed=0))
    stem = channels.axes["features.0.0.weight"].out_spaces
    assert all(
        channels.axes[f"features.{block}.conv.{place}.weight"].out_spaces == stem
        for block, place in ((1, 1), (2, 2), (3, 2))
    )
    assert channels.axes["features.4.conv.2.weight"].out_spaces != stem


def gradient_size(network: nn.Module, image: Tensor) -> Tensor:
    """The squared norm of the loss's gradient on one image, by torch.func."""
    buffers = dict(network.named_buffers())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        scores = torch.func.functional_call(network, {**weights, **buffers}, image[None])
        return F.cross_entropy(scores, torch.tensor([1]))

    gradients = torch.func.grad(loss)(dict(network.named_parameters()))
    return torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()


def derivative_by_autograd(network: nn.Module, image: Tensor) -> Tensor:
    """The derivative of the same number by the image, by two calls of autograd."""
    image = image.clone().requires_grad_()
    loss = F.cross_entropy(network(image[None]), torch.tensor([1]))
    gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    size = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    return torch.autograd.grad(size, image)[0]


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv2-quarter",
        pytest.param("mobilenetv2", marks=pytest.mark.slow),
        pytest.param("mobilenetv2-imagenet-strides", marks=pytest.mark.slow),
    ],
)
def test_gradients_can_be_batched_and_differentiated_again(name: str) -> None:
    network = build_model(name, (1, 8, 8), 3, seed=0).double().eval()
    images = random_images(2, 1, 8, 8).double()
    second = torch.func.vmap(torch.func.grad(lambda image: gradient_size(network, image)))(images)
    expected = torch.stack([derivative_by_autograd(network, image) for image in images])
    largest = expected.abs().max()
    assert largest > 0
    assert torch.allclose(second, expected, rtol=1e-6, atol=float(largest) * 1e-9)


class NoDefense:
    """Local steps without a defense."""

    def transform_images(self, images: Tensor) -> Tensor:
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return cross_entropy_gradients(model, images, labels)


def one_step(name: str, seed: int) -> tuple[Weights, Weights]:
    """The weights before and after one step of a client on random images, all drawn from `seed`."""
    network = build_model(name, IMAGE, 10, seed=seed)
    start = weights_of(network)
    trained = train_locally(
        network,
        start,
        random_images(6, *IMAGE),
        torch.arange(6),
        LocalTraining(batch_size=4, learning_rate=0.1, steps=1),
        hooks=NoDefense(),
        generator=torch.Generator().manual_seed(seed),
        where="client-0, round 0",
    )
    return start, trained


@pytest.mark.parametrize("name", WIDTHS)
def test_a_training_step_follows_from_the_seed(name: str) -> None:
    torch.manual_seed(1)
    start, trained = one_step(name, seed=4)
    torch.manual_seed(2)  # the global generator has no part in training
    _, again = one_step(name, seed=4)
    _, other = one_step(name, seed=5)
    assert all(torch.equal(trained[key], again[key]) for key in trained)
    assert not torch.equal(trained["fc.weight"], other["fc.weight"])
    unchanged = [key for key in start if torch.equal(start[key], trained[key])]
    assert unchanged == []


@pytest.mark.parametrize("name", WIDTHS)
def test_fresh_networks_see_images_by_batch_statistics_only(name: str) -> None:
    network, images = build_model(name, IMAGE, 10, seed=0), random_images(4, *IMAGE)
    assert network.eval()(images).abs().max() < 1e-5
    assert network.train()(images).std(dim=0).max() > 1e-2


def test_a_batch_of_one_image_trains_with_cifar_strides_only() -> None:
    image = random_images(1, *IMAGE)
    assert build_model("mobilenetv2-quarter", IMAGE, 10, seed=0).train()(image).shape == (1, 10)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        build_model("mobilenetv2-imagenet-strides", IMAGE, 10, seed=0).train()(image)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [*(("cifar10", name) for name in WIDTHS), ("photos32", "mobilenetv2-quarter")],
)
def test_tasks_say_which_strides_and_which_width(dataset: str, name: str) -> None:
    task = find_task(f"{dataset}-{name}")
    assert (task.dataset, task.model) == (dataset, name)
    assert ("ImageNet's strides" in task.description) == ("imagenet-strides" in name)
    assert ("quarter of its width" in task.description) == ("quarter" in name)


def test_a_task_builds_its_network() -> None:
    task = find_task("photos32-mobilenetv2-quarter")
    dataset = task.load_data()
    network = task.build_model(dataset, 3).eval()
    assert network(dataset.victims.pixels()[:2]).shape == (2, dataset.class_count)
