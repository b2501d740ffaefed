"""Traces of gradient matching: of the chosen restart, rising, ending at what is returned, and changing nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.base import Budget, Reconstruction, build_attack
from attacks.engine.matches import Matches
from attacks.tracing import Recorder
from benchmark.conformance.attack_subject import EVERYONE
from benchmark.conformance.updates import Updates, small_network
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator

UPDATES = Updates(small_network(), SecretRoot(b"tests of traces, which need none"))


def reconstructed(attack: str, budget: Budget) -> list[Reconstruction]:
    generator = torch_generator("tests of traces")
    return build_attack(attack).reconstruct(UPDATES.plain[:2], EVERYONE[:2], generator=generator, budget=budget)


@pytest.mark.parametrize("attack", ["cosine", "dlg"])
def test_a_trace_ends_at_what_is_returned_and_changes_nothing(attack: str) -> None:
    plain = reconstructed(attack, Budget(24, restarts=2))
    traced = reconstructed(attack, Budget(24, restarts=2, trace_every=10))
    for without, item in zip(plain, traced, strict=True):
        assert without.trace == ()
        assert torch.equal(without.images, item.images)
        assert [point.evaluations for point in item.trace] == [1, 10, 20, 24]
        assert item.trace[-1].objective == item.objective
        assert torch.equal(item.trace[-1].images, item.images)
        assert item.trace[0].objective > item.trace[-1].objective
        for point in item.trace:
            assert point.images.shape == item.images.shape
            assert 0 <= float(point.images.min()) <= float(point.images.max()) <= 1


def matches(objectives: list[float], evaluations: list[int]) -> Matches:
    count = len(objectives)
    return Matches(
        images=torch.arange(count).float().view(-1, 1, 1, 1, 1) / 10,
        labels=torch.zeros(count, 1, 2),
        objective=torch.tensor(objectives),
        evaluations=torch.tensor(evaluations),
        failed=torch.zeros(count, dtype=torch.bool),
        signal=torch.ones(count, dtype=torch.bool),
    )


def told(recorder: Recorder, evaluations: int, objectives: list[float]) -> None:
    images = torch.full((len(objectives), 1, 1, 1, 1), 0.5)
    recorder(evaluations, torch.arange(len(objectives)), torch.tensor(objectives), images)


def test_the_restart_is_the_one_that_the_attack_chose_by_its_own_objective() -> None:
    recorder = Recorder(2)
    for step in range(1, 5):
        told(recorder, step, [9.0, 8.0, 7.0, 6.0])
    trace = recorder.trace(matches([3.0, 1.0, 2.0, float("nan")], [4, 3, 4, 4]), first=0, restarts=2)
    assert [(point.evaluations, point.objective) for point in trace] == [(1, 8.0), (2, 8.0), (3, 1.0)]
    assert float(trace[-1].images) == pytest.approx(0.1)
    second = recorder.trace(matches([3.0, 1.0, 2.0, float("nan")], [4, 3, 4, 4]), first=2, restarts=2)
    assert [point.objective for point in second] == [7.0, 7.0, 2.0]


def test_what_is_kept_does_not_change_with_the_search() -> None:
    recorder, images = Recorder(1), torch.full((1, 1, 1, 1, 1), 0.25)
    recorder(1, torch.tensor([0]), torch.tensor([2.0]), images)
    images.zero_()
    first: Tensor = recorder.trace(matches([1.0], [2]), first=0, restarts=1)[0].images
    assert float(first) == 0.25


def test_without_a_trace_nothing_is_kept() -> None:
    assert Recorder(0).trace(matches([1.0], [2]), first=0, restarts=1) == ()
