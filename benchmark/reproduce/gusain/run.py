"""The reproduction from experiments to stored result: the harness runs each network, then keyed images are classified."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmark.artefacts import digest
from benchmark.experiment import Experiment
from benchmark.harness import Engine, Progress, run_experiment, training_plans
from benchmark.narrowing import narrowed
from benchmark.reproduce.gusain import printed, scales
from benchmark.reproduce.gusain.deviations import deviations
from benchmark.reproduce.gusain.inference import CHOICES, SHOWN, InferenceFindings, measure_once
from benchmark.store import UNDEFENDED, Manifest, RunTables, read_run
from benchmark.store.gusain import (
    GusainResult,
    InferenceRefusal,
    InferenceRow,
    NetworkName,
    NetworkResult,
    Scale,
    write_gusain,
)
from benchmark.training_plan import TrainingPlan
from benchmark.workspace import Workspace


@dataclass(frozen=True)
class Options:
    """What of the paper is computed, and how large.

    Attributes:
        scale: which size.
        networks: which of its networks.
        seeds: in place of the experiments' own; empty for these.
    """

    scale: Scale
    networks: tuple[NetworkName, ...]
    seeds: tuple[int, ...] = ()

    def experiment(self, network: NetworkName) -> Experiment:
        """The experiment of one network."""
        return narrowed(scales.experiment_of(self.scale, network), seeds=self.seeds)


def reproduce(workspace: Workspace, options: Options, *, engine: Engine, progress: Progress) -> GusainResult:
    """Run every network's experiment in a folder of its own below the workspace's, and write the result beside them.

    What an earlier, interrupted call finished is taken as it is.

    Raises:
        KeyholeError: for data that is missing, training that fails, workers that die; finished work stays.
    """
    started = time.perf_counter()
    networks: list[NetworkResult] = []
    runs: dict[NetworkName, RunTables] = {}
    for network in options.networks:
        own = replace(workspace, directory=workspace.directory / network)
        experiment = options.experiment(network)
        own.directory.mkdir(parents=True, exist_ok=True)
        run_experiment(experiment, own, progress=progress, engine=engine)
        runs[network] = read_run(own.directory)
        plan = _in_clear(training_plans(experiment, own))
        findings = _inference(plan, runs[network], workspace, engine, progress)
        networks.append(_network_result(network, experiment, plan, findings))
    result = GusainResult(
        manifest=_manifest(options, runs),
        scale=options.scale,
        label=scales.LABELS[options.scale],
        seeds=sorted({int(seed) for run in runs.values() for seed in run.trainings["seed"]}),
        entries=list(printed.TABLE_4_1),
        readers=list(printed.READERS),
        networks=networks,
        deviations=[*deviations(runs, networks), *printed.ERRATA],
        seconds=time.perf_counter() - started,
    )
    write_gusain(workspace.directory, result)
    return result


def _in_clear(plans: Sequence[TrainingPlan]) -> TrainingPlan:
    """The first training in clear: FedAvg's, of the first seed."""
    return next(plan for plan in plans if plan.defense_spec.name == UNDEFENDED)


def _inference(
    plan: TrainingPlan, run: RunTables, workspace: Workspace, engine: Engine, progress: Progress
) -> list[InferenceFindings]:
    """Keyed images through the network that was trained in clear, under each choice of keys."""
    progress.begin("encrypted inference", len(CHOICES))
    victims = tuple(_attacked(run, plan))
    jobs = [
        (measure_once, (plan, choice, workspace.directory, victims if choice == SHOWN else ())) for choice in CHOICES
    ]
    found: dict[int, InferenceFindings] = {}
    for index, findings in engine.run(jobs):
        found[index] = findings
        progress.done(f"{plan.task} {CHOICES[index].words}")
    return [found[index] for index in range(len(CHOICES))]


def _attacked(run: RunTables, plan: TrainingPlan) -> Iterator[str]:
    """The attacked images of the plan's seed as PNG, relative to the reproduction's folder, each once."""
    images = run.images.merge(run.cells[["cell", "seed"]], on="cell")
    for name in sorted(set(images.loc[images["seed"] == plan.seed, "original"])):
        yield f"{run.directory.name}/{name}"


def _network_result(
    network: NetworkName, experiment: Experiment, plan: TrainingPlan, findings: Sequence[InferenceFindings]
) -> NetworkResult:
    dataset = plan.workspace.dataset(plan.task)
    outcomes = [one.outcome for one in findings]
    return NetworkResult(
        network=network,
        title=printed.TITLES[network],
        folder=network,
        task=plan.task,
        setting=scales.setting(experiment, dataset),
        departures=list(scales.departures(experiment, network, dataset)),
        training=scales.training(experiment),
        budget=scales.budget(experiment),
        victims=scales.victims(experiment),
        inference=[outcome for outcome in outcomes if isinstance(outcome, InferenceRow)],
        refusals=[outcome for outcome in outcomes if isinstance(outcome, InferenceRefusal)],
        examples=[example for one in findings for example in one.examples],
        encrypted_victims=[victim for one in findings for victim in one.victims],
    )


def _manifest(options: Options, runs: Mapping[NetworkName, RunTables]) -> Manifest:
    """The last run's, with the reproduction's own name, configuration and all its data."""
    manifests = {network: run.manifest for network, run in runs.items()}
    return replace(
        list(manifests.values())[-1],
        name="gusain",
        preset=scales.LABELS[options.scale],
        config={"scale": options.scale, "experiments": {name: digest(one.config) for name, one in manifests.items()}},
        datasets={name: sha256 for one in manifests.values() for name, sha256 in one.datasets.items()},
        tables={},
    )
