"""Labels read from the last layer, against the labels that the updates were made with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.engine.gradients import SingleGradient
from attacks.engine.labels import last_layer_labels

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
