"""The layerwise inversion: images without a search, and honest words where there is nothing to solve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.analytic import Analytic
from attacks.base import Budget, Reconstruction, build_attack, missing_need
from federation.errors import UsageError
from federation.network import Network
from federation.threat import Ciphertext, Observation, Victim

SENDER = "client-0"
BUDGET = Budget(evaluations=400)
LABELS = [2, 0, 3, 1]


def victims(count: int) -> list[Victim]:
    return [Victim(f"victim-{place}", place, SENDER, 1) for place in range(count)]


def attack(history: list[Observation], budget: Budget = BUDGET, **options: float) -> list[Reconstruction]:
    return Analytic(**options).reconstruct(  # type: ignore[arg-type]
        history, victims(len(history)), generator=torch.Generator().manual_seed(0), budget=budget
    )


def history_of(client: Any, pictures: Tensor, seed: int = 0) -> list[Observation]:
    """One observation a label, of single images."""
    before = client.start(seed)
    batches = [(pictures[place : place + 1], torch.tensor([label])) for place, label in enumerate(LABELS)]
    return [client.observed(before, client.trained(before, [batch])) for batch in batches]


def errors(found: list[Reconstruction], pictures: Tensor) -> list[float]:
    return [float((item.images - truth).square().mean()) for item, truth in zip(found, pictures, strict=False)]


def convolutions(*after: nn.Module, features: int) -> Callable[[], nn.Module]:
    """Two convolutions of odd shapes, with what is given between and behind them."""
    return lambda: nn.Sequential(
        nn.Conv2d(1, 8, (3, 5), stride=(1, 2), padding=(1, 2), bias=False),
        *after,
        nn.Conv2d(8, 8, 3, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(features, 4),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 4))


def without_bias_below() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 48, bias=False), nn.Tanh(), nn.Linear(48, 4))


def pooled_late() -> nn.Module:
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 4)]
    return nn.Sequential(*layers)


def pooled_first() -> nn.Module:
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.AvgPool2d(2, stride=1), nn.Tanh(), nn.Flatten(), nn.Linear(300, 4)]
    return nn.Sequential(*layers)


INVERTED: dict[str, Callable[[], nn.Module]] = {
    "fully connected": mlp,
    "a layer without a bias": without_bias_below,
    "sigmoid": convolutions(nn.Sigmoid(), features=8 * 8 * 5),
    "tanh": convolutions(nn.Tanh(), features=8 * 8 * 5),
    "relu": convolutions(nn.ReLU(), features=8 * 8 * 5),
    "two in a row": convolutions(nn.Identity(), features=8 * 8 * 5),
    "pooled after the activation": pooled_late,
    "pooled in overlaps before it": pooled_first,
}


@pytest.fixture(scope="module")
def client_of(sigmoid_client: Any) -> Callable[[Callable[[], nn.Module]], Any]:
    return lambda build: type(sigmoid_client)(build)


@pytest.mark.parametrize("name", INVERTED)
def test_images_are_solved_for(name: str, client_of: Any, pictures: Tensor) -> None:
    found = attack(history_of(client_of(INVERTED[name]), pictures))
    assert max(errors(found, pictures)) < 1e-3
    for item, label in zip(found, LABELS, strict=True):
        assert item.labels is not None
        assert item.labels.tolist() == [label]
        assert item.objective is not None
        assert item.objective < 0.05
        assert 1 <= item.evaluations <= BUDGET.evaluations
        assert not item.note


def test_the_objective_is_the_distance_of_the_images_own_gradient(sigmoid_client: Any, pictures: Tensor) -> None:
    before = sigmoid_client.start()
    after = sigmoid_client.trained(before, [(pictures[:1], torch.tensor([2]))])
    (found,) = attack([sigmoid_client.observed(before, after)], Budget(evaluations=6))
    own = sigmoid_client.gradient(before, found.images, torch.tensor([2]))
    observed = {name: (before[name] - after[name]) / sigmoid_client.rate for name in own}
    distance = sum(float((own[name] - observed[name]).square().sum()) for name in own)
    size = sum(float(tensor.square().sum()) for tensor in observed.values())
    assert found.objective == pytest.approx(distance / size, rel=1e-3)
    assert found.evaluations <= 6


def test_residuals_say_which_layer_fell_short(client_of: Any, pictures: Tensor) -> None:
    """A ReLU under a pool: what it swallowed cannot be told."""

    def build() -> nn.Module:
        first = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3)]
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(12, 4))

    found = attack(history_of(client_of(build), pictures))
    for item, error in zip(found, errors(found, pictures), strict=True):
        assert set(item.findings) == {"residual.4", "residual.0"}
        assert item.findings["residual.4"] < 1e-3
        assert error > 1e-3


def test_a_trial_does_not_depend_on_the_others(sigmoid_client: Any, pictures: Tensor) -> None:
    history = history_of(sigmoid_client, pictures)
    broken = dataclasses.replace(history[1], view=spoilt(history[1], float("nan")))
    together = attack([history[0], broken, *history_of(sigmoid_client, pictures, seed=1)[2:]])
    (alone,) = attack(history[:1])
    torch.testing.assert_close(together[0].images, alone.images, rtol=1e-3, atol=1e-4)
    assert together[1].note.startswith("no signal")
    assert max(errors(together[2:], pictures[2:])) < 1e-3


def spoilt(observation: Observation, value: float) -> Any:
    """The observation's view with every value of the update replaced."""
    view: Any = observation.view
    after = {name: tensor + value for name, tensor in view.before.items()}
    return dataclasses.replace(view, after={SENDER: after})


def test_no_update_is_no_signal(sigmoid_client: Any, pictures: Tensor) -> None:
    history = history_of(sigmoid_client, pictures)
    (found,) = attack([dataclasses.replace(history[0], view=spoilt(history[0], 0.0))])
    assert found.note.startswith("no signal")
    assert found.objective is None
    assert found.labels is None
    assert found.evaluations == 0
    assert bool((found.images == 0.5).all())


def test_noise_is_no_signal(client_of: Any, pictures: Tensor) -> None:
    history = history_of(client_of(INVERTED["sigmoid"]), pictures)
    noisy = []
    for place, observation in enumerate(history):
        view: Any = observation.view
        generator = torch.Generator().manual_seed(place)
        after = {
            name: tensor + 1e-2 * torch.randn(tensor.shape, generator=generator) for name, tensor in view.before.items()
        }
        noisy.append(dataclasses.replace(observation, view=dataclasses.replace(view, after={SENDER: after})))
    for item in attack(noisy):
        assert item.note.startswith("no signal")
        assert item.evaluations > 0
        assert item.findings["residual.4" if "residual.4" in item.findings else "residual.5"] > 0.5


def test_it_names_what_it_lacks(sigmoid_client: Any, pictures: Tensor) -> None:
    (observation, *_) = history_of(sigmoid_client, pictures)
    assert missing_need(Analytic(), observation) is None

    def pooled() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 4))

    other = dataclasses.replace(observation, network=Network(pooled, (1, 6, 6), 4))
    lacking = missing_need(Analytic(), other)
    assert lacking is not None
    assert lacking.startswith("needs a network that can be inverted layer by layer: layer '1' (MaxPool2d)")
    batch = sigmoid_client.observed(sigmoid_client.start(), sigmoid_client.start(), images=2)
    assert missing_need(Analytic(), batch) == "needs updates made from a single image"
    hidden = dataclasses.replace(observation, view=Ciphertext("paillier", 1))
    assert "ciphertext" in str(missing_need(Analytic(), hidden))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="must lie between 0 and 1"):
        build_attack("analytic", {"tolerance": 0.0})


def test_more_iterations_come_nearer(client_of: Any, pictures: Tensor) -> None:
    history = history_of(client_of(INVERTED["sigmoid"]), pictures)
    few, many = (attack(history, Budget(evaluations=count)) for count in (2, 200))
    for starved, full in zip(few, many, strict=True):
        assert starved.evaluations <= 2
        assert full.objective is not None
        assert starved.objective is None or full.objective < starved.objective
    assert max(errors(many, pictures)) < min(errors(few, pictures))


@pytest.mark.slow
def test_the_deep_leakage_task() -> None:
    """The untrained LeNet of Zhu et al. (2019): 98% of the images, at MSE < 1e-3."""
    from benchmark.speed.attacks.single_images import single_images
    from federation.models import build_model

    for dataset, iterations in (("mnist5k", 300), ("photos32", 1500)):
        work = single_images(dataset, lambda shape, classes: build_model("lenet-zhu", shape, classes, seed=0), 50)
        generator = torch.Generator().manual_seed(0)
        found = Analytic().reconstruct(
            work.history, work.victims, generator=generator, budget=Budget(evaluations=iterations)
        )
        recovered = work.squared_errors(torch.cat([item.images for item in found])) < 1e-3
        assert float(recovered.double().mean()) >= 0.98
