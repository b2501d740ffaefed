"""Batched per-trial gradients against torch.autograd, one trial at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.engine.gradients import SingleGradient, repeat_for_restarts, select_trials, trial_count
from federation.errors import UsageError

TRIALS, IMAGES, CLASSES = 3, 2, 4


class Residual(nn.Module):
    """Depthwise and pointwise convolutions with batch norm and a skip: what MobileNet blocks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU6(),
            nn.Conv2d(4, 4, 1, bias=False),
            nn.BatchNorm2d(4),
        )

    def forward(self, images: Tensor) -> Tensor:
        return images + self.inner(images)


def sigmoid_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 5, stride=2, padding=2), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten()),
        nn.Linear(12, CLASSES),
    )


def residual_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, stride=2, padding=1), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(4, CLASSES, bias=False)),
    )


def problem(make: Callable[[], nn.Module], seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().eval()
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in name else 0.0))
        images = torch.randn(TRIALS, IMAGES, 2, 8, 8, dtype=torch.double)
        labels = torch.randn(TRIALS, IMAGES, CLASSES, dtype=torch.double).softmax(-1)
    return model, images, labels


def one_at_a_time(model: nn.Module, images: Tensor, labels: Tensor, *, create_graph: bool = False) -> dict[str, Tensor]:
    """The oracle: plain autograd, and the cross-entropy written out."""
    parameters = dict(model.named_parameters())
    gradients = []
    for batch, soft in zip(images, labels, strict=True):
        loss = -(soft * F.log_softmax(model(batch), dim=1)).sum(1).mean()
        gradients.append(torch.autograd.grad(loss, list(parameters.values()), create_graph=create_graph))
    return {name: torch.stack(each) for name, each in zip(parameters, zip(*gradients, strict=True), strict=True)}


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """The oracle's other mode: batch norm in training mode, dropout out."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    return model


@pytest.mark.parametrize("make", [sigmoid_net, residual_net])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_gradients_equal_autograd_one_trial_at_a_time(make: Callable[[], nn.Module], batch_statistics: bool) -> None:
    model, images, labels = problem(make)
    update = SingleGradient(
        model, dict(model.named_parameters()), dict(model.named_buffers()), batch_statistics=batch_statistics
    )
    expected = one_at_a_time(with_batch_statistics(model) if batch_statistics else model, images, labels)
    torch.testing.assert_close(update(images, labels), expected)


@pytest.mark.parametrize("make", [sigmoid_net, residual_net])
def test_derivatives_in_images_and_labels_equal_double_backward(make: Callable[[], nn.Module]) -> None:
    model, images, labels = problem(make)
    update = SingleGradient(model, dict(model.named_parameters()))
    derivatives = []
    for gradients_of in (update, lambda x, y: one_at_a_time(model, x, y, create_graph=True)):
        x, y = images.clone().requires_grad_(), labels.clone().requires_grad_()
        total = torch.stack([gradient.square().sum() for gradient in gradients_of(x, y).values()]).sum()
        derivatives.append(torch.autograd.grad(total, (x, y)))
    torch.testing.assert_close(derivatives[0], derivatives[1])


def test_batch_statistics_differ_from_running_ones() -> None:
    model, images, labels = problem(residual_net)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    running = SingleGradient(model, parameters, buffers)(images, labels)
    batch = SingleGradient(model, parameters, buffers, batch_statistics=True)(images, labels)
    assert not torch.allclose(running["0.weight"], batch["0.weight"])


def test_given_weights_and_buffers_count_not_the_models_own() -> None:
    model, images, labels = problem(residual_net)
    other, _, _ = problem(residual_net, seed=1)
    update = SingleGradient(model, dict(other.named_parameters()), dict(other.named_buffers()))
    torch.testing.assert_close(update(images, labels), one_at_a_time(other, images, labels))


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_the_callers_model_is_left_alone(batch_statistics: bool) -> None:
    model, images, labels = problem(residual_net)
    model.train()
    before = copy.deepcopy(model.state_dict())
    update = SingleGradient(
        model, dict(model.named_parameters()), dict(model.named_buffers()), batch_statistics=batch_statistics
    )
    update(images, labels)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_only_observed_parameters_are_differentiated() -> None:
    model, images, labels = problem(sigmoid_net)
    update = SingleGradient(model, dict(model.named_parameters()), observed=["4.bias"])
    found = update(images, labels)
    assert set(found) == {"4.bias"}
    torch.testing.assert_close(found["4.bias"], one_at_a_time(model, images, labels)["4.bias"])


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    model, _, _ = problem(sigmoid_net)
    parameters = dict(model.named_parameters())
    with pytest.raises(UsageError, match=r"unknown \['extra'\]"):
        SingleGradient(model, parameters | {"extra": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"missing \['4.bias'\]"):
        SingleGradient(model, {name: value for name, value in parameters.items() if name != "4.bias"})
    with pytest.raises(UsageError, match="not parameters"):
        SingleGradient(model, parameters, observed=["5.bias"])


def test_repeating_and_selecting_trials() -> None:
    gradients = {"w": torch.arange(6.0).view(3, 2), "b": torch.arange(3.0)}
    assert repeat_for_restarts(gradients, 2)["b"].tolist() == [0, 0, 1, 1, 2, 2]
    assert select_trials(gradients, torch.tensor([2, 0]))["w"].tolist() == [[4, 5], [0, 1]]
    assert trial_count(gradients) == 3
    for bad in ({}, {"w": torch.zeros(2, 1), "b": torch.zeros(3)}, {"w": torch.tensor(1.0)}):
        with pytest.raises(UsageError, match="leading size"):
            trial_count(bad)
