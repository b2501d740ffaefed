"""Observations of hand-made updates: what attacks are handed, without any federation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from federation.messages import Transcript
from federation.models.base import seeded_initialisation
from federation.network import Network
from federation.threat import Observation, PlainModel, TrainingFacts
from federation.weights import Weights, weights_of

MEAN, DEVIATION = (0.3,), (0.4,)
SIDE, CLASSES = 6, 4
SENDER = "client-0"


@dataclass(frozen=True)
class Client:
    """A client whose local training is written out here once more: SGD on the mean cross-entropy, step by step."""

    build: Callable[[], nn.Module]
    rate: float = 0.05
    image_shape: tuple[int, int, int] = (1, SIDE, SIDE)
    network: Network = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", Network(self.build, self.image_shape, CLASSES))

    def start(self, seed: int = 0) -> Weights:
        """Weights of the right shapes, drawn from a seed."""
        with seeded_initialisation(seed):
            return weights_of(self.build())

    def trained(self, before: Weights, batches: Sequence[tuple[Tensor, Tensor]]) -> Weights:
        """The weights after one step on each batch of (pixels in [0, 1], labels)."""
        model = self.build()
        model.load_state_dict(before)
        model.train()
        for pixels, labels in batches:
            model.zero_grad()
            F.cross_entropy(model(normalised(pixels)), labels).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter -= self.rate * parameter.grad
        return weights_of(model)

    def gradient(self, weights: Weights, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The gradient at some weights."""
        model = self.build()
        model.load_state_dict(weights)
        model.train()
        F.cross_entropy(model(normalised(pixels)), labels).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    def observed(self, before: Weights, after: Weights, *, images: int = 1, **changes: Any) -> Observation:
        """What an adversary observes of one such update."""
        facts = {"batch_size": images, "epochs": 1, "steps": 1, "sample_counts": {SENDER: images}}
        for name in list(changes):
            if name in facts:
                facts[name] = changes.pop(name)
        return Observation(
            round=0,
            transcript=Transcript(),
            held={},
            view=PlainModel(before, {SENDER: after}),
            scheme={},
            facts=TrainingFacts(self.rate, **facts),
            network=self.network,
            mean=MEAN,
            deviation=DEVIATION,
            **changes,
        )


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - MEAN[0]) / DEVIATION[0]


def logistic() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


def sigmoid_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * SIDE * SIDE, CLASSES))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES)
    )


@pytest.fixture(scope="session")
def logistic_client() -> Client:
    return Client(logistic)


@pytest.fixture(scope="session")
def sigmoid_client() -> Client:
    return Client(sigmoid_net)


@pytest.fixture(scope="session")
def batch_norm_client() -> Client:
    return Client(with_batch_norm)


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """Smooth pictures in [0, 1], float [8, 1, SIDE, SIDE]."""
    noise = torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, (SIDE, SIDE), mode="bilinear", align_corners=True)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
