"""Small networks that several test files key, and weights for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from random_networks import randomised
from torch import Tensor, nn

from benchmark.audit.chosen import spread_weights
from defenses.keynet.channel import ChannelTransform
from defenses.keynet.keys import KeyPolicy, draw_keys
from federation.channels import trace_channels
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.weights import Weights, largest_difference

IMAGE = (2, 9, 8)


def lenet5() -> Network:
    return Network(lambda: build_model("lenet5", (1, 12, 12), 10, seed=0), (1, 12, 12), 10)


def lenet_zhu() -> Network:
    return Network(lambda: build_model("lenet-zhu", (1, 12, 12), 10, seed=0), (1, 12, 12), 10)


class Everything(nn.Module):
    """Batch normalisation, a depthwise convolution on a map of one pixel, maximum pooling, a residual sum, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(3)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        x = self.depthwise(x) + x
        return self.fc((x * x.sigmoid()).flatten(1))


def everything() -> Network:
    return Network(Everything, (2, 8, 9), 5)


NETWORKS: Mapping[str, Callable[[], Network]] = {
    "lenet5": lenet5, "lenet-zhu": lenet_zhu, "everything": everything,
}  # fmt: skip


def random_weights(network: Network, seed: int = 0) -> Weights:
    """Values of either sign with magnitudes up to 1."""
    generator = torch.Generator().manual_seed(seed)
    return spread_weights(network.layout, generator, smallest=0.0, largest=1.0, counter=seed)


def assert_recovers(recovered: Weights, weights: Weights, bound: float) -> None:
    """The same tensors, no value off by more than `bound`."""
    assert recovered.keys() == weights.keys()
    assert all(recovered[name].dtype == tensor.dtype for name, tensor in weights.items())
    assert all(recovered[name].shape == tensor.shape for name, tensor in weights.items())
    assert largest_difference(recovered, weights) <= bound


def keyed_example(gain_range: float) -> tuple[nn.Module, ChannelTransform]:
    """A network on images of shape `IMAGE` with a batch norm and a flatten, and its channel transform."""
    network = nn.Sequential(
        nn.Conv2d(2, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 60, 3), nn.Flatten(), nn.Linear(1200, 9)
    )
    channel_map = trace_channels(network, IMAGE)
    keys = draw_keys(channel_map, SecretRoot(b"example!" * 4), KeyPolicy(gain_range))
    return randomised(network, 0), ChannelTransform(keys, channel_map)
