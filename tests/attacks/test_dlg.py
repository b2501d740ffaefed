"""Deep Leakage from Gradients: exact where the answer is known in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import attacks.matching
from attacks.base import Budget, build_attack
from attacks.dlg import DLG
from attacks.engine.lbfgs import LBFGS
from attacks.idlg import IDLG
from federation.errors import UsageError
from federation.threat import Observation, Oracle, Victim

VICTIMS = [Victim(f"victim-{index}", index, "client-0", 1) for index in range(4)]


def updates(client: Any, pictures: Tensor) -> list[Observation]:
    before = client.start()
    return [
        client.observed(before, client.trained(before, [(pictures[index : index + 1], torch.tensor([3 - index]))]))
        for index in range(4)
    ]


def with_labels(history: list[Observation]) -> list[Observation]:
    """The same with the labels granted, which are optimised otherwise."""
    return [replace(seen, oracles={Oracle.LABELS: torch.tensor([3 - index])}) for index, seen in enumerate(history)]


def test_on_logistic_regression_it_finds_what_algebra_gives(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator
) -> None:
    """There dL/dW[i] / dL/db[i] is the input itself."""
    history = with_labels(updates(logistic_client, pictures))
    found = DLG().reconstruct(history, VICTIMS, generator=generator, budget=Budget(200))
    for seen, item in zip(history, found, strict=True):
        weight, bias = (seen.view.before[name] - seen.view.after["client-0"][name] for name in ("1.weight", "1.bias"))
        row = bias.abs().argmax()
        algebra = (weight[row] / bias[row]).view(1, 1, 6, 6) * 0.4 + 0.3
        torch.testing.assert_close(item.images, algebra.clamp(0, 1), atol=0.01, rtol=0)


def test_it_recovers_images_and_labels(sigmoid_client: Any, pictures: Tensor, generator: torch.Generator) -> None:
    history = updates(sigmoid_client, pictures)
    found = DLG().reconstruct(history, VICTIMS, generator=generator, budget=Budget(300, restarts=2))
    assert [item.labels.tolist() for item in found] == [[3], [2], [1], [0]]
    errors = [float((item.images - pictures[index]).square().mean()) for index, item in enumerate(found)]
    assert max(errors) < 1e-3


def test_its_objective_is_the_squared_distance_at_what_it_returns(
    sigmoid_client: Any, pictures: Tensor, generator: torch.Generator
) -> None:
    # a normalisation so narrow that no image leaves [0, 1] and none is clipped
    seen = replace(with_labels(updates(sigmoid_client, pictures))[0], mean=(0.5,), deviation=(0.01,))
    (item,) = DLG().reconstruct([seen], VICTIMS[:1], generator=generator, budget=Budget(6))
    before, after = seen.view.before, seen.view.after["client-0"]
    inputs = (item.images - 0.5) / 0.01
    gradient = sigmoid_client.gradient(before, inputs * 0.4 + 0.3, item.labels)
    distance = sum(float((gradient[name] - (before[name] - after[name]) / 0.05).square().sum()) for name in gradient)
    assert item.objective == pytest.approx(distance, rel=1e-2)
    assert 0 < item.evaluations <= 6


def test_labels_are_optimised_though_the_update_states_them(
    sigmoid_client: Any, pictures: Tensor, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As published; reading them is iDLG."""
    given: list[Tensor | None] = []

    def record(update: Any, target: Any, *, labels: Tensor | None, **rest: Any) -> Any:
        given.append(labels)
        raise InterruptedError

    monkeypatch.setattr(attacks.matching, "match_gradients", record)
    history = updates(sigmoid_client, pictures)[:1]
    for attack, seen in ((DLG(), history), (IDLG(), history), (DLG(), with_labels(history))):
        with pytest.raises(InterruptedError):
            attack.reconstruct(seen, VICTIMS[:1], generator=generator, budget=Budget(1))
    optimised, read, granted = given
    assert optimised is None
    for labels in (read, granted):
        assert labels is not None
        assert labels.argmax(2).tolist() == [[3]]


def test_options_reach_the_optimiser() -> None:
    optimiser = DLG(memory=7).optimiser()
    assert isinstance(optimiser, LBFGS)
    assert optimiser.history == 7
    with pytest.raises(UsageError, match="option 'memory'"):
        build_attack("dlg", {"memory": "much"})
