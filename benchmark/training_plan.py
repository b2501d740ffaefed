"""What decides a training: configuration, data, code and secrets, and where its artefact stands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from benchmark.artefacts import Plan, digest, source_digest
from benchmark.experiment import Algorithm, DefenseSpec, FederationSpec
from benchmark.regimes import KeyedImageVictims, ProbeVictims, Regime, Victims
from benchmark.training_files import snapshot_name
from benchmark.victims import chosen_in_secret
from benchmark.workspace import Workspace
from defenses.base import Defense
from federation.errors import DataError
from federation.messages import client_name
from federation.models import MODELS, ModelBuilder
from federation.network import Network
from federation.partition import partition
from federation.secret_root import SecretRoot
from federation.seeds import numpy_generator, seed_for
from federation.tasks import find_task
from federation.training import LocalTraining
from federation.weights import Weights


@dataclass(frozen=True)
class TrainingPlan(Plan):
    """Everything that decides a training, and where its artefact stands.

    Attributes:
        workspace: the run.
        federation: task, algorithm and snapshots.
        defense_spec: which defense.
        victims: which victims the snapshots keep.
        seed: seeds data division, initial weights and batches; never keys or the choice of victims.
    """

    workspace: Workspace
    federation: FederationSpec
    defense_spec: DefenseSpec
    victims: Victims
    seed: int

    @property
    def task(self) -> str:
        """The task's name."""
        return self.federation.task

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm's configuration."""
        return self.federation.algorithm

    @cached_property
    def identifier(self) -> str:
        """The content address: configuration, code, data, and the fingerprint of the secret root."""
        return digest(
            "training",
            self.federation.model_dump(mode="json", exclude={"defenses", "references", "attacks"}),
            self.defense_spec.model_dump(mode="json"),
            self.victims.model_dump(mode="json"),
            self.seed,
            self.workspace.dataset(self.task).sha256,
            self.workspace.root_fingerprint,
            self.workspace.code.trainings,
            self.stage_digests(),
            source_digest(self._model_builder),
            *self.workspace.device_parts,
        )

    def check(self) -> None:
        """Raise UsageError or DataError for what cannot be divided, defended or attacked: before anything long begins."""
        self.defense.claims(self.network)
        assert all(len(shard) for shard in self.shards), "a division leaves no client empty"
        for probe, snapshot in itertools.product(self.victims.probes, self.federation.snapshot_rounds):
            self.probe_indices(probe, snapshot)
        if self.victims.keyed_image is not None:
            for snapshot in self.federation.snapshot_rounds:
                self.keyed_image_indices(self.victims.keyed_image, snapshot)

    def stage_digests(self) -> list[str]:
        """The hashes of the files that the defense's stages come from."""
        return [source_digest(stage) for stage in getattr(self.defense, "stages", (self.defense,))]

    @property
    def directory(self) -> Path:
        """Where the artefact stands."""
        return self.workspace.artefacts / "trainings" / self.identifier

    @cached_property
    def defense(self) -> Defense:
        """The defense."""
        return self.defense_spec.build()

    @cached_property
    def network(self) -> Network:
        """The public architecture."""
        dataset = self.workspace.dataset(self.task)
        image_shape, class_count = dataset.image_shape, dataset.class_count
        # an observation holds the network: the builder must not hold the data set
        return Network(partial(self._model_builder, image_shape, class_count, seed=0), image_shape, class_count)

    @property
    def _model_builder(self) -> ModelBuilder:
        task = find_task(self.task)
        return task.build if task.build is not None else MODELS.get(task.model)

    @property
    def clients(self) -> tuple[str, ...]:
        """All clients, by wire name."""
        return tuple(client_name(index) for index in range(self.algorithm.clients))

    @property
    def colluder(self) -> str:
        """The client that is curious or colludes: the last one. Victims are other clients where there are any."""
        return self.clients[-1]

    def parties_root(self) -> tuple[str | int, ...]:
        """The labels under which this training's keys derive from the run's secret root."""
        return "federation", self.task, self.defense_spec.name, self.seed

    @cached_property
    def shards(self) -> list[Tensor]:
        """Which images of the training split each client holds."""
        options = dict(self.algorithm.partition)
        kind = options.pop("kind")
        labels = self.workspace.dataset(self.task).training.labels
        generator = numpy_generator("partition", self.seed)
        return partition(kind, labels, self.algorithm.clients, generator=generator, **options)

    def probe_training(self, probe: ProbeVictims) -> LocalTraining:
        """The victim's local training in a probe: in the regime of the probe and the precision of the federation."""
        return replace(probe.local, precision=self.algorithm.precision)

    def initial_weights(self) -> Weights:
        """The weights of round 0."""
        dataset, task = self.workspace.dataset(self.task), find_task(self.task)
        model = task.build_model(dataset, seed=seed_for("initial weights", self.seed))
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def probe_numbers(self, probe: ProbeVictims) -> range:
        """The numbers of a regime's probes among all that are played from a checkpoint."""
        regimes = self.victims.probes
        first = sum(earlier.count for earlier in regimes[: regimes.index(probe)])
        return range(first, first + probe.count)

    def probe_indices(self, probe: ProbeVictims, snapshot: int) -> Tensor:
        """Images of the victims split that a snapshot's probes use: int64 [count, batch].

        They are the same at every snapshot and for every seed, unless an attack sees the probes of several snapshots: then
        they are others at each and, since there can be few at a time, of every seed.
        """
        words = f"{probe.count} probes of {probe.batch} images"
        return self._victim_images("probe victims", words, probe.count * probe.batch, snapshot).view(-1, probe.batch)

    def keyed_image_indices(self, victims: KeyedImageVictims, snapshot: int) -> Tensor:
        """Images of the victims split that are sent in keyed form at a snapshot: int64 [count]; chosen as for probes."""
        return self._victim_images("keyed images", f"{victims.count} keyed images", victims.count, snapshot)

    def _victim_images(self, label: str, words: str, count: int, snapshot: int) -> Tensor:
        """`count` images of the victims split that a snapshot uses, int64; raises DataError where there are too few."""
        available = len(self.workspace.dataset(self.task).victims)
        spanning = self.victims.history == "so-far"
        rounds = self.federation.snapshot_rounds if spanning else (snapshot,)
        if len(rounds) * count > available:
            times = f"{len(rounds)} times " if len(rounds) > 1 else ""
            raise DataError(f"{self.task}: {times}{words} need more than its {available} victims")
        root = self.workspace.root.derive(label, self.task, *([self.seed] if spanning else []))
        chosen = chosen_in_secret(torch.arange(available), len(rounds) * count, root)
        return chosen.view(len(rounds), count)[rounds.index(snapshot)]

    def inference_root(self, snapshot: int) -> SecretRoot:
        """What the keys derive from under which images are sent at a snapshot: those of their owner, of nobody else."""
        return self.workspace.root.derive("inference", self.task, self.defense_spec.name, self.seed, snapshot)

    def rounds_seen_at(self, snapshot: int) -> tuple[int, ...]:
        """The snapshots whose observed rounds an attack at this one is shown, in order, itself last."""
        if self.victims.history == "snapshot":
            return (snapshot,)
        return (*(number for number in self.federation.snapshot_rounds if number < snapshot), snapshot)


def observed_rounds(plan: TrainingPlan, regime: Regime, snapshot: int) -> Iterator[str]:
    """The names of the observed rounds of one snapshot and regime of victims."""
    match regime:
        case ProbeVictims():
            numbers = plan.probe_numbers(regime)
        case KeyedImageVictims():
            numbers = range(regime.count)
        case _:
            numbers = range(1)
    yield from (snapshot_name(regime.kind, snapshot, number) for number in numbers)
