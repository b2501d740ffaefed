"""Weight-update inversion: local steps simulated as public facts give them, and cosine where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attacks.matching
from attacks.base import Budget, build_attack, missing_need
from attacks.cosine import Cosine
from attacks.cosine_update import CosineUpdate
from attacks.engine.matches import Matches
from attacks.engine.objectives import cosine_distance
from federation.errors import UsageError
from federation.threat import Observation, Victim

LABELS = torch.tensor([1, 0, 3, 2])


def observed(client: Any, pictures: Tensor, images: int, batch: int, epochs: int) -> Observation:
    """An update of a client that keeps its images in order."""
    before = client.start()
    batches = [
        (pictures[start : min(start + batch, images)], LABELS[start : min(start + batch, images)])
        for start in range(0, images, batch)
    ] * epochs
    seen: Observation = client.observed(
        before,
        client.trained(before, batches),
        batch_size=batch,
        epochs=epochs,
        steps=len(batches),
        sample_counts={"client-0": images},
    )
    return seen


def victims(images: int) -> list[Victim]:
    return [Victim("victim", 0, "client-0", images)]


def found_by(attack: Any, seen: Observation, images: int, evaluations: int = 30) -> Any:
    generator = torch.Generator().manual_seed(3)
    (item,) = attack.reconstruct([seen], victims(images), generator=generator, budget=Budget(evaluations))
    return item


@pytest.mark.parametrize("images", [1, 3])
def test_of_one_step_it_is_cosine_to_the_bit(sigmoid_client: Any, pictures: Tensor, images: int) -> None:
    seen = observed(sigmoid_client, pictures, images, batch=images, epochs=1)
    ours, theirs = (found_by(attack, seen, images) for attack in (CosineUpdate(), Cosine()))
    assert torch.equal(ours.images, theirs.images)
    assert ours.objective == theirs.objective


@pytest.mark.parametrize(("batch", "epochs"), [(4, 5), (2, 1), (3, 2), (1, 1)])
def test_the_simulation_of_the_true_images_gives_the_observed_update(
    sigmoid_client: Any, pictures: Tensor, batch: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = observed(sigmoid_client, pictures, 4, batch, epochs)
    calls: list[tuple[Any, dict[str, Tensor]]] = []

    def record(update: Any, target: dict[str, Tensor], **rest: Any) -> Matches:
        calls.append((update, target))
        raise InterruptedError

    monkeypatch.setattr(attacks.matching, "match_gradients", record)
    with pytest.raises(InterruptedError):
        found_by(CosineUpdate(later_epochs="same order"), seen, 4)
    ((update, target),) = calls
    simulated = update(((pictures[:4] - 0.3) / 0.4)[None], F.one_hot(LABELS, 4).float()[None])
    for name, tensor in simulated.items():
        torch.testing.assert_close(tensor, target[name], atol=1e-4, rtol=1e-3)


def test_the_truth_explains_many_large_steps_where_to_cosine_it_does_not(
    sigmoid_client: Any, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = replace(sigmoid_client, rate=1.0)
    seen = observed(client, pictures, 4, batch=4, epochs=6)
    calls: list[tuple[Any, dict[str, Tensor]]] = []

    def record(update: Any, target: dict[str, Tensor], **rest: Any) -> Matches:
        calls.append((update, target))
        raise InterruptedError

    monkeypatch.setattr(attacks.matching, "match_gradients", record)
    for attack in (CosineUpdate(), Cosine()):
        with pytest.raises(InterruptedError):
            found_by(attack, seen, 4)
    truth = ((pictures[:4] - 0.3) / 0.4)[None], F.one_hot(LABELS, 4).float()[None]
    ours, theirs = (float(cosine_distance(update(*truth), target)) for update, target in calls)
    assert ours < 1e-5
    assert theirs > 100 * ours


def test_all_images_of_the_client_are_simulated_and_as_many_returned_as_are_asked_for(
    sigmoid_client: Any, pictures: Tensor
) -> None:
    seen = observed(sigmoid_client, pictures, 4, batch=2, epochs=1)
    item = found_by(CosineUpdate(), seen, 2, evaluations=3)
    assert item.images.shape == (2, 1, 6, 6)
    assert item.labels.shape == (2,)
    all_four = found_by(CosineUpdate(), seen, 4, evaluations=3)
    assert torch.equal(item.images, all_four.images[:2])


def test_a_trace_is_of_the_images_asked_for(sigmoid_client: Any, pictures: Tensor) -> None:
    seen = observed(sigmoid_client, pictures, 4, batch=2, epochs=1)
    generator = torch.Generator().manual_seed(3)
    budget = Budget(4, trace_every=2)
    (item,) = CosineUpdate().reconstruct([seen], victims(2), generator=generator, budget=budget)
    assert [point.evaluations for point in item.trace][-1] == item.evaluations
    assert {tuple(point.images.shape) for point in item.trace} == {(2, 1, 6, 6)}


def test_updates_of_hundreds_of_images_or_steps_are_not_its_business(sigmoid_client: Any, pictures: Tensor) -> None:
    seen = observed(sigmoid_client, pictures, 4, batch=2, epochs=1)
    many = replace(seen, facts=replace(seen.facts, batch_size=10, steps=40, sample_counts={"client-0": 400}))
    assert missing_need(CosineUpdate(), seen) is None
    assert missing_need(CosineUpdate(), many) == "needs updates of at most 64 images and steps (here 400 and 40)"
    assert missing_need(Cosine(), many) is None


def test_its_options_are_checked() -> None:
    assert build_attack("cosine-update", {"later_epochs": "same order"}) == CosineUpdate(later_epochs="same order")
    with pytest.raises(UsageError, match="later_epochs"):
        build_attack("cosine-update", {"later_epochs": "shuffled"})
