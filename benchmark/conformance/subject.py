"""A defense under test, and the round of chosen weights that most checks look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from benchmark.audit.chosen import CLIENTS, Choice, ChosenFederation, moved_by, spread_weights
from defenses.base import Defense
from federation.errors import KeyholeError
from federation.messages import KEY_AGENT, SERVER, Transcript
from federation.network import Network
from federation.protocol import RoundRecord
from federation.rounds import Wire
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import PlainModel
from federation.weights import Weights

COUNTS: Mapping[str, int] = dict(zip(CLIENTS, (3, 5), strict=True))
"""Training images that the two clients state: unequal, so that a plain mean is not the weighted one."""


class ConformanceFailure(KeyholeError):
    """What a defense does against what it promises, or against what every defense has to do."""


@dataclass(frozen=True)
class Played:
    """A start, one round of chosen weights and a release."""

    federation: ChosenFederation
    opening: Transcript
    record: RoundRecord
    released: Mapping[str, Weights]

    @property
    def transcript(self) -> Transcript:
        """Every envelope up to the aggregation."""
        return Transcript([*self.opening, *self.record.transcript])


@dataclass(frozen=True)
class Subject:
    """A defense, the network that it protects and the root of its keys, as a check gets them.

    Attributes:
        defense: the defense.
        network: a small network; rounds of it are played.
        root: where keys come from.
        seed: of the rounding randomness.
    """

    defense: Defense
    network: Network
    root: SecretRoot
    seed: int = 0

    @property
    def other_root(self) -> SecretRoot:
        """A root that has nothing to do with the subject's."""
        return self.root.derive("another root for conformance checks")

    def on(self, network: Network) -> Subject:
        """The same defense on another network."""
        return replace(self, network=network)

    @cached_property
    def initial(self) -> Weights:
        """The global weights of the round: magnitudes in [0.5, 1]."""
        generator = torch_generator("conformance", "initial")
        return spread_weights(self.network.layout, generator, smallest=0.5, largest=1.0, counter=1000)

    @cached_property
    def choices(self) -> dict[str, Choice]:
        """Updates with magnitudes in [0.1, 0.2], so that no weight is small; the first client counts the most."""
        generator = torch_generator("conformance", "updates")
        return {
            client: moved_by(
                spread_weights(self.network.layout, generator, smallest=0.1, largest=0.2, counter=20 - number)
            )
            for number, client in enumerate(CLIENTS)
        }

    def federation(self, wire: Wire = bytes) -> ChosenFederation:
        """A new federation; `wire` may interfere."""
        return ChosenFederation(self.defense, self.network, self.root, counts=COUNTS, seed=self.seed, wire=wire)

    def play(self, federation: ChosenFederation) -> Played:
        """Start from the initial weights, play a round and release the result."""
        opening = federation.start(self.initial)
        record = federation.play(0, self.choices)
        return Played(federation, opening, record, federation.released(1))

    @cached_property
    def played(self) -> Played:
        """One such round, undisturbed."""
        return self.play(self.federation())

    @property
    def is_keyed(self) -> bool:
        """Whether any party holds a key."""
        parties = self.played.federation.parties
        return any(map(parties.held, (*parties.clients, SERVER, KEY_AGENT)))


def largest_excess(read: PlainModel, record: RoundRecord, tolerance: Mapping[str, float]) -> tuple[str, float]:
    """The client whose weights are read worst, and by how much beyond its tolerance (negative: all are within)."""
    excess = {}
    for client, truth in record.trained.items():
        if client not in read.after:
            return client, float("inf")
        worst = max(float((read.after[client][name].double() - truth[name].double()).abs().max()) for name in truth)
        excess[client] = worst - tolerance[client]
    return max(excess.items(), key=lambda item: item[1])
