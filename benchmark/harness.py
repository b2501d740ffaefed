"""The harness: an experiment in, a run's tables out. Trainings first, then cells; finished work is never repeated."""

from __future__ import annotations

import contextlib
import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args

from benchmark.cells import Cell, CellResult, run_cell
from benchmark.controls import CONTROL_ADVERSARY, control_adversary, with_undefended
from benchmark.experiment import AttackSpec, Experiment
from benchmark.metrics.trunk import TrunkUnavailableError, load_trunk
from benchmark.provenance import hardware, library_versions, source_revision
from benchmark.references import Reference, run_reference
from benchmark.regimes import Regime
from benchmark.store import UNDEFENDED, CellRow, ImageRow, Manifest, Role, Run, TrainingRow
from benchmark.training_plan import TrainingPlan
from benchmark.trainings import run_training
from benchmark.workspace import Workspace, ensure_root
from federation.threat import Adversary, parse_adversary

Result = TypeVar("Result")


class Progress(Protocol):
    """Told of what is being done; a terminal shows a bar, a log gets lines."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many jobs begins."""
        ...

    def done(self, label: str) -> None:
        """A job of the stage ended."""
        ...


class Engine(Protocol):
    """Runs jobs, here or elsewhere."""

    def run(self, jobs: Sequence[tuple[Callable[..., Result], tuple[Any, ...]]]) -> Iterator[tuple[int, Result]]:
        """Yield (index of the job, its result) as jobs end."""
        ...


@dataclass(frozen=True)
class CellGroup:
    """Cells that differ in the adversary alone. One job runs them one after the other, so that those to whom everything
    looks the same share one run of the attack."""

    plan: TrainingPlan
    attack: AttackSpec
    victims: Regime
    snapshot: int
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        """For progress."""
        where = f"{self.plan.task} {self.plan.defense_spec.name}"
        return f"{where} {self.attack.label} {self.victims.label} round {self.snapshot}"


def run_experiment(experiment: Experiment, workspace: Workspace, *, progress: Progress, engine: Engine) -> Path:
    """Run an experiment to its end and write the run's tables; returns the run's folder.

    What an earlier, interrupted run of the same experiment finished is taken as it is.

    Raises:
        KeyholeError: for data that is missing, training that fails, workers that die; finished work stays.
    """
    ensure_root(workspace.root_file)
    _fetch_trunk(workspace)
    plans = training_plans(experiment, workspace)
    for plan in plans:
        plan.check()
    trainings = _train(plans, experiment, engine, progress)
    groups = cell_groups(experiment, plans)
    results = _run_cells(groups, engine, progress)
    cells, images = _tables(results)
    Run(workspace.directory).write(trainings, cells, images, _manifest(experiment, workspace, plans))
    return workspace.directory


def training_plans(experiment: Experiment, workspace: Workspace) -> list[TrainingPlan]:
    """Every training of the experiment, plain among them."""
    return [
        TrainingPlan(workspace, federation, defense, experiment.victims, seed)
        for federation in experiment.federations
        for seed in experiment.seeds
        for defense in with_undefended(federation.defenses)
    ]


def cell_groups(experiment: Experiment, plans: Sequence[TrainingPlan]) -> list[CellGroup]:
    """Every cell of the experiment, with the positive controls that it needs."""
    adversaries = [parse_adversary(name) for name in experiment.adversaries]
    groups = []
    for plan in plans:
        for victims, snapshot in itertools.product(experiment.victims.regimes, plan.federation.snapshot_rounds):
            for attack in experiment.attacks_on(plan.federation, victims.kind):
                cells = [
                    Cell(plan, adversary, attack, victims, snapshot, experiment.oracles, role)
                    for adversary, role in _with_control(adversaries, plan)
                ]
                groups.append(CellGroup(plan, attack, victims, snapshot, tuple(cells)))
    return groups


def _with_control(adversaries: list[Adversary], plan: TrainingPlan) -> list[tuple[Adversary, Role]]:
    """The adversaries that look at a defense, and on `plain` the one of the positive control, wanted or not."""
    looking: list[tuple[Adversary, Role]] = [(adversary, "attack") for adversary in adversaries]
    if plan.defense_spec.name != UNDEFENDED or CONTROL_ADVERSARY in adversaries:
        return looking
    return [(CONTROL_ADVERSARY, "positive control"), *looking]


def run_group(group: CellGroup, controls: dict[str, str]) -> list[CellResult]:
    """Run a group's cells in order; `controls` names each cell's positive control."""
    return [run_cell(cell, controls[cell.identifier]) for cell in group.cells]


def _train(
    plans: Sequence[TrainingPlan], experiment: Experiment, engine: Engine, progress: Progress
) -> list[TrainingRow]:
    jobs: list[tuple[Callable[..., TrainingRow], tuple[Any, ...]]] = [(run_training, (plan,)) for plan in plans]
    labels = [f"{plan.task} {plan.defense_spec.name} seed {plan.seed}" for plan in plans]
    for plan in plans:
        if plan.defense_spec.name == UNDEFENDED and plan.federation.references:
            for reference in get_args(Reference):
                jobs.append((run_reference, (plan, reference)))
                labels.append(f"{plan.task} {reference} seed {plan.seed}")
    return _run_all("training", jobs, labels, engine, progress)


def _run_cells(groups: Sequence[CellGroup], engine: Engine, progress: Progress) -> list[CellResult]:
    controls = _controls(groups)
    jobs = [
        (run_group, (group, {cell.identifier: controls[cell.identifier] for cell in group.cells})) for group in groups
    ]
    results = _run_all("attacking", jobs, [group.label for group in groups], engine, progress)
    return [result for group in results for result in group]


def _controls(groups: Sequence[CellGroup]) -> dict[str, str]:
    """Each cell's positive control: the same attack on the undefended update of the same seed, snapshot and victims."""
    plain: dict[tuple[Any, ...], str] = {}
    for group in groups:
        for cell in group.cells:
            if cell.plan.defense_spec.name == UNDEFENDED and cell.adversary == control_adversary(
                cell.attack, cell.adversary
            ):
                plain[_control_key(cell)] = cell.identifier
    found = {cell.identifier: plain[_control_key(cell)] for group in groups for cell in group.cells}
    figures_only = {cell.identifier for group in groups for cell in group.cells if cell.attack.figures_only}
    return {cell: "" if control == cell or cell in figures_only else control for cell, control in found.items()}


def _control_key(cell: Cell) -> tuple[Any, ...]:
    plan = cell.plan
    return (
        plan.task, plan.algorithm.label, plan.seed, cell.attack_spec.model_dump_json(), cell.regime, cell.snapshot,
        control_adversary(cell.attack, cell.adversary).name,
    )  # fmt: skip


def _run_all(
    stage: str,
    jobs: Sequence[tuple[Callable[..., Result], tuple[Any, ...]]],
    labels: Sequence[str],
    engine: Engine,
    progress: Progress,
) -> list[Result]:
    progress.begin(stage, len(jobs))
    results: dict[int, Result] = {}
    for index, result in engine.run(jobs):
        results[index] = result
        progress.done(labels[index])
    return [results[index] for index in range(len(jobs))]


def _tables(results: Sequence[CellResult]) -> tuple[list[CellRow], list[ImageRow]]:
    cells: dict[str, CellRow] = {}
    images: list[ImageRow] = []
    for result in results:
        if result.cell.cell not in cells:
            cells[result.cell.cell] = result.cell
            images += result.images
    return list(cells.values()), images


def _fetch_trunk(workspace: Workspace) -> None:
    """Have LPIPS's trunk at hand before workers look for it; raises DataError for a given path that is no trunk."""
    with contextlib.suppress(TrunkUnavailableError):  # then the column stays empty, with the reason beside it
        load_trunk(workspace.lpips_trunk, download=True)


def _manifest(experiment: Experiment, workspace: Workspace, plans: Sequence[TrainingPlan]) -> Manifest:
    commit, dirty = source_revision()
    try:
        trunk = load_trunk(workspace.lpips_trunk, download=False).sha256
    except TrunkUnavailableError:
        trunk = None
    return Manifest(
        name=experiment.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        preset=experiment.preset,
        config=experiment.model_dump(mode="json"),
        versions=library_versions(),
        git_commit=commit,
        git_dirty=dirty,
        hardware=hardware(workspace.device),
        datasets={workspace.dataset(plan.task).name: workspace.dataset(plan.task).sha256 for plan in plans},
        lpips_trunk=trunk,
    )
