"""The roles that a protocol is played by, as the round driver sees them.

A defense supplies one object per role; each owns its state and its keys. The driver hands every role only what its
owner would know: a `RoundContext` of public facts, and the envelopes that were addressed to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor, nn

from federation.messages import SERVER, Envelope, Transcript
from federation.weights import Weights


class Phase:
    """Names of the phases that every protocol has; a defense's exchanges add their own."""

    KEYS = "keys"
    INITIAL = "initial"
    BROADCAST = "broadcast"
    UPLOAD = "upload"
    RELEASE = "release"


class Moment(StrEnum):
    """When in a round an exchange takes place."""

    BEFORE_TRAINING = "before training"
    BEFORE_UPLOAD = "before upload"
    AFTER_UPLOAD = "after upload"


@dataclass(frozen=True)
class Exchange:
    """One further phase: every client of the cohort offers, the server answers, the clients take the answers.

    Set-up of secure aggregation, agreement on bounds and the lifting of masks are exchanges.
    """

    phase: str
    moment: Moment


@dataclass(frozen=True)
class RoundContext:
    """What a party knows of the round it takes part in.

    Attributes:
        round: the round's number, from 0.
        cohort: wire names of the clients that take part, in a fixed order.
        sample_counts: training images per client of the cohort (public, as in FedAvg).
        generator: the party's own randomness for rounding; keys never come from it.
        incoming: the global message that this client received in this round (clients only).
        reference: the weights that this client recovered from it (clients only).
        trained: the weights after local training (clients only, once trained).
    """

    round: int
    cohort: tuple[str, ...]
    sample_counts: Mapping[str, int]
    generator: torch.Generator
    incoming: Envelope | None = None
    reference: Weights | None = None
    trained: Weights | None = None

    def share(self, client: str) -> float:
        """n_k / n over the clients of the cohort (McMahan 2016, Algorithm 1)."""
        return self.sample_counts[client] / sum(self.sample_counts[name] for name in self.cohort)


class KeyAgentParty(Protocol):
    """Issues and rotates keys."""

    def issue(self, context: RoundContext) -> list[Envelope]:
        """The key messages that are due before this round; none where every party still has its keys."""
        ...

    def held(self) -> bytes:
        """All that this party holds, serialised: what an adversary in its position starts from."""
        ...


class ClientParty(Protocol):
    """Trains on private data; protects what it sends and recovers what it receives."""

    name: str

    def receive_key(self, envelope: Envelope, context: RoundContext) -> None:
        """Take a key message from the agent."""
        ...

    def protect_initial(self, weights: Weights, context: RoundContext) -> Envelope:
        """The first global model, as a message to the server."""
        ...

    def recover(self, envelope: Envelope, context: RoundContext) -> Weights:
        """The global weights that a broadcast or release carries."""
        ...

    def offer(self, phase: str, context: RoundContext) -> list[Envelope]:
        """This client's part of an exchange."""
        ...

    def take(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> None:
        """What the exchange brought for this client."""
        ...

    def protect(self, context: RoundContext) -> Envelope:
        """The client's contribution (from `context.trained`), as a message to the server."""
        ...

    def transform_images(self, images: Tensor) -> Tensor:
        """The images that training sees, from the private ones (identity unless the defense acts on data)."""
        ...

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The gradients of one local step by parameter name (plain mean cross-entropy unless the defense acts here)."""
        ...

    def held(self) -> bytes:
        """All keys that this client holds, serialised."""
        ...


class ServerParty(Protocol):
    """Aggregates what it receives; keeps the current global message."""

    state: bytes

    def receive_key(self, envelope: Envelope, context: RoundContext) -> None:
        """Take a key message from the agent: public parts, in every protocol that deserves the name."""
        ...

    def adopt(self, envelope: Envelope, context: RoundContext) -> None:
        """Make an initial message the current global one."""
        ...

    def broadcast(self, phase: str, receivers: Sequence[str], context: RoundContext) -> list[Envelope]:
        """The current global message, addressed to each receiver."""
        ...

    def answer(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> list[Envelope]:
        """The server's part of an exchange."""
        ...

    def aggregate(self, uploads: Sequence[Envelope], context: RoundContext) -> None:
        """Replace the current global message by the aggregate of these contributions."""
        ...

    def held(self) -> bytes:
        """All keys that the server holds, serialised: empty in every protocol that deserves the name."""
        ...


@dataclass(frozen=True)
class Parties:
    """Everyone who takes part in a federation under one defense."""

    server: ServerParty
    clients: Mapping[str, ClientParty]
    agent: KeyAgentParty | None = None
    exchanges: tuple[Exchange, ...] = ()

    def held(self, name: str) -> bytes:
        """All keys that the party of this wire name holds, serialised; empty for a role that nobody plays."""
        if name in self.clients:
            return self.clients[name].held()
        if name == SERVER:
            return self.server.held()
        return self.agent.held() if self.agent is not None else b""


@dataclass
class RoundRecord:
    """What the referee keeps of a round: the transcript, and the truth that no adversary sees.

    Attributes:
        transcript: every envelope, in order.
        references: what each client of the cohort recovered from the broadcast.
        trained: each client's weights after local training.
        seconds: wall-clock seconds per activity, summed over parties.
    """

    transcript: Transcript
    references: dict[str, Weights]
    trained: dict[str, Weights]
    seconds: dict[str, float] = field(default_factory=dict)
