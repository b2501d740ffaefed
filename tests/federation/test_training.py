"""Local training against torch's own SGD, and evaluation against counting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from federation.errors import TrainingError, UsageError
from federation.training import LocalTraining, cross_entropy_gradients, evaluate, train_locally
from federation.weights import Weights, weights_of

CLASSES = 3
IMAGES = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % CLASSES


class NoDefense:
    """Local steps without a defense."""

    def transform_images(self, images: Tensor) -> Tensor:
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return cross_entropy_gradients(model, images, labels)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES)
        )


def train(training: LocalTraining, hooks: NoDefense | None = None, seed: int = 5) -> Weights:
    return train_locally(
        network(),
        weights_of(network()),
        IMAGES,
        LABELS,
        training,
        hooks=hooks or NoDefense(),
        generator=torch.Generator().manual_seed(seed),
        where="client-0, round 0",
    )


def train_with_torch(training: LocalTraining, steps: int, seed: int = 5) -> Weights:
    """The same steps with torch.optim.SGD and a hand-written loop over batches."""
    model, generator = network(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=training.learning_rate)
    taken = 0
    while taken < steps:
        order = torch.randperm(len(LABELS), generator=generator)
        for start in range(0, len(LABELS), training.batch_size):
            if taken < steps:
                batch = order[start : start + training.batch_size]
                optimiser.zero_grad()
                nn.CrossEntropyLoss()(model(IMAGES[batch]), LABELS[batch]).backward()
                optimiser.step()
                taken += 1
    return weights_of(model)


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        (LocalTraining(batch_size=4, learning_rate=0.1), 3),
        (LocalTraining(batch_size=10, learning_rate=0.5, epochs=3), 3),
        (LocalTraining(batch_size=3, learning_rate=0.05, epochs=2), 8),
        (LocalTraining(batch_size=3, learning_rate=0.05, epochs=3, steps=6), 6),
        (LocalTraining(batch_size=100, learning_rate=0.1, steps=50), 1),
        (LocalTraining(batch_size=4, learning_rate=0.1, epochs=None, steps=8), 8),  # two passes and two steps
    ],
)
def test_steps_are_those_of_torch(training: LocalTraining, steps: int) -> None:
    assert training.step_count(len(LABELS)) == steps
    trained, expected = train(training), train_with_torch(training, steps)
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-5, atol=1e-6)
    assert int(trained["1.num_batches_tracked"]) == steps


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 4), st.none() | st.integers(1, 30))
def test_the_number_of_steps(images: int, batch: int, epochs: int, limit: int | None) -> None:
    batches = len(list(range(0, images, batch))) * epochs
    expected = batches if limit is None else min(batches, limit)
    assert LocalTraining(batch, 0.1, epochs, limit).step_count(images) == expected
    if limit is not None:
        assert LocalTraining(batch, 0.1, None, limit).step_count(images) == limit


@given(st.integers(1, 50), st.none() | st.integers(1, 4), st.integers(1, 30), st.integers(1, 5))
def test_rounds_in_one_go_are_as_long_as_their_epochs_and_steps(
    images: int, epochs: int | None, steps: int, rounds: int
) -> None:
    together = LocalTraining(3, 0.1, epochs, steps).repeated(rounds)
    assert together == LocalTraining(3, 0.1, epochs and epochs * rounds, steps * rounds)
    assert LocalTraining(3, 0.1, 2).repeated(rounds).step_count(images) == rounds * LocalTraining(3, 0.1, 2).step_count(
        images
    )


def test_training_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="epochs or so many steps"):
        LocalTraining(batch_size=3, learning_rate=0.1, epochs=None)


def test_the_generator_decides_the_batches_and_the_global_one_is_left_alone() -> None:
    training = LocalTraining(batch_size=2, learning_rate=0.1)
    before = torch.random.get_rng_state()
    one, again, other = train(training), train(training), train(training, seed=6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(one[name].equal(again[name]) for name in one)
    assert not one["4.weight"].equal(other["4.weight"])


def test_a_defense_may_act_on_images_and_on_gradients() -> None:
    class Doubling(NoDefense):
        def transform_images(self, images: Tensor) -> Tensor:
            return images * 0

        def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            assert not images.any()
            return {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}

    start = weights_of(network())
    trained = train(LocalTraining(batch_size=5, learning_rate=0.25), Doubling())
    for name in ("0.weight", "4.bias"):
        torch.testing.assert_close(trained[name], start[name] - 2 * 0.25)


def test_training_starts_from_the_given_weights_and_leaves_them() -> None:
    start = weights_of(network())
    start["4.bias"] = start["4.bias"] + 100
    kept = {name: tensor.clone() for name, tensor in start.items()}
    trained = train_locally(
        network(),
        start,
        IMAGES,
        LABELS,
        LocalTraining(10, 0.0),
        hooks=NoDefense(),
        generator=torch.Generator(),
        where="here",
    )
    assert trained["4.bias"].equal(kept["4.bias"])
    assert all(start[name].equal(kept[name]) for name in kept)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 1e38])
def test_weights_that_are_not_finite_are_an_error(rate: float) -> None:
    with pytest.raises(
        TrainingError, match=r"client-0, round 0: training made '.*' not finite; lower the learning rate"
    ):
        train(LocalTraining(batch_size=5, learning_rate=rate, epochs=3))


def test_batch_norm_over_a_single_value_is_one_line() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 4), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, CLASSES))
    with pytest.raises(TrainingError, match=r"^client-0, round 0: the network cannot train on a batch of one image"):
        train_locally(
            model,
            weights_of(model),
            IMAGES,
            LABELS,
            LocalTraining(batch_size=3, learning_rate=0.1),  # ten images leave a batch of one
            hooks=NoDefense(),
            generator=torch.Generator().manual_seed(0),
            where="client-0, round 0",
        )


def test_gradients_are_of_the_mean_cross_entropy() -> None:
    model = network()
    found = cross_entropy_gradients(model, IMAGES, LABELS)
    logits = model(IMAGES)
    loss = (logits.exp().sum(dim=1).log() - logits[torch.arange(10), LABELS]).mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_evaluation_counts() -> None:
    model = network()
    weights = {name: tensor + 0.1 * torch.ones_like(tensor) for name, tensor in weights_of(model).items()}
    weights["1.num_batches_tracked"] = torch.tensor(4)
    found = evaluate(model, weights, IMAGES, LABELS, CLASSES, batch_size=3)
    reference = network()
    reference.load_state_dict(weights)
    predicted = reference.eval()(IMAGES).argmax(dim=1)
    assert found.correct.tolist() == [bool(one == other) for one, other in zip(predicted, LABELS, strict=True)]
    assert found.accuracy == pytest.approx(sum(found.correct.tolist()) / 10)
    expected = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for truth, guess in zip(LABELS.tolist(), predicted.tolist(), strict=True):
        expected[truth, guess] += 1
    assert found.confusion.equal(expected)
    assert not model.training
