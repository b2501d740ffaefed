"""From a training's transcripts to what one adversary observes: reading, decoding, and nothing else handed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

from benchmark.training_files import Truth, check_observed
from benchmark.training_plan import TrainingPlan, observed_rounds
from federation.messages import Transcript
from federation.rounds import Federation
from federation.threat import (
    Adversary,
    Auxiliary,
    Knowledge,
    Observation,
    Oracle,
    TrainingFacts,
    Victim,
    parties_of,
    readable,
)
from federation.training import LocalTraining


class ObservedRounds(Sequence[Observation]):
    """The history that an attack reads: one observation a round, loaded and decoded when it is looked at.

    Args:
        plan: the training.
        adversary: whose eyes.
        kind: "probe" or "real-round".
        snapshot: the checkpoint's round.
        oracles: privileges that the experiment grants.
    """

    def __init__(
        self, plan: TrainingPlan, adversary: Adversary, kind: str, snapshot: int, oracles: tuple[Oracle, ...] = ()
    ) -> None:
        self._plan, self._adversary, self._kind, self._snapshot = plan, adversary, kind, snapshot
        self._names = list(observed_rounds(plan, kind, snapshot))
        for name in self._names:
            check_observed(plan.directory, name)
        self._oracles = oracles
        self._loaded: dict[int, Observation] = {}
        self._held = _held_states(plan, adversary, snapshot)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Observation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Observation]: ...
    def __getitem__(self, index: int | slice) -> Observation | list[Observation]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        if position not in self._loaded:
            self._loaded[position] = self._observe(position)
        return self._loaded[position]

    def truth(self, index: int) -> Truth:
        """What the victim of one round really was: for the referee."""
        return Truth.load(self._plan.directory / f"{self._names[index]}.truth")

    def victims(self) -> list[Victim]:
        """The victims, one an observed round."""
        return [
            Victim(f"seed{self._plan.seed}/{name}", index, self._victim_sender(name), len(self.truth(index).labels))
            for index, name in enumerate(self._names)
        ]

    def _victim_sender(self, name: str) -> str:
        file = self._plan.directory / f"{name}.victim"
        return file.read_text() if file.exists() else self._plan.clients[0]

    def _observe(self, position: int) -> Observation:
        plan, name = self._plan, self._names[position]
        position_of = self._adversary.position
        transcript = readable(Transcript.load(plan.directory / f"{name}.transcript"), position_of, plan.colluder)
        sender = self._victim_sender(name)
        counts, local = self._regime(sender)
        view = plan.defense.view(transcript, position_of, self._held, network=plan.network, sample_counts=counts)
        dataset = plan.workspace.dataset(plan.task)
        adaptive = self._adversary.knowledge is Knowledge.ADAPTIVE
        auxiliary = Auxiliary(dataset.auxiliary.pixels(), dataset.auxiliary.labels) if adaptive else None
        return Observation(
            round=self._snapshot,
            transcript=transcript,
            held=self._held,
            view=view,
            scheme=plan.defense.scheme() if adaptive else {},
            facts=TrainingFacts(
                local.learning_rate, local.batch_size, local.epochs, local.step_count(counts[sender]), counts
            ),
            network=plan.network,
            mean=dataset.mean,
            deviation=dataset.deviation,
            auxiliary=auxiliary,
            oracles=self._granted(position),
        )

    def _regime(self, sender: str) -> tuple[dict[str, int], LocalTraining]:
        plan = self._plan
        if self._kind == "probe":
            assert plan.victims.probe is not None, "asked for only where there are probes"
            cohort = dict.fromkeys([plan.clients[0], plan.colluder])
            return dict.fromkeys(cohort, plan.victims.probe.batch), plan.victims.probe.local
        counts = {name: len(shard) for name, shard in zip(plan.clients, plan.shards, strict=True)}
        cohort_names = Transcript.load(plan.directory / f"{self._names[0]}.transcript").where(
            lambda envelope: envelope.phase == "upload"
        )
        return {envelope.sender: counts[envelope.sender] for envelope in cohort_names}, plan.algorithm.local

    def _granted(self, position: int) -> dict[Oracle, torch.Tensor]:
        return {Oracle.LABELS: self.truth(position).labels} if Oracle.LABELS in self._oracles else {}


def _held_states(plan: TrainingPlan, adversary: Adversary, snapshot: int) -> dict[str, bytes]:
    """The serialised state of the parties that a position holds: keys are issued anew from the secret root."""
    names = parties_of(adversary.position, plan.colluder)
    if not names:
        return {}
    parties = plan.defense.parties(plan.network, plan.clients, plan.workspace.root.derive(*plan.parties_root()))
    Federation(parties, dict.fromkeys(plan.clients, 1), seed=0).issue_keys(snapshot, plan.clients)
    return {name: state for name in names if (state := parties.held(name))}
