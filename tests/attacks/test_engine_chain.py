"""The closed form against automatic differentiation in double precision: values, and slopes in images and labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.engine.chain import ChainGradient, chain_of, single_gradient
from attacks.engine.gradients import SingleGradient
from attacks.engine.objectives import cosine_distance, squared_distance
from federation.errors import UsageError
from federation.models import build_model
from federation.models.base import seeded_initialisation

CLASSES = 4


def uneven() -> nn.Module:
    """Kernels, strides and paddings that differ by direction, rows that no kernel reads, no biases, pools that overlap."""
    return nn.Sequential(
        *(nn.Conv2d(2, 9, (3, 2), stride=(2, 3), padding=(1, 0), bias=False), nn.Tanh(), nn.Dropout()),
        *(nn.AvgPool2d(2, stride=1, padding=1), nn.Conv2d(9, 3, (2, 3), stride=(3, 2)), nn.Sigmoid()),
        *(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES, bias=False)),
    )


def registered(name: str, shape: tuple[int, int, int]) -> nn.Module:
    return build_model(name, shape, CLASSES, seed=0)


NETWORKS = {
    "uneven": (uneven, (2, 9, 8)),
    "lenet-zhu": (lambda: registered("lenet-zhu", (3, 9, 8)), (3, 9, 8)),
    "lenet5": (lambda: registered("lenet5", (1, 13, 14)), (1, 13, 14)),
    "logistic": (lambda: registered("logistic", (2, 3, 4)), (2, 3, 4)),
}


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("distance", [cosine_distance, squared_distance])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_slopes_are_those_of_autograd(name: str, images: int, distance: Any) -> None:
    make, shape = NETWORKS[name]
    with seeded_initialisation(3):
        model = make().double()
    parameters = dict(model.named_parameters())
    closed = single_gradient(model, parameters)
    assert isinstance(closed, ChainGradient)
    # labels that do not add up to one, as no softmax makes them: the slope in them is tested in every direction
    point, private = drawn((2, images, *shape), 1), drawn((2, images, *shape), 2)
    labels = drawn((2, images, CLASSES), 4).abs()
    generic = SingleGradient(model, parameters)
    target = {name: value.detach() for name, value in generic(private, labels).items()}

    def evaluated(update: SingleGradient) -> tuple[Tensor, ...]:
        variables = point.clone().requires_grad_(), labels.clone().requires_grad_()
        gradients = update(*variables)
        assert list(gradients) == list(parameters)
        slopes = torch.autograd.grad(distance(gradients, target).sum(), variables)
        return *gradients.values(), *slopes

    for ours, autograd in zip(evaluated(closed), evaluated(generic), strict=True):
        torch.testing.assert_close(ours, autograd, rtol=1e-9, atol=1e-12)


def test_it_is_the_gradient_that_a_client_sends() -> None:
    model, inputs, labels = registered("lenet5", (1, 28, 28)), torch.rand(2, 1, 28, 28), torch.tensor([3, 1])
    F.cross_entropy(model(inputs), labels).backward()
    found = single_gradient(model, dict(model.named_parameters()))(
        inputs[None], F.one_hot(labels, CLASSES).float()[None]
    )
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name][0], parameter.grad, atol=1e-6, rtol=1e-4)


def test_only_what_is_observed_is_returned() -> None:
    model = registered("lenet-zhu", (1, 8, 8))
    parameters = dict(model.named_parameters())
    found = single_gradient(model, parameters, observed=["conv2.weight", "fc.bias"])(
        torch.rand(2, 1, 1, 8, 8), torch.rand(2, 1, CLASSES)
    )
    assert set(found) == {"conv2.weight", "fc.bias"}


def test_without_a_need_for_slopes_none_are_kept() -> None:
    model = registered("logistic", (1, 4, 4))
    found = single_gradient(model, dict(model.named_parameters()))(torch.rand(1, 1, 1, 4, 4), torch.rand(1, 1, CLASSES))
    assert not any(value.requires_grad for value in found.values())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flatten, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(x + self.conv(x)))


class Skipping(nn.Module):
    """Reads the image twice, one layer after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.flatten, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.one(x)
        return self.fc(self.flatten(x))


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


def chained(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


SHARED = nn.Linear(4, 4)
OTHERS = {
    "residual": Residual(),
    "an image read twice": Skipping(),
    "control flow": Undecided(),
    "batch norm": chained(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, CLASSES)),
    "groups": chained(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(8, CLASSES)),
    "dilation": chained(nn.Conv2d(1, 2, 2, dilation=2), nn.Flatten(), nn.Linear(8, CLASSES)),
    "reflected padding": chained(
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(16, CLASSES)
    ),
    "padding in words": chained(nn.Conv2d(1, 1, 3, padding="same"), nn.Flatten(), nn.Linear(16, CLASSES)),
    "shared weights": chained(nn.Flatten(), nn.Linear(16, 4), SHARED, nn.ReLU(), SHARED),
    "max pooling": chained(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, CLASSES)),
    "an activation at the end": chained(nn.Flatten(), nn.Linear(16, CLASSES), nn.ReLU()),
    "partial flattening": chained(nn.Flatten(2), nn.Linear(16, CLASSES), nn.Flatten()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_such_chain_is_left_to_autograd(name: str) -> None:
    model = OTHERS[name]
    parameters = dict(model.named_parameters())
    assert chain_of(model, parameters) is None
    assert type(single_gradient(model, parameters)) is SingleGradient


def test_a_layer_of_ones_own_is_no_layer_of_torch() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = chained(nn.Flatten(), Doubled(16, CLASSES))
    assert chain_of(model, dict(model.named_parameters())) is None


def test_weights_that_do_not_fit_are_refused_as_ever() -> None:
    model = registered("logistic", (1, 2, 2))
    with pytest.raises(UsageError, match="do not fit the model"):
        single_gradient(model, {"linear.weight": torch.zeros(CLASSES, 4)})
