"""Bundles from the artefacts of a run: what one of its adversaries observed at one snapshot of one training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from attacks.base import Budget
from benchmark.bundles.bundle import Bundle, BundleTruth, Split, VictimTruth
from benchmark.bundles.files import save_bundle
from benchmark.experiment import Experiment, validated
from benchmark.harness import training_plans
from benchmark.observations import ObservedRounds
from benchmark.regimes import KeyedImageVictims, Regime
from benchmark.store import VictimKind, read_manifest
from benchmark.training_files import is_finished
from benchmark.training_plan import TrainingPlan
from benchmark.workspace import Workspace
from federation.errors import DataError, UsageError
from federation.threat import parse_adversary

SPLITS: dict[VictimKind, Split] = {"probe": "victims", "real-round": "training"}
"""Where the victims of each kind that a bundle may hold are from."""


@dataclass(frozen=True)
class Wanted:
    """Which part of a run becomes a bundle.

    Attributes:
        task, defense, adversary: by name.
        regime: the victims' regime as tables name it, such as "probe b1 s1 e1"; "" where the run has one alone.
        snapshot: rounds of training before the attacked message.
        seed: of the training.
        victims: how many, from the first; all where None.
        budget: with which an attack is tried unless another is asked for.
        title: one line for listings.
    """

    task: str
    defense: str
    adversary: str = "server/adaptive"
    regime: str = ""
    snapshot: int = 0
    seed: int = 0
    victims: int | None = None
    budget: Budget = field(default_factory=lambda: Budget(evaluations=400))
    title: str = ""


def bundle_from_run(
    run: Path, wanted: Wanted, directory: Path, secret_root: Path, data_directory: Path | None = None
) -> None:
    """Write a bundle of a finished run.

    Args:
        run: the run's folder.
        wanted: which part of it.
        directory: where the bundle goes.
        secret_root: the file of the run's secret root, from which keys and the victims' images derive.
        data_directory: where data sets that are not embedded stand.

    Raises:
        UsageError: where the run has no such training, adversary or victims.
        DataError: where its artefacts are missing or were made by other code.
    """
    experiment = validated(read_manifest(run).config, str(run))
    workspace = Workspace(run.resolve(), secret_root.resolve(), data_directory)
    write_bundle(directory, _plan(experiment, workspace, wanted), wanted)


def write_bundle(directory: Path, plan: TrainingPlan, wanted: Wanted) -> None:
    """Write a bundle of a finished training; errors as `bundle_from_run`."""
    if not is_finished(plan.directory):
        raise DataError(
            f"{plan.workspace.directory}: no finished training of {plan.task} under {plan.defense_spec.name} by the code "
            "as it is now; run the experiment again"
        )
    if wanted.snapshot not in plan.federation.snapshot_rounds:
        raise UsageError(f"round {wanted.snapshot} is not a snapshot; they are {plan.federation.snapshot_rounds}")
    regime = _regime(plan.victims.regimes, wanted)
    if isinstance(regime, KeyedImageVictims):
        raise UsageError(f"a bundle holds updates, and {regime.label} is none; take another regime of victims")
    history = ObservedRounds(plan, parse_adversary(wanted.adversary), regime, wanted.snapshot)
    dataset, split = plan.workspace.dataset(plan.task), SPLITS[regime.kind]
    bundle, victims = _cut(history, wanted)
    private = plan.workspace.private(plan.task, split, raw=plan.victims.raw)
    save_bundle(directory, bundle, BundleTruth(victims, private, dataset.auxiliary), dataset, split)


def _plan(experiment: Experiment, workspace: Workspace, wanted: Wanted) -> TrainingPlan:
    plans = training_plans(experiment, workspace)
    for plan in plans:
        if (plan.task, plan.defense_spec.name, plan.seed) == (wanted.task, wanted.defense, wanted.seed):
            return plan
    there = ", ".join(f"{plan.task} under {plan.defense_spec.name}, seed {plan.seed}" for plan in plans)
    raise UsageError(
        f"{experiment.name} has no training of {wanted.task} under {wanted.defense}, seed {wanted.seed}; it has {there}"
    )


def _regime(regimes: Sequence[Regime], wanted: Wanted) -> Regime:
    fitting = [regime for regime in regimes if wanted.regime in ("", regime.label)]
    if len(fitting) != 1:
        raise UsageError(f"the regime {wanted.regime!r} is not one of {', '.join(regime.label for regime in regimes)}")
    return fitting[0]


def _cut(history: ObservedRounds, wanted: Wanted) -> tuple[Bundle, tuple[VictimTruth, ...]]:
    """The wanted victims with all observations but those of other victims, and their truth."""
    everyone = history.victims()
    victims = everyone[: wanted.victims]
    left_out = {victim.observation for victim in everyone} - {victim.observation for victim in victims}
    kept = [index for index in range(len(history)) if index not in left_out]
    truths = [history.truth(victim.observation) for victim in victims]
    bundle = Bundle(
        title=wanted.title or f"{wanted.task} under {wanted.defense}, as {wanted.adversary} observes it",
        task=wanted.task,
        defense=wanted.defense,
        adversary=wanted.adversary,
        history=tuple(history[index] for index in kept),
        victims=tuple(replace(victim, observation=kept.index(victim.observation)) for victim in victims),
        budget=wanted.budget,
    )
    return bundle, tuple(VictimTruth(truth.images, truth.labels, truth.indices) for truth in truths)
