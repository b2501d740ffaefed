"""Updates of one image and one step, keyed by a real Key-Net, and the keys that it drew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.adaptive.rescaling import KeyedUpdate
from benchmark.audit.chosen import CLIENTS, ChosenFederation
from defenses.base import Defense
from defenses.keynet.defense import KeyNet
from defenses.keynet.keys import ChannelKeys, identity_keys
from defenses.keyrings import keyring_from_bytes
from defenses.plain import Plain
from defenses.stack import Stack
from federation.datasets import load_dataset
from federation.messages import Transcript
from federation.models import build_model
from federation.models.base import seeded_initialisation
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import Observation, PlainModel, Position, TrainingFacts
from federation.training import cross_entropy_gradients
from federation.weights import Weights, weights_of

ROOT = SecretRoot(b"keys of the tests of channel keys" * 2)
MEAN, DEVIATION = 0.13, 0.31
RATE = 0.1


class Residual(nn.Module):
    """A strided convolution, one residual block, pooling and a linear layer; batch norm where asked for."""

    def __init__(self, normalised: bool, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if normalised else nn.Identity()

        self.stem, self.norm0, self.act0 = nn.Conv2d(1, 8, 3, stride=2, padding=1), norm(8), activation()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(8, 12, 3, padding=1), norm(12), activation()
        self.conv2, self.norm2, self.act2 = nn.Conv2d(12, 8, 3, padding=1), norm(8), activation()
        self.pool, self.flatten, self.scores = nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 7 * 7, 10)

    def forward(self, images: Tensor) -> Tensor:
        begun = self.act0(self.norm0(self.stem(images)))
        inner = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(begun)))))
        return self.scores(self.flatten(self.pool(self.act2(inner + begun))))


def depthwise() -> nn.Module:
    """A depthwise and a grouped convolution, and max pooling."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()),
        *(nn.MaxPool2d(4), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 5 * 5, 10)),
    )


class Concatenated(nn.Module):
    """Features beside the image and new ones, all of them read by a depthwise convolution, and once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.act = nn.AvgPool2d(2), nn.ReLU()
        self.stem, self.grown = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.depthwise, self.mixed = nn.Conv2d(11, 11, 3, padding=1, groups=11), nn.Conv2d(11, 11, 1)
        self.scores = nn.Linear(17 * 7 * 7, 10)

    def forward(self, images: Tensor) -> Tensor:
        begun = self.act(self.stem(images))
        beside = torch.cat([self.pool(images), begun, self.grown(begun)], 1)
        deep = self.act(self.depthwise(self.act(beside)))
        deep = self.act(self.mixed(deep) + deep)
        return self.scores(self.pool(torch.cat([deep, begun], 1)).flatten(1))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lambda: build_model("lenet5", (1, 28, 28), 10, seed=0),
    "lenet-zhu": lambda: build_model("lenet-zhu", (1, 28, 28), 10, seed=0),
    "residual": lambda: Residual(False),
    "residual-norm": lambda: Residual(True),
    "residual-tanh": lambda: Residual(False, nn.Tanh),
    "depthwise": depthwise,
    "concatenated": Concatenated,
}


def network(name: str) -> Network:
    """One of the networks, with the same weights at every call."""

    def build() -> nn.Module:
        with seeded_initialisation(0):
            return BUILDERS[name]()

    return Network(build, (1, 28, 28), 10)


def keynet(codec: Any = None, **options: Any) -> Stack:
    """Key-Net and what follows it."""
    return Stack("keyed", [KeyNet(**options), codec or Plain()])


def step(network: Network, weights: Weights, images: Tensor, labels: Tensor, rate: float = RATE) -> Weights:
    """One step of SGD, as a client takes it."""
    model = network.build()
    model.load_state_dict(weights)
    model.train()
    gradients = cross_entropy_gradients(model, images, labels)
    return {
        name: tensor - rate * gradients[name] if name in gradients else tensor
        for name, tensor in weights_of(model).items()
    }


@dataclass(frozen=True)
class Images:
    """Digits: pixels in [0, 1], as networks get them, and labels."""

    pixels: Tensor
    labels: Tensor

    @property
    def normalised(self) -> Tensor:
        return (self.pixels - MEAN) / DEVIATION


def mnist_digits() -> Images:
    """The first hundred victims of the embedded digits."""
    victims = load_dataset("mnist5k").victims
    return Images(victims.pixels()[:100], victims.labels[:100])


@dataclass(frozen=True)
class Keyed:
    """Observations of updates under keys, and the keys themselves.

    Attributes:
        observations: one a round: the first client's step on image 2 r, the second's on image 2 r + 1.
        keys: those of the first client in the first round.
        start: the weights that the first round begins with.
    """

    observations: list[Observation]
    keys: ChannelKeys
    start: Weights


def updates_of(observations: Sequence[Observation]) -> list[KeyedUpdate]:
    """Every client's update in every round."""
    found = []
    for observation in observations:
        assert isinstance(observation.view, PlainModel)
        found += [KeyedUpdate(observation.view.before, after) for after in observation.view.after.values()]
    return found


def play_rounds(
    digits: Images,
    defense: Defense,
    name: str = "lenet5",
    rounds: int = 1,
    *,
    start: Weights | None = None,
    position: Position = Position.SERVER,
    on: bool = False,
) -> Keyed:
    """Rounds of a defense, each from the same model unless `on` is set, as a position observes them."""
    net = network(name)
    begin = start or weights_of(net.build())
    federation = ChosenFederation(defense, net, ROOT, counts=dict.fromkeys(CLIENTS, 1))
    keys, observations = None, []
    for number in range(rounds):
        opening = federation.start(begin) if number == 0 or not on else Transcript()
        keys = keys or _keys(federation, net)
        record = federation.play(number if on else 0, _steps(net, digits, number))
        observations.append(
            Observation(
                round=number if on else 0,
                transcript=Transcript([*opening, *record.transcript]),
                held={},
                view=federation.view(record, position),
                scheme=defense.scheme(),
                facts=TrainingFacts(RATE, batch_size=1, epochs=1, steps=1, sample_counts=federation.counts),
                network=net,
                mean=(MEAN,),
                deviation=(DEVIATION,),
            )
        )
    assert keys is not None
    return Keyed(observations, keys, begin)


def _steps(net: Network, digits: Images, number: int) -> dict[str, Callable[[Weights], Weights]]:
    def of(index: int) -> Callable[[Weights], Weights]:
        images, labels = digits.normalised[index : index + 1], digits.labels[index : index + 1]
        return lambda weights: step(net, weights, images, labels)

    return {client: of(2 * number + place) for place, client in enumerate(CLIENTS)}


def _keys(federation: ChosenFederation, net: Network) -> ChannelKeys:
    stack = federation.defense
    assert isinstance(stack, Stack)
    (keyed,) = stack.transforms
    assert isinstance(keyed, KeyNet)
    if keyed.publish_key:
        return identity_keys(net.channels)
    keyring = keyring_from_bytes(federation.parties.held(CLIENTS[0]), stack.stages, "a client's state")
    return ChannelKeys.from_bytes(keyring[keyed.name].secret, net.channels, keyed.policy)


def trained(net: Network, steps: int) -> Weights:
    """The network after so many steps on batches of 16."""
    data = load_dataset("mnist5k").training
    images, labels = (data.pixels() - MEAN) / DEVIATION, data.labels
    generator, weights = torch.Generator().manual_seed(1), weights_of(net.build())
    for _ in range(steps):
        batch = torch.randint(0, len(labels), (16,), generator=generator)
        weights = step(net, weights, images[batch], labels[batch])
    return weights
