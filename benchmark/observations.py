"""From a training's transcripts to what one adversary observes: reading, decoding, and nothing else handed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import overload

import torch

from benchmark.regimes import KeyedImageVictims, ProbeVictims, Regime
from benchmark.served_images import ServedImages
from benchmark.training_files import Truth, check_observed, load_weights
from benchmark.training_plan import TrainingPlan, observed_rounds
from federation.messages import Transcript
from federation.protocol import Parties
from federation.rounds import Federation
from federation.threat import (
    Adversary,
    Auxiliary,
    Knowledge,
    Nothing,
    Observation,
    Oracle,
    Position,
    TrainingFacts,
    Victim,
    View,
    parties_of,
    readable,
)
from federation.training import LocalTraining
from federation.weights import Weights, flatten, floating


class ObservedRounds(Sequence[Observation]):
    """The history that an attack reads: one observation a round or keyed image, loaded and decoded when it is looked at.

    It holds the rounds of one snapshot, or where the plan's victims have the history "so-far" those of all snapshots up
    to it. Victims are of that snapshot alone.

    Args:
        plan: the training.
        adversary: whose eyes.
        regime: which victims.
        snapshot: the checkpoint's round.
        oracles: privileges that the experiment grants.
    """

    def __init__(
        self, plan: TrainingPlan, adversary: Adversary, regime: Regime, snapshot: int, oracles: tuple[Oracle, ...] = ()
    ) -> None:
        self._plan, self._adversary, self._regime, self._snapshot = plan, adversary, regime, snapshot
        self._rounds = [
            (number, name) for number in plan.rounds_seen_at(snapshot) for name in observed_rounds(plan, regime, number)
        ]
        for _, name in self._rounds:
            check_observed(plan.directory, name)
        self._oracles = oracles
        self._loaded: dict[int, Observation] = {}
        self._states = {number: _Keys(plan, number) for number, _ in self._rounds}
        self._served = {number: ServedImages(plan, number) for number, _ in self._rounds}
        self._holds = parties_of(adversary.position, plan.colluder)

    def __len__(self) -> int:
        return len(self._rounds)

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
        return Truth.load(self._plan.directory / f"{self._rounds[index][1]}.truth")

    def score_key_claims(self, claims: Mapping[str, torch.Tensor], victim: Victim) -> Mapping[str, float]:
        """How right claims about keys are, by the keys of the round of a victim: for the referee.

        Raises:
            MalformedKeyClaim: for claims that cannot be about keys of this defense.
        """
        number, _ = self._rounds[victim.observation]
        if isinstance(self._regime, KeyedImageVictims):
            return self._served[number].score_key_claims(claims)
        keys = self._states[number]
        return self._plan.defense.score_key_claims(
            claims,
            network=self._plan.network,
            victim=victim.sender,
            held=keys.of(self._holds),
            keys=keys.of((victim.sender,)).get(victim.sender, b""),
        )

    def victims(self) -> list[Victim]:
        """The victims, one an observed round or keyed image of the snapshot."""
        return [
            Victim(f"seed{self._plan.seed}/{name}", index, self._victim_sender(name), len(self.truth(index).labels))
            for index, (number, name) in enumerate(self._rounds)
            if number == self._snapshot
        ]

    def _victim_sender(self, name: str) -> str:
        file = self._plan.directory / f"{name}.victim"
        return file.read_text() if file.exists() else self._plan.clients[0]

    def _observe(self, position: int) -> Observation:
        plan, (number, name) = self._plan, self._rounds[position]
        position_of = self._adversary.position
        transcript = readable(self._sent(number, name), position_of, plan.colluder)
        sender = self._victim_sender(name)
        counts, local = self._training_of(name)
        dataset = plan.workspace.dataset(plan.task)
        adaptive = self._adversary.knowledge is Knowledge.ADAPTIVE
        return Observation(
            round=number,
            transcript=transcript,
            held=self._states[number].of(self._holds),
            view=self._view(number, transcript, counts),
            scheme=plan.defense.scheme() if adaptive else {},
            facts=TrainingFacts(
                local.learning_rate,
                local.batch_size,
                local.epochs,
                local.step_count(counts[sender]),
                counts,
                precision=local.precision,
            ),
            network=plan.network,
            mean=dataset.mean,
            deviation=dataset.deviation,
            auxiliary=self._auxiliary if adaptive else None,
            oracles=self._granted(position),
            own_updates=self._own_updates(name),
        )

    def _sent(self, number: int, name: str) -> Transcript:
        """Every envelope of an observed round, or those by which a keyed image was sent."""
        if isinstance(self._regime, KeyedImageVictims):
            return self._served[number].transcript(name)
        return Transcript.load(self._plan.directory / f"{name}.transcript")

    def _view(self, number: int, transcript: Transcript, counts: Mapping[str, int]) -> View:
        """What the envelopes that the position reads amount to with what it holds."""
        plan, position = self._plan, self._adversary.position
        if isinstance(self._regime, KeyedImageVictims):
            if plan.clients[0] in self._holds:
                return Nothing("this position is the owner of the images")
            return self._served[number].view(transcript)
        # the released model is deployed in clear, whatever it travels under: it is read as a client recovers it
        opened_with = (plan.colluder,) if position is Position.AGGREGATE else self._holds
        held = self._states[number].of(opened_with)
        return plan.defense.view(transcript, position, held, network=plan.network, sample_counts=counts)

    @cached_property
    def _auxiliary(self) -> Auxiliary:
        images = self._plan.workspace.dataset(self._plan.task).auxiliary
        return Auxiliary(images.pixels(), images.labels)

    def _own_updates(self, name: str) -> dict[str, Weights]:
        """What the colluder trained in this round, for a position that is the colluder or has it."""
        file, colluder = self._plan.directory / f"{name}.own", self._plan.colluder
        return {colluder: load_weights(file)} if colluder in self._holds and file.exists() else {}

    def _training_of(self, name: str) -> tuple[dict[str, int], LocalTraining]:
        """How many images each client of an observed round trained on, and how."""
        plan, regime = self._plan, self._regime
        if isinstance(regime, ProbeVictims):
            cohort = dict.fromkeys([plan.clients[0], plan.colluder])
            return dict.fromkeys(cohort, regime.batch), plan.probe_training(regime)
        counts = {name: len(shard) for name, shard in zip(plan.clients, plan.shards, strict=True)}
        if isinstance(regime, KeyedImageVictims):
            return counts, plan.algorithm.local
        cohort_names = Transcript.load(plan.directory / f"{name}.transcript").where(
            lambda envelope: envelope.phase == "upload"
        )
        return {envelope.sender: counts[envelope.sender] for envelope in cohort_names}, plan.algorithm.local

    def _granted(self, position: int) -> dict[Oracle, torch.Tensor]:
        granted = {}
        if Oracle.LABELS in self._oracles:
            granted[Oracle.LABELS] = self.truth(position).labels
        if Oracle.INITIAL_MODEL in self._oracles:
            granted[Oracle.INITIAL_MODEL] = flatten(self._plan.initial_weights(), floating(self._plan.network.layout))
        return granted


class _Keys:
    """What each party holds before a round: keys are issued anew from the secret root, when they are asked for."""

    def __init__(self, plan: TrainingPlan, snapshot: int) -> None:
        self._plan, self._snapshot = plan, snapshot

    def of(self, names: Sequence[str]) -> dict[str, bytes]:
        """The serialised state of these parties, of those that hold anything."""
        return {name: state for name in names if (state := self._parties.held(name))}

    @cached_property
    def _parties(self) -> Parties:
        plan = self._plan
        parties = plan.defense.parties(plan.network, plan.clients, plan.workspace.root.derive(*plan.parties_root()))
        Federation(parties, dict.fromkeys(plan.clients, 1), seed=0).issue_keys(self._snapshot, plan.clients)
        return parties
