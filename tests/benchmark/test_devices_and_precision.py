"""What a device and a precision change of a run: addresses, facts and records, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observed import observed

import benchmark.attack_runs
from attacks.base import Budget, Reconstruction
from benchmark.attack_runs import run_attack
from benchmark.engines.local import LocalEngine, _take_gpu
from benchmark.experiment import AttackSpec, Experiment
from benchmark.harness import training_plans
from benchmark.provenance import hardware
from benchmark.references import run_reference
from benchmark.training_plan import TrainingPlan
from benchmark.trainings import run_training
from benchmark.workspace import Workspace
from federation.errors import KeyholeError, UsageError
from federation.secret_root import SecretRoot

Tiny = Callable[..., Experiment]
PlanOf = Callable[..., TrainingPlan]
ALGORITHM = "federations.0.algorithm"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def plan_of(tmp_path: Path, tiny_experiment: Tiny) -> PlanOf:
    """The plan of a training under one defense, on a device."""

    def plan(defense: str = "plain", device: str = "cpu", **changes: Any) -> TrainingPlan:
        workspace = Workspace(tmp_path / "run", tmp_path / "some.root", device=device)
        SecretRoot(b"r" * 32).save(workspace.root_file)
        algorithm = {f"{ALGORITHM}.{name}": value for name, value in changes.items()}
        experiment = tiny_experiment({"federations.0.defenses": [defense]} | algorithm)
        return next(item for item in training_plans(experiment, workspace) if item.defense_spec.name == defense)

    return plan


def test_the_kind_of_device_decides_an_address_and_its_number_does_not(plan_of: PlanOf) -> None:
    here, there = plan_of(), plan_of(device="cuda")
    assert here.identifier == plan_of(device="cpu").identifier
    assert here.identifier != there.identifier
    assert there.identifier == plan_of(device="cuda:1").identifier


def test_an_attack_s_address_and_budget_name_the_device(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    run_training(plan)
    history = observed(plan, "server/oblivious", "probe", 0)
    spec, seen = AttackSpec(name="cosine", evaluations=3, restarts=2), []

    def reconstruct(self: Any, history: Any, victims: Any, *, generator: torch.Generator, budget: Budget) -> list[Any]:
        seen.append((budget, generator.device.type))
        shape = history[0].network.image_shape
        return [Reconstruction(torch.zeros(1, *shape), None, None, 0, 0.0) for _ in victims]

    monkeypatch.setattr("attacks.matching.GradientMatching.reconstruct", reconstruct)
    runs = [
        run_attack(spec, history, history.victims(), plan_of(device=device).workspace, seed=0).identifier
        for device in ("cpu", "cuda", "cuda:1")
    ]
    assert runs[0] != runs[1] == runs[2]
    assert seen == [(Budget(3, 2), "cpu"), (Budget(3, 2, device="cuda"), "cpu")]


def test_a_gpu_without_room_is_no_crash_of_the_attack(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    run_training(plan)
    history = observed(plan, "server/oblivious", "probe", 0)

    def too_large(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr("attacks.matching.GradientMatching.reconstruct", too_large)
    workspace = plan_of(device="cuda").workspace
    with pytest.raises(KeyholeError, match=r"^cuda: CUDA out of memory.*--workers"):
        run_attack(AttackSpec(name="cosine", evaluations=3), history, history.victims(), workspace, seed=0)
    assert not (workspace.artefacts / "attacks").exists()


def test_hardware_names_the_gpus_where_they_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(hardware()) == {"cpu", "cores", "memory"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU number {index}")
    assert hardware("cuda")["device"] == "cuda"
    assert hardware("cuda")["gpu"] == "GPU number 0, GPU number 1"
    assert hardware("cuda:1")["gpu"] == "GPU number 1"
    assert hardware("cuda:1").keys() - hardware().keys() == {"device", "gpu"}


def test_one_worker_a_gpu_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert LocalEngine().workers == (os.cpu_count() or 1)
    assert LocalEngine(device="cuda").workers == 3
    assert LocalEngine(device="cuda:1").workers == 1
    assert LocalEngine(5, "cuda").workers == 5


def test_workers_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    started = multiprocessing.get_context("spawn").Value("i", 0)
    for _ in range(5):
        _take_gpu([0, 2, 3], started)
    assert chosen == [0, 2, 3, 0, 2]


def test_the_usual_precision_goes_unsaid_and_another_is_part_of_everything(
    plan_of: PlanOf, tiny_experiment: Tiny
) -> None:
    usual, rounded = plan_of(), plan_of(precision="bfloat16")
    assert plan_of(precision="float32").identifier == usual.identifier != rounded.identifier
    assert "precision" not in usual.algorithm.model_dump(mode="json")
    assert rounded.algorithm.model_dump(mode="json")["precision"] == "bfloat16"
    assert type(rounded.algorithm).model_validate(rounded.algorithm.model_dump(mode="json")) == rounded.algorithm
    assert type(usual.algorithm).model_validate(usual.algorithm.model_dump(mode="json")) == usual.algorithm
    assert rounded.algorithm.label == usual.algorithm.label + " bfloat16"
    assert (
        rounded.probe_training(rounded.victims.probes[0]).precision == rounded.algorithm.local.precision == "bfloat16"
    )
    with pytest.raises(UsageError, match=r"algorithm\.precision: Input should be 'float32' or 'bfloat16'"):
        tiny_experiment({f"{ALGORITHM}.precision": "float16"})


@pytest.mark.parametrize("kind", ["probe", "real-round"])
def test_the_attacker_knows_the_precision(plan_of: PlanOf, kind: str) -> None:
    for precision in ("float32", "bfloat16"):
        plan = plan_of(precision=precision)
        run_training(plan)
        history = observed(plan, "server/adaptive", kind, 0)
        assert history[0].facts.precision == precision
    addresses = {
        benchmark.attack_runs._observation_digest(
            observed(plan_of(precision=precision), "server/oblivious", kind, 0)[0]
        )
        for precision in ("float32", "bfloat16")
    }
    assert len(addresses) == 2


def test_bfloat16_trains_otherwise_and_sends_as_many_bytes(plan_of: PlanOf) -> None:
    rows = {name: run_training(plan_of(precision=name, steps=20)) for name in ("float32", "bfloat16")}
    assert rows["float32"].bytes_up == rows["bfloat16"].bytes_up
    one, other = (observed(plan_of(precision=name, steps=20), "server/oblivious", "probe", 0).truth(0) for name in rows)
    assert one.images.equal(other.images)
    for name, tensor in one.trained.items():
        assert tensor.dtype == other.trained[name].dtype == torch.float32
        assert not tensor.equal(other.trained[name])
        np.testing.assert_allclose(tensor, other.trained[name], atol=0.02)
    reference = {name: run_reference(plan_of(precision=name, steps=20), "centralised").accuracy for name in rows}
    assert abs(reference["float32"] - reference["bfloat16"]) < 0.1


def test_key_handling_takes_seconds_where_there_are_keys(plan_of: PlanOf) -> None:
    plain, paillier = run_training(plan_of()), run_training(plan_of("paillier"))
    assert plain.seconds_keys == 0
    assert paillier.seconds_keys is not None
    assert paillier.seconds_keys > 0.01, "a search for two primes of 1024 bits"
    assert run_reference(plan_of(), "local-only").seconds_keys == 0


@needs_cuda
def test_a_gpu_gives_the_figures_of_the_processor(
    tmp_path: Path, run_in: Callable[..., Any], tiny_experiment: Tiny
) -> None:
    changes = {"federations.0.task": "small-digits-lenet-zhu", "federations.0.defenses": ["plain"]}
    experiment = tiny_experiment(changes | {"attacks": [{"name": "cosine", "evaluations": 20}]})
    here, there = (run_in(tmp_path / device, experiment, device=device) for device in ("cpu", "cuda"))
    assert there.manifest.hardware["gpu"] == torch.cuda.get_device_name(0)
    np.testing.assert_allclose(there.trainings["accuracy"], here.trainings["accuracy"], atol=0.02)
    np.testing.assert_allclose(there.images["psnr"], here.images["psnr"], atol=1.0)
    assert there.images["pairing"].tolist() == here.images["pairing"].tolist()
