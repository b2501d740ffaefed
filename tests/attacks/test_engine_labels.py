"""Labels read from the last layer, against the labels that the updates were made with."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.engine.gradients import SingleGradient
from attacks.engine.labels import _whole_counts, label_counts, last_layer_labels
from attacks.engine.local_steps import LocalSteps

TRIALS = 8


def updates(model: nn.Module, classes: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    images = torch.randn(TRIALS, 1, 1, 6, 6, generator=generator)
    labels = torch.randint(classes, (TRIALS,), generator=generator)
    update = SingleGradient(model, dict(model.named_parameters()))
    return update(images, F.one_hot(labels, classes).float()[:, None]), labels


def network(classes: int, *, bias: bool, activation: type[nn.Module] = nn.Sigmoid) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), activation(), nn.Flatten()),
        *(nn.Linear(64, classes), activation(), nn.Linear(classes, classes, bias=bias)),
    )


@settings(deadline=None, max_examples=40)
@given(
    st.integers(3, 12),
    st.booleans(),
    st.sampled_from([nn.Sigmoid, nn.ReLU, nn.Tanh, nn.Identity]),
    st.integers(0, 10**6),
)
def test_labels_are_exact_for_single_images(classes: int, bias: bool, activation: type[nn.Module], seed: int) -> None:
    gradients, labels = updates(network(classes, bias=bias, activation=activation), classes, seed)
    found = last_layer_labels(gradients, classes)
    assert found is not None
    last = gradients["5.bias" if bias else "5.weight"].flatten(2 if not bias else 1)
    # dead features, and a softmax that rounds to the label alone, leave no trace of it
    traced = (last.any(2) if not bias else last != 0).gather(1, labels[:, None])[:, 0]
    assert torch.equal(found[traced], labels[traced])


def test_order_within_the_last_layer_does_not_matter() -> None:
    gradients, labels = updates(network(5, bias=True), 5)
    by_name = dict(sorted(gradients.items()))
    assert list(by_name)[-1] == "5.weight"
    found = last_layer_labels(by_name, 5)
    assert found is not None
    assert torch.equal(found, labels)


def test_a_convolutional_classifier_is_a_last_layer_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 6, 1), nn.Flatten())
    gradients, labels = updates(model, 6)
    found = last_layer_labels(gradients, 6)
    assert found is not None
    assert torch.equal(found, labels)


@pytest.mark.parametrize("bias", [True, False])
def test_two_classes_need_a_bias(bias: bool) -> None:
    gradients, labels = updates(network(2, bias=bias), 2)
    found = last_layer_labels(gradients, 2)
    assert (found is None) == (not bias)
    if found is not None:
        assert torch.equal(found, labels)


def test_no_layer_of_that_many_classes_gives_no_labels() -> None:
    gradients, _ = updates(network(5, bias=True), 5)
    assert last_layer_labels(gradients, 7) is None


def batch_update(
    classes: int, labels: Tensor, *, scale: float, seed: int, epochs: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """The mean gradient of full-batch steps on random images, the weights before, and rate times steps."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Sigmoid(), nn.Linear(12, classes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=scale, generator=generator)
    images = torch.randn(1, len(labels), 1, 6, 6, generator=generator)
    before = {name: parameter.detach() for name, parameter in model.named_parameters()}
    rate = 0.1
    simulation = LocalSteps(SingleGradient(model, before), [slice(None)] * epochs, rate)
    return simulation(images, F.one_hot(labels, classes).float()[None]), before, rate * epochs


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=24), st.integers(1, 4), st.integers(0, 10**6))
def test_the_labels_of_a_batch_are_counted_duplicates_included(labels: list[int], epochs: int, seed: int) -> None:
    """Where what the network says does not depend on the image, the bias gradient is an exact equation of the counts."""
    gradients, before, scale = batch_update(8, torch.tensor(labels), scale=0.02, seed=seed, epochs=epochs)
    found = label_counts(gradients, before, scale, len(labels))
    assert found is not None
    assert found.counts[0].tolist() == torch.bincount(torch.tensor(labels), minlength=8).tolist()
    assert found.labels()[0].tolist() == sorted(labels)
    assert float(found.rounding[0]) < 0.25


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=24), st.sampled_from([0.02, 0.5, 5.0]), st.integers(0, 10**6))
def test_counts_are_whole_and_sum_to_the_batch_whatever_the_network(
    labels: list[int], spread: float, seed: int
) -> None:
    gradients, before, scale = batch_update(8, torch.tensor(labels), scale=spread, seed=seed)
    found = label_counts(gradients, before, scale, len(labels))
    assert found is not None
    assert found.counts.min() >= 0
    assert found.counts.sum(1).tolist() == [len(labels)]
    assert float(found.rounding[0]) >= 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 10**6))
def test_whole_counts_are_a_least_squares_solution_by_brute_force(labels: list[int], seed: int) -> None:
    """Among all ways to divide the images, none explains the bias gradient better by moving one image."""
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.rand(4, 4, generator=generator, dtype=torch.float64).softmax(1)
    true = torch.bincount(torch.tensor(labels), minlength=4).double()
    bias = (predicted.T @ true - true) / len(labels)
    counts, rounding = _whole_counts(predicted, bias, len(labels))

    def misfit(candidate: Tensor) -> float:
        return float((candidate - predicted.T @ candidate + len(labels) * bias).square().sum())

    every = [
        torch.tensor(each, dtype=torch.float64)
        for each in itertools.product(range(len(labels) + 1), repeat=4)
        if sum(each) == len(labels)
    ]
    best = min(every, key=misfit)
    assert torch.equal(best, true)
    assert torch.equal(counts, true.long())
    assert float(rounding) < 1e-6


def test_fewer_labels_than_images_are_divided_as_those() -> None:
    gradients, before, scale = batch_update(8, torch.tensor([1] * 10 + [5] * 30), scale=0.02, seed=0)
    found = label_counts(gradients, before, scale, 4)
    assert found is not None
    assert found.labels()[0].tolist() == [1, 5, 5, 5]


def test_counts_need_a_linear_last_layer_with_a_bias() -> None:
    for make in (
        lambda: network(5, bias=False),
        lambda: nn.Sequential(nn.Conv2d(1, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ):
        model = make()
        gradients, _ = updates(model, 5)
        assert label_counts(gradients, dict(model.named_parameters()), 0.1, 4) is None


def test_an_update_that_is_not_finite_gives_some_counts() -> None:
    gradients, before, scale = batch_update(8, torch.tensor([1, 2, 2]), scale=0.02, seed=0)
    for value in (0.0, float("nan"), float("inf")):
        spoilt = {name: torch.full_like(tensor, value) for name, tensor in gradients.items()}
        found = label_counts(spoilt, before, scale, 3)
        assert found is not None
        assert found.counts.sum() == 3
