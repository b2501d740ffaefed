"""From observations to one engine call for each set of weights, and from its matches to reconstructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attacks.matching
from attacks.base import Budget, build_attack
from attacks.cosine import Cosine
from attacks.engine.matches import Matches
from attacks.matching import BatchNorm
from federation.errors import UsageError
from federation.threat import Auxiliary, Observation, Oracle, Victim

Calls = list[dict[str, Any]]


def victims(count: int, images: int = 1) -> list[Victim]:
    return [Victim(f"victim-{index}", index, "client-0", images) for index in range(count)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The arguments of every engine call; it answers with images that tell the trials of a call apart."""
    seen: Calls = []

    def record(update: Any, target: dict[str, Tensor], **rest: Any) -> Matches:
        trials = len(next(iter(target.values())))
        seen.append({"update": update, "target": target, **rest})
        return made_up(trials, rest["shape"], [float(trial) for trial in range(trials)])

    monkeypatch.setattr(attacks.matching, "match_gradients", record)
    return seen


def made_up(trials: int, shape: tuple[int, ...], objectives: list[float], **changes: Any) -> Matches:
    """Trial t returns images of t / 100 and labels t modulo the classes."""
    levels = torch.arange(trials).float().view(-1, *[1] * len(shape)) / 100
    labels = F.one_hot(torch.arange(trials) % 4, 4).float()[:, None].expand(-1, shape[0], -1)
    fields = {
        "images": levels.expand(trials, *shape),
        "labels": labels,
        "objective": torch.tensor(objectives),
        "evaluations": torch.full((trials,), 5),
        "failed": torch.zeros(trials, dtype=torch.bool),
        "signal": torch.ones(trials, dtype=torch.bool),
    }
    return Matches(**{**fields, **changes})


def run(history: list[Observation], generator: torch.Generator, restarts: int = 1, images: int = 1) -> Any:
    return Cosine().reconstruct(history, victims(len(history), images), generator=generator, budget=Budget(9, restarts))


def test_the_target_is_the_gradient_of_one_step(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    before = logistic_client.start()
    labels = torch.tensor([1])
    after = logistic_client.trained(before, [(pictures[:1], labels)])
    run([logistic_client.observed(before, after)], generator)
    expected = logistic_client.gradient(before, pictures[:1], labels)
    assert calls[0]["target"].keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(calls[0]["target"][name][0], tensor, atol=1e-5, rtol=1e-4)


def test_the_target_of_several_steps_is_their_mean_gradient(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    before, labels = logistic_client.start(), torch.tensor([1])
    steps = [(pictures[:1], labels)] * 3
    halfway = [logistic_client.trained(before, steps[:done]) for done in range(4)]
    run([logistic_client.observed(before, halfway[3], epochs=3, steps=3)], generator)
    gradients = [logistic_client.gradient(weights, pictures[:1], labels) for weights in halfway[:3]]
    for name in before:
        mean = sum(gradient[name] for gradient in gradients) / 3
        torch.testing.assert_close(calls[0]["target"][name][0], mean, atol=1e-5, rtol=1e-4)


def test_the_simulated_step_is_the_clients_own(
    batch_norm_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    """Also with batch normalisation, whose statistics are those of the batch while training."""
    before, labels = batch_norm_client.start(), torch.tensor([0, 3])
    after = batch_norm_client.trained(before, [(pictures[:2], labels)])
    run([batch_norm_client.observed(before, after, images=2)], generator, images=2)
    assert set(calls[0]["target"]) == {name for name in before if "running" not in name and "num_batches" not in name}
    inputs = (pictures[:2] - 0.3) / 0.4
    simulated = calls[0]["update"](inputs[None], F.one_hot(labels, 4).float()[None])
    for name, tensor in simulated.items():
        torch.testing.assert_close(tensor, calls[0]["target"][name], atol=1e-4, rtol=1e-3)


def single(client: Any, pictures: Tensor, seed: int, index: int) -> Observation:
    before = client.start(seed)
    return client.observed(before, client.trained(before, [(pictures[index : index + 1], torch.tensor([index % 4]))]))


def test_updates_from_the_same_weights_share_a_call(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    history = [single(logistic_client, pictures, seed, index) for index, seed in enumerate([0, 1, 0, 2, 1])]
    found = run(history, generator)
    assert [len(call["target"]["1.bias"]) for call in calls] == [2, 2, 1]
    # trial t of a call returned t / 100: the order within calls survives, and victims get their own
    assert [round(float(item.images.mean()) * 100) for item in found] == [0, 0, 1, 0, 1]
    for call, members in zip(calls, ([0, 2], [1, 4], [3]), strict=True):
        for row, member in enumerate(members):
            view = history[member].view
            expected = (view.before["1.bias"] - view.after["client-0"]["1.bias"]) / 0.05
            torch.testing.assert_close(call["target"]["1.bias"][row], expected)


def test_victims_of_different_size_do_not_share_a_call(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    history = [single(logistic_client, pictures, 0, 0)] * 3
    wanted = [replace(victim, image_count=count) for victim, count in zip(victims(3), (1, 2, 1), strict=True)]
    found = Cosine().reconstruct(history, wanted, generator=generator, budget=Budget(9))
    assert [call["shape"][0] for call in calls] == [1, 2]
    assert [len(item.images) for item in found] == [1, 2, 1]


def test_the_label_of_a_single_image_is_read_from_the_update(
    sigmoid_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    run([single(sigmoid_client, pictures, 0, index) for index in range(8)], generator, restarts=2)
    labels = calls[0]["labels"]
    assert labels.shape == (16, 1, 4)
    assert labels.argmax(2).flatten().tolist() == [index % 4 for index in range(8) for _ in range(2)]
    assert set(labels.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("facts", "read"),
    [
        ({"batch_size": 1, "epochs": 5, "steps": 5, "sample_counts": {"client-0": 1}}, "exactly"),
        ({"batch_size": 8, "epochs": 2, "steps": 2, "sample_counts": {"client-0": 1}}, "exactly"),
        ({"batch_size": 1, "steps": 1, "sample_counts": {"client-0": 40}}, "exactly"),
        ({"batch_size": 1, "steps": 3, "sample_counts": {"client-0": 40}}, "as counts"),
        ({"batch_size": 2, "steps": 1, "sample_counts": {"client-0": 40}}, "as counts"),
        ({"batch_size": 2, "steps": 1, "sample_counts": {"client-0": 2}}, "as counts"),
    ],
)
def test_labels_are_exact_only_where_one_image_made_the_update(
    logistic_client: Any,
    pictures: Tensor,
    generator: torch.Generator,
    calls: Calls,
    facts: dict[str, Any],
    read: str,
) -> None:
    seen = single(logistic_client, pictures, 0, 0)
    (found,) = run([replace(seen, facts=replace(seen.facts, **facts))], generator)
    assert calls[0]["labels"] is not None
    assert ("rounding of label counts" in found.findings) == (read == "as counts")


def test_the_labels_of_a_batch_are_read_with_their_counts(
    sigmoid_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    before = sigmoid_client.start()
    batches = [[3, 1, 1, 3], [0, 0, 0, 2]]
    history = [
        sigmoid_client.observed(
            before, sigmoid_client.trained(before, [(pictures[:4], torch.tensor(labels))]), images=4
        )
        for labels in batches
    ]
    found = run(history, generator, restarts=2, images=4)
    assert calls[0]["labels"].argmax(2).tolist() == [[1, 1, 3, 3]] * 2 + [[0, 0, 0, 2]] * 2
    assert all(0 <= item.findings["rounding of label counts"] < 2 for item in found)


def test_labels_are_optimised_where_the_update_does_not_state_them(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    """The counts come from a linear layer with a bias; a last layer without one tells only a single image's label."""
    client = type(logistic_client)(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4, bias=False)))
    before = client.start()
    after = client.trained(before, [(pictures[:2], torch.tensor([1, 2]))])
    (found,) = run([client.observed(before, after, images=2)], generator, images=2)
    assert calls[0]["labels"] is None
    assert found.findings == {}


@pytest.mark.parametrize(("batch_norm", "training"), [("batch statistics", True), ("running statistics", False)])
def test_batch_norm_is_simulated_in_the_mode_that_is_asked_for(
    batch_norm_client: Any,
    pictures: Tensor,
    generator: torch.Generator,
    calls: Calls,
    batch_norm: BatchNorm,
    training: bool,
) -> None:
    before, labels = batch_norm_client.start(), torch.tensor([0, 3])
    before["1.running_mean"] += 0.2
    model = batch_norm_client.build()
    model.load_state_dict(before)
    model.train(training)
    inputs = (pictures[:2] - 0.3) / 0.4
    F.cross_entropy(model(inputs), labels).backward()
    seen = batch_norm_client.observed(before, before, images=2)
    Cosine(batch_norm=batch_norm).reconstruct([seen], victims(1, 2), generator=generator, budget=Budget(9))
    simulated = calls[0]["update"](inputs[None], F.one_hot(labels, 4).float()[None])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(simulated[name][0], parameter.grad, atol=1e-5, rtol=1e-3)


def test_another_batch_norm_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="batch_norm"):
        build_attack("cosine", {"batch_norm": "no statistics"})


def test_granted_labels_are_used(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    before, labels = logistic_client.start(), torch.tensor([2, 0])
    after = logistic_client.trained(before, [(pictures[:2], labels)])
    seen = logistic_client.observed(before, after, images=2, oracles={Oracle.LABELS: labels})
    run([seen], generator, images=2)
    assert calls[0]["labels"].argmax(2).tolist() == [[2, 0]]


def answer(monkeypatch: pytest.MonkeyPatch, make: Callable[[int, Any], Matches]) -> None:
    monkeypatch.setattr(
        attacks.matching,
        "match_gradients",
        lambda update, target, **rest: make(len(next(iter(target.values()))), rest["shape"]),
    )


def test_each_victim_gets_the_restart_of_the_lowest_objective(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = [3.0, 1.0, 2.0, float("nan"), float("inf"), 0.5]
    answer(monkeypatch, lambda trials, shape: made_up(trials, shape, objectives))
    found = run([single(logistic_client, pictures, 0, index) for index in range(2)], generator, restarts=3)
    assert [round(float(item.images.mean()) * 100) for item in found] == [1, 5]
    assert [item.objective for item in found] == [1.0, 0.5]
    assert [item.labels.tolist() for item in found] == [[1], [1]]
    assert [item.evaluations for item in found] == [15, 15]


def test_a_restart_that_met_no_finite_value_states_none(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = torch.ones(1, dtype=torch.bool)
    answer(monkeypatch, lambda trials, shape: made_up(trials, shape, [float("inf")], failed=failed))
    (found,) = run([single(logistic_client, pictures, 0, 0)], generator)
    assert found.objective is None
    assert "not finite" in found.note


@pytest.mark.parametrize("value", [0.0, float("nan")], ids=["zero", "not a number"])
def test_without_a_signal_the_prior_guess_says_so(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, value: float
) -> None:
    before = logistic_client.start()
    after = {name: tensor + value for name, tensor in before.items()}
    seen = logistic_client.observed(before, after)
    public = Auxiliary(pictures, torch.zeros(8, dtype=torch.int64))
    grey, mean = run([seen, replace(seen, auxiliary=public)], generator)
    assert torch.equal(grey.images, torch.full((1, 1, 6, 6), 0.5))
    torch.testing.assert_close(mean.images[0].float(), pictures.mean(0), atol=1 / 255, rtol=0)
    for guess in (grey, mean):
        assert (guess.evaluations, guess.objective, guess.labels) == (0, None, None)
        assert "no signal" in guess.note


def test_budget_and_geometry_are_handed_on(
    logistic_client: Any, pictures: Tensor, generator: torch.Generator, calls: Calls
) -> None:
    run([single(logistic_client, pictures, 0, 0)], generator, restarts=3)
    (call,) = calls
    assert call["evaluations"] == 9
    assert call["shape"] == (1, 1, 6, 6)
    assert call["classes"] == 4
    assert (call["normalisation"].mean, call["normalisation"].deviation) == ((0.3,), (0.4,))
    assert call["generator"] is generator
    assert len(call["target"]["1.bias"]) == 3
