"""Inverting Gradients: its objective, its box, its prior."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.base import Budget
from attacks.cosine import Cosine
from federation.threat import Observation, Victim

VICTIMS = [Victim(f"victim-{index}", index, "client-0", 1) for index in range(4)]


@pytest.fixture
def history(sigmoid_client: Any, pictures: Tensor) -> list[Observation]:
    before = sigmoid_client.start()
    return [
        sigmoid_client.observed(
            before, sigmoid_client.trained(before, [(pictures[index : index + 1], torch.tensor([index]))])
        )
        for index in range(4)
    ]


def test_it_recovers_images_and_labels(
    history: list[Observation], pictures: Tensor, generator: torch.Generator
) -> None:
    found = Cosine().reconstruct(history, VICTIMS, generator=generator, budget=Budget(400, restarts=2))
    assert [item.labels.tolist() for item in found] == [[0], [1], [2], [3]]
    for index, item in enumerate(found):
        assert float((item.images - pictures[index]).square().mean()) < 5e-3


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_its_objective_is_cosine_distance_plus_total_variation_at_what_it_returns(
    sigmoid_client: Any, history: list[Observation], generator: torch.Generator, weight: float
) -> None:
    attack = Cosine(total_variation=weight)
    (item,) = attack.reconstruct(history, VICTIMS[:1], generator=generator, budget=Budget(60))
    before, after = history[0].view.before, history[0].view.after["client-0"]
    gradient = sigmoid_client.gradient(before, item.images, item.labels)
    ours = torch.cat([gradient[name].flatten() for name in gradient]).double()
    theirs = torch.cat([(before[name] - after[name]).flatten() for name in gradient]).double()
    distance = 1 - float(ours @ theirs / ours.norm() / theirs.norm())
    image = ((item.images - 0.3) / 0.4).double()
    variation = (image[..., 1:] - image[..., :-1]).abs().mean() + (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
    assert item.objective == pytest.approx(distance + weight * float(variation), abs=1e-4)


def test_more_total_variation_gives_smoother_images(history: list[Observation], generator: torch.Generator) -> None:
    def roughness(weight: float) -> float:
        found = Cosine(total_variation=weight).reconstruct(
            history, VICTIMS, generator=torch.Generator().manual_seed(3), budget=Budget(100)
        )
        images = torch.cat([item.images for item in found])
        return float((images[..., 1:] - images[..., :-1]).abs().mean())

    assert roughness(1.0) < 0.5 * roughness(0.0)


def test_images_stay_in_the_box_of_valid_pixels(history: list[Observation], generator: torch.Generator) -> None:
    found = Cosine(rate=5.0).reconstruct(history, VICTIMS, generator=generator, budget=Budget(10))
    for item in found:
        assert item.images.min() >= 0
        assert item.images.max() <= 1


def test_the_scale_of_the_update_does_not_matter(sigmoid_client: Any, history: list[Observation]) -> None:
    """The cosine compares directions: twice the update gives the same images."""

    def images(seen: Observation) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        (item,) = Cosine().reconstruct([seen], VICTIMS[:1], generator=generator, budget=Budget(40))
        return item.images

    before, after = history[0].view.before, history[0].view.after["client-0"]
    doubled = {name: before[name] + 2 * (after[name] - before[name]) for name in before}
    scaled = sigmoid_client.observed(before, doubled)
    assert float((images(history[0]) - images(scaled)).abs().mean()) < 0.02
