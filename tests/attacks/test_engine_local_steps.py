"""Unrolled local steps against the clients' own training, and their derivatives against autograd."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.engine.gradients import SingleGradient
from attacks.engine.local_steps import LaterEpochs, LocalSteps, simulated_batches
from federation.errors import UsageError
from federation.models.base import seeded_initialisation
from federation.training import LocalTraining, train_locally
from federation.weights import weights_of

CLASSES, RATE = 4, 0.3


class NoDefense:
    def transform_images(self, images: Tensor) -> Tensor:
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        parameters = dict(model.named_parameters())
        # the clients' own reckons the loss in single precision, whatever the model's
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True))


def in_order(count: int, **_: Any) -> Tensor:
    return torch.arange(count)


def sigmoid_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
    )


def batch_norm_net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, CLASSES)),
    )


def problem(make: Any, images: int, dtype: torch.dtype = torch.double) -> tuple[nn.Module, Tensor, Tensor]:
    with seeded_initialisation(0):
        model = make().to(dtype)
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(images, 1, 6, 6, generator=generator, dtype=torch.double).to(dtype)
    return model, pictures, torch.randint(CLASSES, (images,), generator=generator)


def unrolled(model: nn.Module, images: int, training: LocalTraining, later: LaterEpochs = "same order") -> LocalSteps:
    parameters = dict(model.named_parameters())
    step = SingleGradient(model, parameters, dict(model.named_buffers()), batch_statistics=True)
    batches = simulated_batches(images, training.batch_size, training.step_count(images), later)
    return LocalSteps(step, batches, training.learning_rate)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-12), (torch.float, 1e-5)], ids=["double", "single"])
@pytest.mark.parametrize("make", [sigmoid_net, batch_norm_net])
@pytest.mark.parametrize(
    ("images", "training"),
    [
        (5, LocalTraining(2, RATE, epochs=3)),
        (4, LocalTraining(4, RATE, epochs=4)),
        (6, LocalTraining(2, RATE, epochs=None, steps=5)),
        (3, LocalTraining(8, RATE, epochs=2)),
        (1, LocalTraining(1, RATE, epochs=3)),
    ],
    ids=["partial last batch", "full batches", "an epoch cut short", "a batch larger than the data", "one image"],
)
def test_it_is_the_clients_own_training_in_the_same_order(
    make: Any, images: int, training: LocalTraining, dtype: torch.dtype, tolerance: float, monkeypatch: Any
) -> None:
    model, pictures, labels = problem(make, images, dtype)
    simulation = unrolled(model, images, training)
    found = simulation(pictures[None], F.one_hot(labels, CLASSES).to(dtype)[None])
    start = weights_of(model)
    monkeypatch.setattr(torch, "randperm", in_order)
    after = train_locally(
        model, start, pictures, labels, training, hooks=NoDefense(), generator=torch.Generator(), where="here"
    )
    scale = training.learning_rate * simulation.steps
    assert simulation.steps == training.step_count(images)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor[0], (start[name] - after[name]) / scale, atol=tolerance, rtol=tolerance)


def test_derivatives_in_images_and_labels_equal_autograd_through_the_steps_written_out() -> None:
    model, pictures, labels = problem(sigmoid_net, 5)
    simulation = unrolled(model, 5, LocalTraining(2, RATE, epochs=2))
    soft = F.one_hot(labels, CLASSES).double() * 0.7 + 0.3 / CLASSES

    def written_out(images: Tensor, soft: Tensor) -> list[Tensor]:
        weights = [parameter.detach().requires_grad_() for parameter in model.parameters()]
        start = weights
        for rows in ([0, 1], [2, 3], [4]) * 2:
            convolution, bias, first, first_bias, last, last_bias = weights
            features = torch.sigmoid(F.conv2d(images[rows], convolution, bias)).flatten(1)
            logits = torch.tanh(features @ first.T + first_bias) @ last.T + last_bias
            loss = -(soft[rows] * logits.log_softmax(1)).sum(1).mean()
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            weights = [weight - RATE * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        return [(before - after) / (RATE * 6) for before, after in zip(start, weights, strict=True)]

    derivatives = []
    for update_of in (lambda x, y: list(simulation(x[None], y[None]).values()), written_out):
        x, y = pictures.clone().requires_grad_(), soft.clone().requires_grad_()
        total = torch.stack([tensor.square().sum() for tensor in update_of(x, y)]).sum()
        derivatives.append(torch.autograd.grad(total, (x, y)))
    torch.testing.assert_close(derivatives[0], derivatives[1])


def test_trials_do_not_mix() -> None:
    model, pictures, labels = problem(sigmoid_net, 6)
    simulation = unrolled(model, 3, LocalTraining(1, RATE, epochs=2))
    images, soft = pictures.view(2, 3, 1, 6, 6), F.one_hot(labels, CLASSES).double().view(2, 3, -1)
    together = simulation(images, soft)
    for trial in range(2):
        alone = simulation(images[trial : trial + 1], soft[trial : trial + 1])
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name][trial], tensor[0])


def test_all_images_stand_for_the_mean_over_what_later_steps_may_read() -> None:
    """To first order in the rate: the mean over all that three steps of one image each may read of three images."""
    model, pictures, labels = problem(sigmoid_net, 3)
    soft = F.one_hot(labels, CLASSES).double()[None]
    rate = 1e-4
    step = SingleGradient(model, dict(model.named_parameters()))
    first = [slice(0, 1), slice(1, 2), slice(2, 3)]
    every = [
        LocalSteps(step, [*first, *read], rate)(pictures[None], soft) for read in itertools.product(first, repeat=3)
    ]
    stand_in = LocalSteps(step, simulated_batches(3, 1, 6, "all images"), rate)(pictures[None], soft)
    same = LocalSteps(step, simulated_batches(3, 1, 6, "same order"), rate)(pictures[None], soft)
    for name, tensor in stand_in.items():
        mean = torch.stack([update[name] for update in every]).mean(0)
        assert (tensor - mean).norm() < 0.01 * (same[name] - mean).norm()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.sampled_from(["same order", "all images"]))
@settings(deadline=None)
def test_batches_read_each_image_once_an_epoch(images: int, batch: int, steps: int, later: LaterEpochs) -> None:
    batches = simulated_batches(images, batch, steps, later)
    assert len(batches) == steps
    read = [list(range(images))[each] for each in batches]
    first = read[: -(-images // batch)]
    assert list(itertools.chain.from_iterable(first)) == list(range(min(images, steps * batch)))
    assert all(len(each) == batch for each in first[:-1])
    for number, each in enumerate(read[len(first) :]):
        assert each == (first[number % len(first)] if later == "same order" else list(range(images)))


def test_nothing_to_simulate_is_refused() -> None:
    model, _, _ = problem(sigmoid_net, 1)
    with pytest.raises(UsageError, match="no steps"):
        LocalSteps(SingleGradient(model, dict(model.named_parameters())), (), RATE)
    with pytest.raises(UsageError, match="at least 1"):
        simulated_batches(3, 0, 1, "same order")
