"""Trainings: what is kept of them is what happened, and what went wrong is one line."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmark.experiment import Experiment
from benchmark.harness import training_plans
from benchmark.references import run_reference
from benchmark.store import RunTables, TrainingRow
from benchmark.training_files import Truth
from benchmark.training_plan import TrainingPlan
from benchmark.trainings import run_training
from benchmark.workspace import Workspace
from federation.errors import DataError, TrainingError, UsageError
from federation.messages import Transcript, raw_tensors_from_bytes
from federation.protocol import Phase
from federation.secret_root import SecretRoot
from federation.weights import Weights

Tiny = Callable[..., Experiment]
ALGORITHM = "federations.0.algorithm"


@pytest.fixture
def plan_of(tmp_path: Path, tiny_experiment: Tiny) -> Callable[..., TrainingPlan]:
    """The plan of the first training (plain, unless the changes say otherwise) in a folder of its own."""

    def plan(changes: dict[str, Any] | None = None, folder: str = "run", root: bytes = b"r" * 32) -> TrainingPlan:
        workspace = Workspace(tmp_path / folder, tmp_path / f"{folder}.root")
        SecretRoot(root).save(workspace.root_file)
        chosen = tiny_experiment({"federations.0.defenses": ["plain"]} | (changes or {}))
        return training_plans(chosen, workspace)[0]

    return plan


def weights_in(plan: TrainingPlan, name: str, phase: str, party: str) -> Weights:
    """What stands in a plain envelope to or from a client."""
    (envelope,) = Transcript.load(plan.directory / f"{name}.transcript").phase(phase).touching(party)
    return raw_tensors_from_bytes(envelope.payload, "a plain envelope")


def normalised(plan: TrainingPlan, images: torch.Tensor) -> torch.Tensor:
    dataset = plan.workspace.dataset(plan.task)
    return (images.double() / 255 - dataset.mean[0]) / dataset.deviation[0]


def gradient_at(plan: TrainingPlan, weights: Weights, images: torch.Tensor, labels: torch.Tensor) -> Weights:
    """The gradient of the mean cross-entropy by autograd in double precision."""
    model = plan.network.build().double()
    model.load_state_dict({name: tensor.double() for name, tensor in weights.items()})
    F.cross_entropy(model(normalised(plan, images)), labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def accuracy_of(plan: TrainingPlan, weights: Weights) -> float:
    dataset = plan.workspace.dataset(plan.task)
    model = plan.network.build().double()
    model.load_state_dict({name: tensor.double() for name, tensor in weights.items()})
    with torch.no_grad():
        guesses = model(normalised(plan, dataset.test.images)).argmax(1)
    return float((guesses == dataset.test.labels).double().mean())


def test_a_row_describes_its_training(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of({f"{ALGORITHM}.rounds": 3, f"{ALGORITHM}.clients": 3})
    row = run_training(plan)
    assert (row.task, row.defense, row.seed, row.reference) == ("small-digits", "plain", 0, "")
    assert (row.algorithm, row.rounds, row.clients) == ("fedavg iid K=3", 3, 3)
    assert len(row.accuracy_by_round) == 4
    assert row.accuracy == row.accuracy_by_round[-1] > row.accuracy_by_round[0]
    confusion = np.array(row.confusion).reshape(row.class_count, row.class_count)
    assert confusion.sum() == row.test_count == 600
    assert confusion.trace() / row.test_count == pytest.approx(row.accuracy)
    assert np.unpackbits(np.frombuffer(row.correct, np.uint8), count=row.test_count).mean() == pytest.approx(
        row.accuracy
    )
    assert row.plain_share == 1
    assert row.key_bytes == 0
    assert 0 <= row.aggregation_error <= row.stated_error
    assert row.seconds_train > 0
    assert row.peak_memory_bytes > 2**20


def test_bytes_are_those_of_the_envelopes(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of()
    row = run_training(plan)
    transcript = Transcript.load(plan.directory / "real-round-0-0.transcript")
    assert {len(e.to_bytes()) for e in transcript.phase(Phase.UPLOAD)} == {row.bytes_up}
    assert {len(e.to_bytes()) for e in transcript.phase(Phase.BROADCAST)} == {row.bytes_down}
    assert row.bytes_up > 4 * plan.network.parameter_count


def test_a_probe_is_one_step_on_the_kept_truth(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of()
    run_training(plan)
    for index in range(3):
        truth = Truth.load(plan.directory / f"probe-0-{index}.truth")
        before = weights_in(plan, f"probe-0-{index}", Phase.BROADCAST, "client-0")
        after = weights_in(plan, f"probe-0-{index}", Phase.UPLOAD, "client-0")
        gradient = gradient_at(plan, before, truth.images, truth.labels)
        for name, tensor in gradient.items():
            torch.testing.assert_close(before[name] - 0.1 * tensor.float(), after[name], atol=1e-6, rtol=1e-5)


def test_probes_of_several_epochs_repeat_the_step(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of({"victims.probe": {"count": 1, "batch": 2, "epochs": 3, "rate": 0.05}})
    run_training(plan)
    truth = Truth.load(plan.directory / "probe-0-0.truth")
    weights = weights_in(plan, "probe-0-0", Phase.BROADCAST, "client-0")
    assert len(truth.labels) == 2
    for _ in range(3):
        gradient = gradient_at(plan, weights, truth.images, truth.labels)
        weights = {name: weights[name] - 0.05 * gradient[name].float() for name in weights}
    after = weights_in(plan, "probe-0-0", Phase.UPLOAD, "client-0")
    for name, tensor in weights.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-5)


def test_probes_leave_the_training_as_it_was(plan_of: Callable[..., TrainingPlan]) -> None:
    changes = {f"{ALGORITHM}.rounds": 2, "federations.0.snapshots": [0, 1]}
    with_probes = run_training(plan_of(changes, folder="with"))
    without = run_training(plan_of(changes | {"victims.probe": ...}, folder="without"))
    assert with_probes.accuracy_by_round == without.accuracy_by_round
    assert with_probes.correct == without.correct
    assert (with_probes.bytes_up, with_probes.aggregation_error) == (without.bytes_up, without.aggregation_error)


def test_the_final_accuracy_is_that_of_the_mean_of_the_uploads(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of({f"{ALGORITHM}.partition": {"kind": "sizes", "sizes": [300, 100]}})
    row = run_training(plan)
    uploads = [weights_in(plan, "real-round-0-0", Phase.UPLOAD, f"client-{index}") for index in range(2)]
    mean = {name: 0.75 * uploads[0][name] + 0.25 * uploads[1][name] for name in uploads[0]}
    assert row.accuracy == pytest.approx(accuracy_of(plan, mean), abs=1 / 600)
    start = weights_in(plan, "real-round-0-0", Phase.BROADCAST, "client-0")
    assert row.accuracy_by_round[0] == pytest.approx(accuracy_of(plan, start), abs=1 / 600)
    assert all(torch.equal(start[name], tensor) for name, tensor in plan.initial_weights().items())


def test_victims_of_a_real_round_are_images_that_it_used(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of(
        {
            f"{ALGORITHM}.batch_size": 1,
            f"{ALGORITHM}.steps": 3,
            "victims.real_round.images": 3,
            "victims.probe": ...,
        }
    )
    run_training(plan)
    name = "real-round-0-0"
    truth = Truth.load(plan.directory / f"{name}.truth")
    sender = (plan.directory / f"{name}.victim").read_text()
    assert sender == "client-0"
    assert set(truth.indices.tolist()) <= set(plan.shards[0].tolist())
    private = plan.workspace.private(plan.task, "training", raw=False)
    assert torch.equal(truth.images, private.images[truth.indices])
    # three steps, on one of these images each in some order, lead from the broadcast to the upload
    before, after = (weights_in(plan, name, phase, sender) for phase in (Phase.BROADCAST, Phase.UPLOAD))
    assert any(
        all(torch.allclose(weights[name], after[name], atol=1e-6) for name in after)
        for weights in (stepped(plan, before, truth, order) for order in itertools.permutations(range(3)))
    )


def stepped(plan: TrainingPlan, weights: Weights, truth: Truth, order: Sequence[int]) -> Weights:
    """SGD with rate 0.1 on one image at a time."""
    for index in order:
        gradient = gradient_at(plan, weights, truth.images[index : index + 1], truth.labels[index : index + 1])
        weights = {name: tensor - 0.1 * gradient[name].float() for name, tensor in weights.items()}
    return weights


def test_another_root_gives_other_victims_and_the_same_division(plan_of: Callable[..., TrainingPlan]) -> None:
    plans = [plan_of(folder=folder, root=root) for folder, root in (("a", b"a" * 32), ("b", b"b" * 32))]
    for plan in plans:
        run_training(plan)
    for name in ("probe-0-0", "real-round-0-0"):
        one, other = (Truth.load(plan.directory / f"{name}.truth") for plan in plans)
        assert not torch.equal(one.indices, other.indices)
    assert all(torch.equal(one, other) for one, other in zip(plans[0].shards, plans[1].shards, strict=True))
    assert plans[0].identifier != plans[1].identifier


def test_a_finished_training_is_not_repeated(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of()
    row = run_training(plan)
    stamps = {path: path.stat().st_mtime_ns for path in plan.directory.iterdir()}
    assert run_training(plan_of()) == row
    assert {path: path.stat().st_mtime_ns for path in plan.directory.iterdir()} == stamps


def test_what_decides_a_training_decides_its_address(plan_of: Callable[..., TrainingPlan]) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"seeds": [1]},
        {"federations.0.defenses": ["plain", "qsgd"]},
        {f"{ALGORITHM}.rounds": 2},
        {f"{ALGORITHM}.learning_rate": 0.2},
        {f"{ALGORITHM}.partition": {"kind": "disjoint-classes"}},
        {"federations.0.snapshots": ["last"], f"{ALGORITHM}.rounds": 2},
        {"victims.probe.count": 2},
        {"victims.raw": True},
        {"federations.0.task": "mnist5k-logistic"},
    ]
    addresses = [plan_of(change).identifier for change in changes]
    assert addresses[0] == addresses[2], "other defenses of the experiment do not matter"
    del addresses[2]
    assert len(set(addresses)) == len(addresses)


def test_weights_that_are_not_finite_name_task_defense_round_and_client(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of({f"{ALGORITHM}.learning_rate": 1e38, "victims.probe": ...})
    with pytest.raises(TrainingError) as caught:
        run_training(plan)
    assert str(caught.value).startswith("small-digits, plain, round 0, client-0: training made")
    assert "learning rate" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (plan.directory / "row.json").exists()


def test_a_failed_training_leaves_earlier_results_intact(
    tmp_path: Path, run_in: Callable[..., RunTables], tiny_experiment: Tiny, assert_same_rows: Callable[..., None]
) -> None:
    sound = tiny_experiment({"federations.0.defenses": ["plain"]})
    earlier = run_in(tmp_path / "run", sound)
    broken = tiny_experiment(
        {"federations.0.defenses": ["plain"], f"{ALGORITHM}.learning_rate": 1e38, "victims.probe": ...}
    )
    with pytest.raises(TrainingError):
        run_in(tmp_path / "run", broken)
    assert_same_rows(run_in(tmp_path / "run", sound, engine=NoWork()), earlier)


class NoWork:
    """An engine that refuses to wait: every job must be a look-up of what is finished."""

    def run(self, jobs: Any) -> Any:
        for index, (function, arguments) in enumerate(jobs):
            before = {path for path in arguments_folder(arguments).rglob("*") if path.is_file()}
            yield index, function(*arguments)
            assert {path for path in arguments_folder(arguments).rglob("*") if path.is_file()} == before


def arguments_folder(arguments: tuple[Any, ...]) -> Path:
    plan = getattr(arguments[0], "plan", arguments[0])
    folder: Path = plan.workspace.artefacts
    return folder


def test_what_cannot_be_trained_is_said_before_anything_runs(plan_of: Callable[..., TrainingPlan]) -> None:
    with pytest.raises(DataError, match="700 probes of 2 images need more than its 1000 victims"):
        plan_of({"victims.probe.count": 700, "victims.probe.batch": 2}).check()
    with pytest.raises(UsageError, match="sizes sum to 6000 but there are 2800"):
        plan_of({f"{ALGORITHM}.partition": {"kind": "sizes", "sizes": [3000, 3000]}}).check()
    with pytest.raises(UsageError, match="cannot be disjoint among 11 clients"):
        plan_of({f"{ALGORITHM}.partition": {"kind": "disjoint-classes"}, f"{ALGORITHM}.clients": 11}).check()


def test_references_stand_beside_without_bytes(plan_of: Callable[..., TrainingPlan]) -> None:
    plan = plan_of({f"{ALGORITHM}.rounds": 2, f"{ALGORITHM}.steps": ...})
    central, local = run_reference(plan, "centralised"), run_reference(plan, "local-only")
    for row, clients in ((central, 1), (local, 2)):
        assert isinstance(row, TrainingRow)
        assert (row.defense, row.clients, row.bytes_up, row.key_holders) == ("", clients, 0, "")
        assert row.test_count == 600 * clients
        assert sum(row.confusion) == row.test_count
        assert row.accuracy == row.accuracy_by_round[-1] > 0.5
    assert (central.reference, local.reference) == ("centralised", "local-only")
    assert dataclasses.asdict(run_reference(plan, "centralised")) == dataclasses.asdict(central)


def test_every_key_message_of_a_rotation_is_kept_and_counted(plan_of: Callable[..., TrainingPlan]) -> None:
    rotating = [{"name": "rotating", "stages": [{"keynet": {"rotation": 1}}]}]
    plan = plan_of(
        {
            "federations.0.defenses": ["plain", *rotating],
            f"{ALGORITHM}.rounds": 3,
            "federations.0.snapshots": [0, "last"],
        }
    )
    plan = dataclasses.replace(plan, defense_spec=plan.federation.defenses[1])
    row = run_training(plan)
    last = keys_to_one(plan, 2)
    assert (len(keys_to_one(plan, 0)), len(last)) == (1, 3)
    assert [envelope.round for envelope in last] == [0, 1, 2]
    assert row.key_bytes == sum(envelope.size for envelope in last)


def keys_to_one(plan: TrainingPlan, snapshot: int) -> Transcript:
    transcript = Transcript.load(plan.directory / f"real-round-{snapshot}-0.transcript")
    return transcript.phase(Phase.KEYS).where(lambda envelope: envelope.receiver == plan.clients[0])
