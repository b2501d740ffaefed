"""One training under one defense: every round played for real, transcripts and truth kept at the snapshots."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.costs import Traffic, peak_memory, reset_peak_memory
from benchmark.regimes import ProbeVictims
from benchmark.served_images import keep_keyed_images
from benchmark.store import TrainingRow
from benchmark.training_files import Truth, is_finished, load_row, save_row, snapshot_name
from benchmark.training_plan import TrainingPlan
from benchmark.victims import chosen_in_secret
from defenses.base import Magnitudes
from federation.datasets import LabelledImages
from federation.device import computing_on
from federation.files import write_bytes, write_text
from federation.messages import Transcript, tensors_to_bytes
from federation.normalisation import Normalisation
from federation.protocol import ClientParty, RoundRecord
from federation.rounds import Federation, choose_cohort
from federation.seeds import numpy_generator, seed_for, torch_generator
from federation.training import Evaluation, LocalTraining, evaluate, train_locally
from federation.weights import Weights, difference, largest_difference, weighted_mean


def run_training(plan: TrainingPlan) -> TrainingRow:
    """Train, or return the row of the same training where it was finished before.

    Raises:
        TrainingError: where training produced something that is not finite; nothing of it is kept.
    """
    if not is_finished(plan.directory):
        plan.directory.mkdir(parents=True, exist_ok=True)
        with computing_on(plan.workspace.device) as device:
            save_row(_Training(plan, device).run(), plan.directory)
    return load_row(plan.directory)


class _Training:
    """The state of one training while it runs."""

    def __init__(self, plan: TrainingPlan, device: torch.device) -> None:
        self.plan = plan
        workspace, raw = plan.workspace, plan.victims.raw
        self.dataset = workspace.dataset(plan.task)
        self.private = workspace.private(plan.task, "training", raw=raw)
        self.normalise = Normalisation(self.dataset.mean, self.dataset.deviation).apply
        self.model = plan.network.build().to(device)
        root = workspace.root.derive(*plan.parties_root())
        begun = time.perf_counter()
        self.parties = plan.defense.parties(plan.network, plan.clients, root)
        # parties come with the keys that they make for themselves
        keys = time.perf_counter() - begun if self.parties.agent is not None else 0.0
        self.counts = {name: len(shard) for name, shard in zip(plan.clients, plan.shards, strict=True)}
        self.federation = Federation(self.parties, self.counts, seed=seed_for("rounds", plan.seed))
        self.traffic = Traffic()
        self.seconds = {"keys": keys}
        self.errors: list[float] = []
        self.bounds: list[float] = []

    def run(self) -> TrainingRow:
        reset_peak_memory()
        plan, algorithm = self.plan, self.plan.algorithm
        start = self.federation.start(plan.initial_weights())
        self.keys = start.transcript.phase("keys")
        self.seconds["keys"] += start.seconds.get("keys", 0.0)
        evaluations: list[Evaluation] = []
        expected: Weights | None = None
        for number in range(algorithm.rounds):
            cohort = choose_cohort(algorithm.clients, algorithm.fraction, numpy_generator("cohort", plan.seed, number))
            checkpoint = self.parties.server.state
            record = self.federation.run_round(number, cohort, self._local_update(number, algorithm.local))
            self.keys = Transcript(self.keys + record.transcript.phase("keys"))
            reference = record.references[cohort[0]]
            evaluations.append(self._evaluate(reference))
            self._account(record, expected, reference)
            expected = self._expected(record, cohort)
            if number in plan.federation.snapshot_rounds:
                self._keep_real_round(number, record, cohort)
                for probe in plan.victims.probes:
                    self._probe(probe, number, checkpoint)
                if plan.victims.keyed_image is not None:
                    keep_keyed_images(plan, plan.victims.keyed_image, number, reference)
        final = self.federation.recover(self.federation.release(algorithm.rounds, plan.clients[:1])[0])
        evaluations.append(self._evaluate(final))
        self.errors.append(largest_difference(final, expected or final))
        return self._row(evaluations)

    def _evaluate(self, weights: Weights) -> Evaluation:
        test = self.dataset.test
        return evaluate(self.model, weights, self.normalise(test.pixels()), test.labels, self.dataset.class_count)

    def _local_update(self, number: int, local: LocalTraining) -> LocalUpdateOnShards:
        return LocalUpdateOnShards(self, number, local)

    def _expected(self, record: RoundRecord, cohort: tuple[str, ...]) -> Weights:
        """The plain weighted mean of what the clients trained, and the defense's bound on the distance to it."""
        total = sum(self.counts[name] for name in cohort)
        trained = [record.trained[name] for name in cohort]
        floats = [[t for t in weights.values() if t.is_floating_point()] for weights in trained]
        updates = [difference(weights, record.references[name]) for name, weights in record.trained.items()]
        magnitudes = Magnitudes(
            weights=max(float(t.abs().amax()) for tensors in floats for t in tensors),
            update=max(float(t.abs().amax()) for update in updates for t in update.values() if t.is_floating_point()),
            clients=len(cohort),
        )
        self.bounds.append(self.plan.defense.stated_error(magnitudes))
        return weighted_mean(self.plan.network.layout, trained, [self.counts[name] / total for name in cohort])

    def _account(self, record: RoundRecord, expected: Weights | None, recovered: Weights) -> None:
        if expected is not None:
            self.errors.append(largest_difference(recovered, expected))
        self.traffic.add(record.transcript)
        for activity, seconds in record.seconds.items():
            self.seconds[activity] = self.seconds.get(activity, 0.0) + seconds

    def _probe(self, probe: ProbeVictims, number: int, checkpoint: bytes) -> None:
        """Play one extra round per probe from the round's global message, and keep its transcript and truth."""
        plan = self.plan
        images = plan.workspace.private(plan.task, "victims", raw=plan.victims.raw)
        victim, cohort = plan.clients[0], tuple(dict.fromkeys([plan.clients[0], plan.colluder]))
        counts = dict.fromkeys(cohort, probe.batch)
        federation = Federation(self.parties, counts, seed=seed_for("probes", plan.seed))
        for index, rows in zip(plan.probe_numbers(probe), plan.probe_indices(probe, number), strict=True):
            shards = {name: self._probe_shard(name, number, index, probe.batch) for name in cohort}
            shards[victim] = images.select(rows)
            update = self._update_on(shards, plan.probe_training(probe), number, f"probe {index}")
            with federation.rehearsal(checkpoint):
                record = federation.run_round(number, cohort, update, variant=1 + index)
                released = federation.release(number, cohort)
            truth = Truth(images.images[rows], images.labels[rows], rows, record.trained[victim])
            self._keep(snapshot_name("probe", number, index), record, released, truth)

    def _probe_shard(self, name: str, number: int, index: int, count: int) -> LabelledImages:
        """What a client that is not the victim trains on in a probe: a few of its own images."""
        shard = self.plan.shards[self.plan.clients.index(name)]
        generator = torch_generator("probe company", self.plan.seed, name, number, index)
        rows = shard[torch.randperm(len(shard), generator=generator)[:count]]
        return self.private.select(rows)

    def _keep_real_round(self, number: int, record: RoundRecord, cohort: tuple[str, ...]) -> None:
        plan, wanted = self.plan, self.plan.victims.real_round
        if wanted is None:
            return
        victim = next((name for name in cohort if name != plan.colluder), cohort[0])
        used = self._used_rows(victim, number)
        root = plan.workspace.root.derive("real-round victims", plan.task, plan.seed, number)
        rows = chosen_in_secret(used, min(wanted.images, len(used)), root)
        truth = Truth(self.private.images[rows], self.private.labels[rows], rows, record.trained[victim])
        released = self.federation.release(number, cohort)
        self._keep(snapshot_name("real-round", number), record, released, truth)
        write_text(plan.directory / f"{snapshot_name('real-round', number)}.victim", victim)

    def _used_rows(self, client: str, number: int) -> Tensor:
        """The rows of the training split that the client's local steps of this round really used."""
        shard, local = self.plan.shards[self.plan.clients.index(client)], self.plan.algorithm.local
        if local.step_count(len(shard)) * local.batch_size >= len(shard):
            return shard
        order = torch.randperm(len(shard), generator=self._batch_generator(client, number, "round"))
        return shard[order[: local.step_count(len(shard)) * local.batch_size]]

    def _keep(self, name: str, record: RoundRecord, released: Transcript, truth: Truth) -> None:
        """Keep an observed round: all keys issued so far, its transcript, the model that it released; truth and own update."""
        directory = self.plan.directory
        played = record.transcript.where(lambda envelope: envelope.phase != "keys")
        Transcript(self.keys + played + released).save(directory / f"{name}.transcript")
        truth.save(directory / f"{name}.truth")
        if self.plan.colluder in record.trained:
            write_bytes(directory / f"{name}.own", tensors_to_bytes(record.trained[self.plan.colluder]))

    def _update_on(
        self, shards: Mapping[str, LabelledImages], local: LocalTraining, number: int, variant: str
    ) -> LocalUpdateOnShards:
        return LocalUpdateOnShards(self, number, local, shards, variant)

    def _batch_generator(self, client: str, number: int, variant: str) -> torch.Generator:
        return torch_generator("batches", self.plan.seed, client, number, variant)

    def shard_images(self, client: str) -> LabelledImages:
        return self.private.select(self.plan.shards[self.plan.clients.index(client)])

    def _row(self, evaluations: list[Evaluation]) -> TrainingRow:
        plan, final = self.plan, evaluations[-1]
        rounds = plan.algorithm.rounds

        def seconds(activity: str) -> float:
            return self.seconds.get(activity, 0.0) / rounds

        return TrainingRow(
            training=plan.identifier,
            task=plan.task,
            algorithm=plan.algorithm.label,
            defense=plan.defense_spec.name,
            seed=plan.seed,
            reference="",
            rounds=rounds,
            clients=plan.algorithm.clients,
            accuracy_by_round=[evaluation.accuracy for evaluation in evaluations],
            **evaluation_columns(final, self.dataset.class_count),
            bytes_up=self.traffic.up_per_client_and_round,
            bytes_down=self.traffic.down_per_client_and_round,
            key_bytes=sum(envelope.size for envelope in self.keys if envelope.receiver == plan.clients[0]),
            plain_share=plan.defense.plain_share(plan.network),
            seconds_keys=seconds("keys"),
            seconds_train=seconds("train"),
            seconds_protect=seconds("protect") + seconds("exchange"),
            seconds_aggregate=seconds("aggregate"),
            seconds_recover=seconds("recover"),
            peak_memory_bytes=peak_memory(),
            aggregation_error=max(self.errors),
            stated_error=max(self.bounds),
            key_holders=plan.defense.key_holders,
            collusion_bound=plan.defense.collusion_bound,
            dataset=self.dataset.name,
            provenance=self.dataset.provenance.rstrip("."),
            classes=list(self.dataset.classes),
        )


class LocalUpdateOnShards:
    """Trains a client of a running training on its shard, or on a shard given for a probe."""

    def __init__(
        self,
        training: _Training,
        number: int,
        local: LocalTraining,
        shards: Mapping[str, LabelledImages] | None = None,
        variant: str = "round",
    ) -> None:
        self._training, self._number, self._local = training, number, local
        self._shards, self._variant = shards, variant

    def __call__(self, client: ClientParty, reference: Weights) -> Weights:
        training = self._training
        shard = self._shards[client.name] if self._shards else training.shard_images(client.name)
        return train_locally(
            training.model,
            reference,
            training.normalise(shard.pixels()),
            shard.labels,
            self._local,
            hooks=client,
            generator=training._batch_generator(client.name, self._number, self._variant),
            where=f"{training.plan.task}, {training.plan.defense_spec.name}, round {self._number}, {client.name}",
        )


def evaluation_columns(evaluation: Evaluation, class_count: int) -> dict[str, Any]:
    """The columns of a training row that come from the final evaluation."""
    return {
        "accuracy": evaluation.accuracy,
        "confusion": evaluation.confusion.flatten().tolist(),
        "class_count": class_count,
        "correct": np.packbits(evaluation.correct.numpy()).tobytes(),
        "test_count": len(evaluation.correct),
    }
