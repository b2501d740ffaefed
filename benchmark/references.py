"""What federated results are measured against: training on all data in one place, and every client alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from benchmark.artefacts import digest
from benchmark.costs import peak_memory, reset_peak_memory
from benchmark.store import TrainingRow
from benchmark.training_files import is_finished, load_row, save_row
from benchmark.training_plan import TrainingPlan
from benchmark.trainings import evaluation_columns
from federation.device import computing_on
from federation.normalisation import Normalisation
from federation.seeds import torch_generator
from federation.training import Evaluation, cross_entropy_gradients, evaluate, train_locally

Reference = Literal["centralised", "local-only"]


class _PlainSteps:
    """Local training as it is without any defense."""

    def transform_images(self, images: Tensor) -> Tensor:
        """The images as they are."""
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The gradients of the mean cross-entropy."""
        return cross_entropy_gradients(model, images, labels)


def run_reference(plan: TrainingPlan, reference: Reference) -> TrainingRow:
    """Train the reference that stands beside a federated training, or return the row of an earlier run.

    Both make as many passes over their data, or as many steps, as a client that takes part in every round. Under
    "local-only" the answers of all clients' models count together.
    """
    identifier = digest("reference", reference, plan.identifier)
    directory = plan.workspace.artefacts / "trainings" / identifier
    if not is_finished(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with computing_on(plan.workspace.device) as device:
            save_row(_train(plan, reference, identifier, device), directory)
    return load_row(directory)


def _train(plan: TrainingPlan, reference: Reference, identifier: str, device: torch.device) -> TrainingRow:
    reset_peak_memory()
    dataset, algorithm = plan.workspace.dataset(plan.task), plan.algorithm
    private = plan.workspace.private(plan.task, "training", raw=plan.victims.raw)
    normalise = Normalisation(dataset.mean, dataset.deviation).apply
    groups = [torch.cat(plan.shards)] if reference == "centralised" else list(plan.shards)
    local = algorithm.local.repeated(algorithm.rounds)
    test_pixels, model = normalise(dataset.test.pixels()), plan.network.build().to(device)
    evaluations = []
    for index, rows in enumerate(groups):
        weights = train_locally(
            model,
            plan.initial_weights(),
            normalise(private.select(rows).pixels()),
            private.labels[rows],
            local,
            hooks=_PlainSteps(),
            generator=torch_generator(reference, plan.seed, index),
            where=f"{plan.task}, {reference} training {index}",
        )
        evaluations.append(evaluate(model, weights, test_pixels, dataset.test.labels, dataset.class_count))
    correct = torch.cat([item.correct for item in evaluations])
    confusion = torch.stack([item.confusion for item in evaluations]).sum(dim=0)
    together = Evaluation(float(correct.double().mean()), confusion, correct)
    return TrainingRow(
        training=identifier,
        task=plan.task,
        algorithm=algorithm.label,
        defense="",
        seed=plan.seed,
        reference=reference,
        rounds=algorithm.rounds,
        clients=len(groups),
        accuracy_by_round=[together.accuracy],
        **evaluation_columns(together, dataset.class_count),
        bytes_up=0,
        bytes_down=0,
        key_bytes=0,
        plain_share=0.0,
        seconds_keys=0.0,
        seconds_train=0.0,
        seconds_protect=0.0,
        seconds_aggregate=0.0,
        seconds_recover=0.0,
        peak_memory_bytes=peak_memory(),
        aggregation_error=0.0,
        stated_error=0.0,
        key_holders="",
        collusion_bound="",
        dataset=dataset.name,
        provenance=dataset.provenance.rstrip("."),
        classes=list(dataset.classes),
    )
