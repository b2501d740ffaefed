"""Rounds of federated averaging (McMahan 2016, Algorithm 1) as a transcript between parties.

The driver carries envelopes and keeps time; it never looks into a payload. Whatever a party receives was serialised
by its sender and is parsed anew from those bytes.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from federation.errors import MalformedMessage
from federation.messages import SERVER, Envelope, Transcript, client_name
from federation.protocol import ClientParty, Exchange, Moment, Parties, Phase, RoundContext, RoundRecord
from federation.seeds import torch_generator
from federation.weights import Weights

LocalUpdate: TypeAlias = Callable[[ClientParty, Weights], Weights]
"""Trains one client from the weights that it recovered and returns the weights that it trained."""

Wire: TypeAlias = Callable[[bytes], bytes]
"""What arrives of an envelope's bytes: the same, unless somebody on the wire interferes."""


def choose_cohort(clients: int, fraction: float, generator: np.random.Generator) -> tuple[str, ...]:
    """FedAvg's S_t: m = max(C * K, 1) of K clients at random, in index order (C * K rounded down)."""
    count = max(int(fraction * clients + 1e-9), 1)
    return tuple(client_name(index) for index in sorted(generator.choice(clients, size=count, replace=False)))


class _Post:
    """Delivers envelopes by way of their bytes and keeps the transcript."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.delivered: list[Envelope] = []

    def send(self, envelopes: Iterable[Envelope]) -> list[Envelope]:
        arrived = [Envelope.from_bytes(self._wire(envelope.to_bytes())) for envelope in envelopes]
        self.delivered.extend(arrived)
        return arrived


def _one_for_each(receivers: Sequence[str], envelopes: Sequence[Envelope]) -> dict[str, Envelope]:
    """Envelopes by receiver; raises MalformedMessage unless there is exactly one for each."""
    found = [envelope.receiver for envelope in envelopes]
    if sorted(found) != sorted(receivers):
        raise MalformedMessage(
            f"a message for each of {', '.join(receivers)} is due; there are some for {', '.join(found)}"
        )
    return {envelope.receiver: envelope for envelope in envelopes}


class _Clock:
    """Wall-clock seconds per activity."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def running(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start


class Federation:
    """A federation under one defense: parties, and the rounds that they play.

    Args:
        parties: the defense's roles.
        sample_counts: training images per client.
        seed: seeds each party's rounding randomness, by round and party (never its keys).
        wire: called with the bytes of every envelope in turn, returns those that arrive.
    """

    def __init__(self, parties: Parties, sample_counts: Mapping[str, int], *, seed: int, wire: Wire = bytes) -> None:
        self.parties = parties
        self.sample_counts = dict(sample_counts)
        self._seed = seed
        self._wire = wire
        self._latest = 0

    def issue_keys(self, number: int, cohort: Sequence[str]) -> Transcript:
        """Hand out the keys that are due before this round."""
        post = _Post(self._wire)
        self._issue_keys(self._context(number, tuple(cohort), variant=0), post, _Clock())
        return Transcript(post.delivered)

    def start(self, initial: Weights) -> RoundRecord:
        """Keys are issued to all, and the first client hands the protected initial model to the server."""
        names = tuple(self.sample_counts)
        context = self._context(0, names, variant=-1)
        post, clock = _Post(self._wire), _Clock()
        self._issue_keys(context, post, clock)
        first = self.parties.clients[names[0]]
        with clock.running("protect"):
            envelope = first.protect_initial(initial, self._as_party(context, first.name))
        for arrived in post.send([envelope]):
            self.parties.server.adopt(arrived, context)
        return RoundRecord(Transcript(post.delivered), {}, {}, dict(clock.seconds))

    def run_round(
        self, number: int, cohort: Sequence[str], local_update: LocalUpdate, *, variant: int = 0
    ) -> RoundRecord:
        """Play one round: keys, broadcast, local training, upload, aggregation, and the defense's exchanges.

        Args:
            number: the round's number.
            cohort: the clients that take part.
            local_update: trains a client.
            variant: tells apart several rounds with one number (probes), for the rounding randomness.
        """
        context = self._context(number, tuple(cohort), variant)
        parties, post, clock = self.parties, _Post(self._wire), _Clock()
        self._issue_keys(context, post, clock)
        contexts = {name: self._as_party(context, name) for name in cohort}
        broadcast = post.send(parties.server.broadcast(Phase.BROADCAST, cohort, context))
        for name, arrived in _one_for_each(cohort, broadcast).items():
            with clock.running("recover"):
                reference = parties.clients[name].recover(arrived, contexts[name])
            contexts[name] = replace(contexts[name], incoming=arrived, reference=reference)
        self._exchange(Moment.BEFORE_TRAINING, contexts, context, post, clock)
        for name in cohort:
            start = contexts[name].reference
            assert start is not None, "every client of the cohort received the broadcast"
            with clock.running("train"):
                contexts[name] = replace(contexts[name], trained=local_update(parties.clients[name], start))
        self._exchange(Moment.BEFORE_UPLOAD, contexts, context, post, clock)
        uploads = []
        for name in cohort:
            with clock.running("protect"):
                envelope = parties.clients[name].protect(contexts[name])
            uploads += post.send([envelope])
        self._exchange(Moment.AFTER_UPLOAD, contexts, context, post, clock)
        with clock.running("aggregate"):
            parties.server.aggregate(uploads, context)
        return RoundRecord(
            Transcript(post.delivered),
            references={name: contexts[name].reference or {} for name in cohort},
            trained={name: contexts[name].trained or {} for name in cohort},
            seconds=dict(clock.seconds),
        )

    def release(self, number: int, receivers: Sequence[str]) -> Transcript:
        """Send the current global model out once more; who was not there last gets the keys of the latest round first."""
        self.issue_keys(self._latest, receivers)
        context = self._context(number, tuple(receivers), variant=-2)
        released = _Post(self._wire).send(self.parties.server.broadcast(Phase.RELEASE, receivers, context))
        return Transcript(_one_for_each(receivers, released).values())

    def recover(self, envelope: Envelope) -> Weights:
        """What the receiver of a released model recovers from it."""
        context = self._context(envelope.round, (envelope.receiver,), variant=-2)
        client = self.parties.clients[envelope.receiver]
        return client.recover(envelope, self._as_party(context, client.name))

    @contextlib.contextmanager
    def rehearsal(self, checkpoint: bytes) -> Iterator[None]:
        """Rounds inside the block begin from an earlier global message and leave the current one as it was (probes)."""
        before, self.parties.server.state = self.parties.server.state, checkpoint
        try:
            yield
        finally:
            self.parties.server.state = before

    def _context(self, number: int, cohort: tuple[str, ...], variant: int) -> RoundContext:
        counts = {name: self.sample_counts[name] for name in cohort}
        return RoundContext(number, cohort, counts, torch_generator(self._seed, number, variant))

    def _as_party(self, context: RoundContext, name: str) -> RoundContext:
        return replace(context, generator=torch_generator(context.generator.initial_seed(), name))

    def _issue_keys(self, context: RoundContext, post: _Post, clock: _Clock) -> None:
        self._latest = context.round
        if self.parties.agent is None:
            return
        with clock.running("keys"):
            for arrived in post.send(self.parties.agent.issue(context)):
                receiver = self.parties.clients.get(arrived.receiver, self.parties.server)
                receiver.receive_key(arrived, context)

    def _exchange(
        self, moment: Moment, contexts: Mapping[str, RoundContext], context: RoundContext, post: _Post, clock: _Clock
    ) -> None:
        for exchange in self.parties.exchanges:
            if exchange.moment is moment:
                with clock.running("exchange"):
                    self._play(exchange, contexts, context, post)

    def _play(
        self, exchange: Exchange, contexts: Mapping[str, RoundContext], context: RoundContext, post: _Post
    ) -> None:
        clients, phase = self.parties.clients, exchange.phase
        offered = [envelope for name in contexts for envelope in clients[name].offer(phase, contexts[name])]
        arrived = post.send(offered)
        inbox = [envelope for envelope in arrived if envelope.receiver == SERVER]
        arrived += post.send(self.parties.server.answer(phase, inbox, context))
        for name in contexts:
            clients[name].take(phase, [envelope for envelope in arrived if envelope.receiver == name], contexts[name])
