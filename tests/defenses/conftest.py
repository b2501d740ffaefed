"""A small federation under Key-Net whose every message can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
import torch

from benchmark.audit.stand_in import stand_in
from defenses.agent import StackAgent
from defenses.base import Magnitudes
from defenses.keynet.defense import KeyNet
from defenses.plain import Plain
from defenses.stack import Stack
from defenses.stages import Codec
from federation.messages import Envelope, Transcript, client_name
from federation.protocol import ClientParty, Phase, RoundRecord
from federation.rounds import Federation
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import PlainModel, Position, View, parties_of, readable
from federation.weights import Weights, difference, largest_difference, weighted_mean, weights_of


class KeyedFederation:
    """Three clients of different size under one stack; nobody trains, clients send what `trained` says."""

    clients = tuple(map(client_name, range(3)))
    counts: ClassVar[dict[str, int]] = dict(zip(clients, (2, 3, 7), strict=True))
    network = stand_in()

    def __init__(self, keynet: KeyNet, codec: Codec | None = None, root: SecretRoot | None = None) -> None:
        self.defense = Stack("keyed", [keynet, codec or Plain()])
        root = root or SecretRoot(b"keys of small federations ......" * 2)
        self.parties = self.defense.parties(self.network, self.clients, root)
        self.federation = Federation(self.parties, self.counts, seed=0)
        self.initial = weights_of(self.network.build())
        opening = self.federation.start(self.initial).transcript
        self.keys, self.initial_message = opening.phase(Phase.KEYS), opening.phase(Phase.INITIAL)[0]

    @property
    def agent(self) -> StackAgent:
        assert isinstance(self.parties.agent, StackAgent)
        return self.parties.agent

    def play(self, number: int, cohort: Sequence[str] = clients) -> RoundRecord:
        def update(client: ClientParty, weights: Weights) -> Weights:
            return self.trained(client.name, number, weights)

        record = self.federation.run_round(number, cohort, update)
        self.keys = Transcript([*self.keys, *record.transcript.phase(Phase.KEYS)])
        return record

    def trained(self, client: str, number: int, weights: Weights) -> Weights:
        """The client's own noise, and half of the global weights, so that errors of earlier rounds fade."""
        generator = torch_generator(client, number)
        return {
            name: tensor / 2 + torch.randn(tensor.shape, generator=generator)
            if tensor.is_floating_point()
            else tensor + 1
            for name, tensor in weights.items()
        }

    def released(self, number: int, receiver: str = clients[0]) -> Weights:
        return self.federation.recover(self.federation.release(number, [receiver])[0])

    def mean(self, record: RoundRecord) -> Weights:
        total = sum(self.counts[name] for name in record.trained)
        shares = [self.counts[name] / total for name in record.trained]
        return weighted_mean(self.network.layout, list(record.trained.values()), shares)

    def bound(self, record: RoundRecord) -> float:
        """The stated error of the round's aggregate."""
        updates = [difference(trained, record.references[name]) for name, trained in record.trained.items()]
        largest = [max(float(t.abs().max()) for t in weights.values()) for weights in (*record.trained.values(),)]
        moved = [max(float(t.abs().max()) for t in update.values()) for update in updates]
        return self.defense.stated_error(Magnitudes(max(largest), max(moved), len(updates)))

    def view(self, record: RoundRecord, position: Position, held: dict[str, bytes] | None = None) -> View:
        """What a position makes of the round; the last client is the curious one."""
        colluder = self.clients[-1]
        if held is None:
            held = {name: self.parties.held(name) for name in parties_of(position, colluder)}
        transcript = readable(Transcript([*self.keys, *record.transcript]), position, colluder)
        return self.defense.view(transcript, position, held, network=self.network, sample_counts=self.counts)

    def opened(self, view: View, record: RoundRecord) -> set[str]:
        """The clients whose true weights a view shows, within the stated error."""
        assert isinstance(view, PlainModel)
        return {
            name
            for name, trained in record.trained.items()
            if name in view.after and largest_difference(view.after[name], trained) <= self.bound(record)
        }


def upload_of(client: str, record: RoundRecord) -> Envelope:
    return next(envelope for envelope in record.transcript.phase(Phase.UPLOAD) if envelope.sender == client)


@pytest.fixture
def keyed() -> Callable[..., KeyedFederation]:
    torch.set_num_threads(1)
    return KeyedFederation


@pytest.fixture
def sent_by() -> Callable[[str, RoundRecord], Envelope]:
    return upload_of
