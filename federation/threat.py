"""Who looks, what they may read, and what they make of it: adversaries, views, observations, oracles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import scipy.sparse
from torch import Tensor

from federation.errors import UsageError
from federation.messages import KEY_AGENT, SERVER, Transcript
from federation.network import Network
from federation.protocol import Phase
from federation.registry import Registry
from federation.weights import Weights


class Position(StrEnum):
    """Where an adversary stands."""

    SERVER = "server"
    EAVESDROPPER = "eavesdropper"
    CLIENT = "client"
    AGGREGATE = "aggregate"
    COLLUSION = "collusion"
    KEY_AGENT = "key-agent"


class Knowledge(StrEnum):
    """What an adversary knows of the defense."""

    OBLIVIOUS = "oblivious"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class Adversary:
    """A position plus knowledge. `description` is the sentence that tables and pages show."""

    position: Position
    knowledge: Knowledge
    description: str

    @property
    def name(self) -> str:
        """The name by which experiments refer to it, such as "server/adaptive"."""
        return f"{self.position}/{self.knowledge}"


_READS = {
    Position.SERVER: "reads every envelope it sends or receives",
    Position.EAVESDROPPER: "reads every envelope's bytes on the wire",
    Position.CLIENT: "holds its own key, update and data, and the global models it recovers",
    Position.AGGREGATE: "reads the released global models only",
    Position.COLLUSION: "is the server plus one client's state, key included",
    Position.KEY_AGENT: "holds the keys and reads the wire",
}
_KNOWS = {
    Knowledge.OBLIVIOUS: "treats it as if no defense were there (a negative control, never a verdict)",
    Knowledge.ADAPTIVE: "knows the scheme and may hold the auxiliary images; lacks what its position does not hold",
}

ADVERSARIES: Registry[Adversary] = Registry("adversary")
for _position in Position:
    for _knowledge in Knowledge:
        _adversary = Adversary(_position, _knowledge, f"{_READS[_position]}; {_KNOWS[_knowledge]}")
        ADVERSARIES.add(_adversary.name, _adversary)


AGGREGATE = "aggregate"
"""The sender under which a view names what a released global model reveals."""


def parties_of(position: Position, colluder: str) -> tuple[str, ...]:
    """The parties whose state this position holds; `colluder` is the client that is curious or colludes."""
    return {
        Position.SERVER: (SERVER,),
        Position.EAVESDROPPER: (),
        Position.CLIENT: (colluder,),
        Position.AGGREGATE: (),
        Position.COLLUSION: (SERVER, colluder),
        Position.KEY_AGENT: (KEY_AGENT,),
    }[position]


def readable(transcript: Transcript, position: Position, colluder: str) -> Transcript:
    """The envelopes of `transcript` that this position reads."""
    if position in (Position.EAVESDROPPER, Position.KEY_AGENT):
        return transcript
    if position is Position.AGGREGATE:
        return transcript.where(lambda envelope: envelope.phase in (Phase.BROADCAST, Phase.RELEASE))
    return transcript.touching(*parties_of(position, colluder))


@dataclass(frozen=True)
class PlainModel:
    """What was read can be evaluated as a model of the agreed shape.

    Attributes:
        before: the global weights at the start of the round, as read.
        after: by sender, that sender's weights at the end of its local training, as read.
        hidden_by: secret-keyed schemes that were not undone: what is read is still their image, not the true weights.
    """

    before: Weights
    after: Mapping[str, Weights]
    hidden_by: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SparseLayers:
    """What was read are sparse matrices, one a layer, in place of a model's own kernels (keyed Toeplitz form)."""

    before: Mapping[str, scipy.sparse.csr_array]
    after: Mapping[str, Mapping[str, scipy.sparse.csr_array]]
    hidden_by: frozenset[str] = frozenset()


@dataclass(frozen=True)
class KeyedImage:
    """What was read is one image on its way to be classified by somebody else, and the network that classifies it.

    Attributes:
        layers: the homogeneous matrices that the image is run through, by node of the network's graph; empty where the
            network was sent as it is.
        image: [values] or [values + 1] with the homogeneous 1, as the network reads images; uint8 where it was stored as
            a picture: stretched by an unknown contrast and brightness, and rounded.
        hidden_by: secret-keyed schemes that were not undone; where there are none, layers and image are the true ones.
    """

    layers: Mapping[str, scipy.sparse.csr_array]
    image: Tensor
    hidden_by: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ciphertext:
    """What was read is ciphertext, and nothing that this position holds opens it."""

    scheme: str
    byte_count: int


@dataclass(frozen=True)
class Nothing:
    """The position reads nothing of the clients' updates or images."""

    reason: str


View: TypeAlias = PlainModel | SparseLayers | KeyedImage | Ciphertext | Nothing


class Oracle(StrEnum):
    """A privilege that no honest adversary of this kind has; off unless an experiment turns it on, and a column."""

    LABELS = "labels"
    LABEL_ORDER = "label order"
    BATCH_STATISTICS = "batch-norm statistics"
    POSE = "pose"
    INITIAL_MODEL = "initial model"


@dataclass(frozen=True)
class TrainingFacts:
    """What every party knows about how the clients train.

    Attributes:
        learning_rate, batch_size, epochs, steps: of the observed update; epochs is None where steps alone count.
        sample_counts: images per client.
        loss: the training loss by name.
        precision: what a local step computes in.
    """

    learning_rate: float
    batch_size: int
    epochs: int | None
    steps: int
    sample_counts: Mapping[str, int]
    loss: str = "cross-entropy"
    precision: str = "float32"


@dataclass(frozen=True)
class Auxiliary:
    """Public images of the same kind as the private ones: pixels float [N, C, H, W] in [0, 1], labels int64 [N]."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Observation:
    """All that an adversary has of one round. It refers to no private batch, no label, no other party's state.

    Attributes:
        round: the observed round.
        transcript: the envelopes that the position reads.
        held: serialised state of the parties that the position holds, by name.
        own_updates: the weights that the clients which the position holds trained in this round, by name.
        view: what the defense's public decoder makes of transcript and held state.
        scheme: public description of the defense, by stage name: parameters, never keys.
        facts: how the clients train.
        network: the architecture, its layout, image shape and class count.
        mean, deviation: per channel, the normalisation that training applies to pixels in [0, 1].
        auxiliary: public images, for adaptive adversaries.
        oracles: privileged facts by oracle, only where the experiment grants them. The initial model's is its averaged
            tensors, as `federation.weights.flatten` lays them out.
    """

    round: int
    transcript: Transcript
    held: Mapping[str, bytes]
    view: View
    scheme: Mapping[str, Mapping[str, object]]
    facts: TrainingFacts
    network: Network
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    auxiliary: Auxiliary | None = None
    oracles: Mapping[Oracle, Tensor] = field(default_factory=dict)
    own_updates: Mapping[str, Weights] = field(default_factory=dict)


@dataclass(frozen=True)
class Victim:
    """What an attack is asked to reconstruct: one party's update in one observed round, or its image in one observation.

    Attributes:
        identifier: unique within the cell.
        observation: index into the history.
        sender: wire name of the party whose update or image it is.
        image_count: how many images to reconstruct.
    """

    identifier: str
    observation: int
    sender: str
    image_count: int


def parse_adversary(name: str) -> Adversary:
    """The adversary called `name` ("position/knowledge"); raises UsageError with near matches."""
    if "/" not in name:
        raise UsageError(f"an adversary is written position/knowledge, such as server/adaptive, not {name!r}")
    return ADVERSARIES.get(name)
