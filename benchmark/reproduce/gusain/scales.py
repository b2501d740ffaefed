"""The three sizes of the reproduction, each an ordinary experiment a network, and what sets them apart from the paper."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark.experiment import Algorithm, AttackSpec, Experiment
from benchmark.experiment_files import load_experiment
from benchmark.reproduce.gusain.printed import ATTACK_EVALUATIONS, DATASETS, MODELS
from benchmark.store.gusain import NetworkName, Scale
from federation.datasets import Dataset
from federation.tasks import find_task

LABELS: dict[Scale, str] = {
    "quick": "Quick scale: embedded data, small budgets; it shows that everything runs, not the paper's figures.",
    "reduced": "Reduced scale: the real sets, LeNet at full size, MobileNetV2 and the attacks cut down to a CPU.",
    "full": "Full scale: the real sets, both networks at full size, the attack's published budget.",
}
"""As every caption states it."""


def experiment_of(scale: Scale, network: NetworkName) -> Experiment:
    """The experiment of a network at a scale: `SCALE-NETWORK.yaml` beside this file."""
    file = importlib.resources.files(__package__) / f"{scale}-{network}.yaml"
    with importlib.resources.as_file(file) as path:
        return load_experiment(str(path))


def scale_for(data_directory: Path | None) -> Scale:
    """The scale where none is asked for: the real sets where they are at hand, else what comes with Keyhole."""
    return "quick" if data_directory is None else "reduced"


def setting(experiment: Experiment, dataset: Dataset) -> str:
    """What is trained on which data, for captions."""
    task = find_task(experiment.federations[0].task)
    sizes = f"{len(dataset.training):,} training and {len(dataset.test):,} test images"
    return f"{task.model} on {dataset.name}, {sizes}. {dataset.provenance}"


def training(experiment: Experiment) -> str:
    """Rounds, batches, rates and who has which data."""
    return "; ".join(_algorithm(federation.algorithm) for federation in experiment.federations) + "."


def _algorithm(algorithm: Algorithm) -> str:
    local = f"{algorithm.steps} steps" if algorithm.steps is not None else _counted(algorithm.epochs, "epoch")
    return (
        f"{algorithm.name}: {_counted(algorithm.rounds, 'round')} of {local} of batch size {algorithm.batch_size} at rate"
        f" {algorithm.learning_rate:g}, {_counted(algorithm.clients, 'client')}, {algorithm.partition['kind']}"
    )


def budget(experiment: Experiment) -> str:
    """What each attack may compute."""
    return "; ".join(_attack(experiment, attack) for attack in experiment.attacks) + "."


def _attack(experiment: Experiment, attack: AttackSpec) -> str:
    options = ", ".join(_named(attack.options))
    words = (
        f"{attack.label}: {attack.evaluations:,} gradient evaluations a probe, {_counted(attack.restarts, 'restart')}"
    )
    real_round = experiment.victims.real_round
    if real_round is not None:
        words += f"; {real_round.evaluations or attack.evaluations:,} on the message of a real round"
    return words + (f" ({options})" if options else "")


def _named(options: Mapping[str, Any]) -> Iterator[str]:
    """Each option and its value; those of an inner attack among them."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        else:
            yield f"{name} {value}"


def victims(experiment: Experiment) -> str:
    """Which images are attacked."""
    wanted = experiment.victims
    sentences = []
    for probe in wanted.probes:
        sentences.append(
            f"Probes: {probe.count} images of the split of victims, drawn in secret, the same at every round and"
            f" under every defense; each is the only image of one more step from that round's weights."
        )
    if wanted.real_round is not None:
        sentences.append(
            f"Real rounds: {wanted.real_round.images} of the images that a client trained on in that round, drawn in"
            " secret; the message is of all of them."
        )
    treatment = "as they are" if wanted.raw else "with a small secret crop and jitter"
    return " ".join([*sentences, f"The images are {treatment}. {_rounds_attacked(experiment)}"])


def _rounds_attacked(experiment: Experiment) -> str:
    attacked = []
    for federation in experiment.federations:
        numbers, rounds = federation.snapshot_rounds, federation.algorithm.rounds
        which = "of every round" if len(numbers) == rounds else f"of rounds {', '.join(map(str, numbers))} (from 0)"
        attacked.append(f"{which} under {federation.algorithm.name}")
    return f"Attacked is the message {', and '.join(attacked)}."


def departures(experiment: Experiment, network: NetworkName, dataset: Dataset) -> Iterator[str]:
    """What is smaller than in the paper or otherwise, a sentence each."""
    task = find_task(experiment.federations[0].task)
    if dataset.name != DATASETS[network]:
        yield (
            f"{dataset.name} ({len(dataset.training):,} training images, {dataset.class_count} classes) stands in for"
            f" {DATASETS[network]}."
        )
    if task.model != MODELS[network]:
        yield f"The network is {task.model}, not {MODELS[network]}."
    for federation in experiment.federations:
        algorithm = federation.algorithm
        per_client = len(dataset.training) / algorithm.clients
        seen = (algorithm.steps or 0) * algorithm.batch_size
        if algorithm.steps is not None and seen < per_client:
            yield (
                f"{algorithm.name}: a round is {algorithm.steps} steps, {seen / per_client:.2g} of an epoch of a client;"
                f" all rounds together are {algorithm.rounds * seen / per_client:.2g} epochs."
            )
        if len(federation.snapshot_rounds) < algorithm.rounds:
            yield (
                f"{algorithm.name}: the server attacks after {len(federation.snapshot_rounds)} of {algorithm.rounds}"
                " rounds, not after every epoch."
            )
    for attack in experiment.attacks:
        if attack.evaluations < ATTACK_EVALUATIONS:
            yield f"{attack.label} has {attack.evaluations:,} gradient evaluations of the published {ATTACK_EVALUATIONS:,}."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
