"""Networks read as chains of layers: what is taken from the graph, and what is refused by its name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attacks.inversion.chain import Pool, invertible_chain
from federation.errors import UsageError
from federation.models import build_model
from federation.network import Network

IMAGE = (2, 8, 6)


def network(build: Callable[[], nn.Module], image: tuple[int, int, int] = IMAGE) -> Network:
    return Network(build, image, 4)


def test_layers_and_what_follows_them() -> None:
    chain = invertible_chain(Network(lambda: build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28), 10))
    assert [layer.name for layer in chain.layers] == ["conv1", "conv2", "fc1"]
    assert [layer.outputs for layer in chain.layers] == [(6, 28, 28), (16, 10, 10), (120, 1, 1)]
    assert [[isinstance(done, Pool) for done in layer.after] for layer in chain.layers] == [[False, True]] * 2 + [[]]
    assert chain.layers[0].padding == (2, 2)
    assert chain.layers[-1].inputs == (400, 1, 1)


class Functional(nn.Module):
    """Names that mean nothing, functions and methods in place of modules, a view that asks for the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.relu = nn.Linear(3 * 2 * 2, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.nn.functional.avg_pool2d(self.pool(images).tanh(), 2)
        return self.relu(maps.view(maps.size(0), -1))


def test_nothing_hangs_on_names() -> None:
    chain = invertible_chain(network(Functional))
    assert [(layer.name, layer.linear) for layer in chain.layers] == [("pool", False), ("relu", True)]
    convolution = chain.layers[0]
    assert (convolution.kernel, convolution.stride, convolution.dilation) == ((3, 2), (2, 1), (1, 2))
    maps = torch.rand(1, *convolution.outputs)
    for done in convolution.after:
        maps = done.function(maps)
    assert maps.shape == (1, 3, 2, 2)


def test_it_stops_at_the_first_layer_that_tells_its_own_input() -> None:
    def build() -> nn.Module:
        layers = OrderedDict(
            flat=nn.Flatten(), free=nn.Linear(96, 8, bias=False), one=nn.Tanh(), biased=nn.Linear(8, 6)
        )
        return nn.Sequential(layers | {"norm": nn.BatchNorm1d(6), "last": nn.Linear(6, 4)})

    assert [layer.name for layer in invertible_chain(network(build)).layers] == ["free", "biased"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(96, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).sigmoid()
        return self.fc((maps + self.conv(maps)).flatten(1))


class SideBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.other = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(96, 4), nn.Linear(96, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).flatten(1)
        return self.fc(maps) + self.other(maps)


def layers(*middle: nn.Module, inputs: int, bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *middle, nn.Flatten(), nn.Linear(inputs, 4, bias=bias))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "maximum pooling": (layers(nn.Sigmoid(), nn.MaxPool2d(2), inputs=48), "MaxPool2d.*does not tell where"),
    "batch normalisation": (layers(nn.BatchNorm2d(4), nn.ReLU(), inputs=192), "BatchNorm2d.*own batch"),
    "dropout": (layers(nn.Dropout(), inputs=192), "Dropout.*mask"),
    "an activation without inverse": (layers(nn.GELU(), inputs=192), "GELU.*cannot be undone"),
    "no bias": (layers(nn.Sigmoid(), inputs=192, bias=False), "no fully connected layer with a bias"),
    "groups": (layers(nn.Sigmoid(), nn.Conv2d(4, 4, 3, groups=2), inputs=96), "without groups"),
    "other padding": (
        layers(nn.Sigmoid(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), inputs=192),
        "padded with zeros",
    ),
    "a layer called twice": (Residual, "'conv'.*called more than once"),
    "a branch": (SideBranch, "read more than once"),
    "pooling of the image": (
        lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)),
        "AvgPool2d.*changes the image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_inverted_is_refused_by_name(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        invertible_chain(network(build))
