"""Checks on envelopes: whatever somebody on the wire does to one shows, and malformed ones are refused cleanly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from benchmark.audit.chosen import CLIENTS
from benchmark.audit.stand_in import smallest_stand_in
from benchmark.conformance.subject import COUNTS, ConformanceFailure, Played, Subject
from federation.errors import MalformedMessage
from federation.messages import SERVER, Envelope, raw_tensors_from_bytes, tensors_to_bytes
from federation.protocol import ClientParty, Phase, RoundContext, ServerParty
from federation.seeds import numpy_generator, torch_generator

HEADER_BYTES = 96
"""Envelope header, and most of the header of a small set of tensors."""

HEADER_FLIPS, BODY_FLIPS = 6, 10
"""Bytes changed an envelope."""

Delivery: TypeAlias = Callable[[Envelope], object]
"""Hands an envelope to the party that it is for."""


def tampering_shows(subject: Subject) -> str:
    """Change any one byte of an envelope: somebody recovers other weights, or the message is refused as malformed.

    One envelope of each kind is taken, and bytes at random: any change in the first 96 bytes, elsewhere one of the top
    bit at least, since the last bit of a contribution may be lost when the mean is rounded.
    """
    subject = subject.on(smallest_stand_in())
    wire = _Interference()
    federation = subject.federation(wire)
    recovered = _recovered(subject.play(federation))
    generator, count = numpy_generator("conformance", "flips"), 0
    kinds = dict(wire.sizes)
    for kind, size in kinds.items():
        for position, flip in _flips(size, generator):
            # keys are handed out once, so that each change to a key message needs parties of its own
            disturbed = subject.federation(wire) if kind.phase == Phase.KEYS else federation
            wire.plan(kind, position, flip)
            count += 1
            try:
                outcome = _recovered(subject.play(disturbed))
            except MalformedMessage:
                continue
            if outcome == recovered:
                raise ConformanceFailure(
                    f"byte {position} of the {kind.phase} message of {kind.sender} to {kind.receiver} was changed by "
                    f"{flip:#x}, and nobody noticed"
                )
    return f"{count} changed bytes of {len(kinds)} kinds of envelope show"


def malformed_refused(subject: Subject) -> str:
    """Cut, lengthened, random or otherwise wrong payloads raise MalformedMessage and nothing else."""
    subject = subject.on(smallest_stand_in())
    count = 0
    for envelope, deliver in _deliveries(subject):
        for case, payload in _malformations(envelope.payload):
            broken = Envelope(envelope.round, envelope.phase, envelope.sender, envelope.receiver, payload)
            _expect_refusal(deliver, broken, f"{envelope.phase} message to {envelope.receiver}: {case}")
            count += 1
        for case, broken in _misdirected(envelope):
            _expect_refusal(deliver, broken, f"{envelope.phase} message to {envelope.receiver}: {case}")
            count += 1
    return f"{count} malformed messages refused"


class _Kind(NamedTuple):
    """What kind of envelope: its phase, and who sends to whom ("client-0" stands for all clients)."""

    phase: str
    sender: str
    receiver: str


class _Interference:
    """Somebody on the wire who notes what passes, and who changes one byte of one envelope when told to."""

    def __init__(self) -> None:
        self.sizes: dict[_Kind, int] = {}
        self._planned: tuple[_Kind, int, int] | None = None

    def plan(self, kind: _Kind, position: int, flip: int) -> None:
        """Change this byte of the next envelope of this kind."""
        self._planned = kind, position, flip

    def __call__(self, content: bytes) -> bytes:
        envelope = Envelope.from_bytes(content)
        kind = _Kind(envelope.phase, envelope.sender, envelope.receiver)
        if CLIENTS[1] not in kind:
            self.sizes.setdefault(kind, len(content))
        if self._planned is None or self._planned[0] != kind:
            return content
        _, position, flip = self._planned
        self._planned = None
        changed = bytearray(content)
        changed[position] ^= flip
        return bytes(changed)


def _recovered(played: Played) -> list[bytes]:
    """All that clients recover in a round and after it, as bytes."""
    everything = [*played.record.references.values(), *played.released.values()]
    return [tensors_to_bytes(weights) for weights in everything]


def _flips(size: int, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    for _ in range(HEADER_FLIPS):
        yield int(generator.integers(min(size, HEADER_BYTES))), int(generator.integers(1, 256))
    for _ in range(BODY_FLIPS):
        yield int(generator.integers(size)), int(generator.integers(128, 256))


def _deliveries(subject: Subject) -> Iterator[tuple[Envelope, Delivery]]:
    """One envelope of each kind of a played round, and how its receiver gets it."""
    played = subject.played
    parties, transcript = played.federation.parties, played.record.transcript
    server, client = parties.server, parties.clients[CLIENTS[0]]
    context = RoundContext(0, CLIENTS, COUNTS, torch_generator("conformance"))

    def together(
        handle: Callable[[Sequence[Envelope], RoundContext], object], inbox: Sequence[Envelope]
    ) -> Iterator[tuple[Envelope, Delivery]]:
        """The first of several envelopes that are handed over at once."""
        if inbox:
            yield inbox[0], lambda broken: handle([broken, *inbox[1:]], context)

    yield transcript.phase(Phase.BROADCAST)[0], lambda broken: client.recover(broken, context)
    yield from together(server.aggregate, transcript.phase(Phase.UPLOAD))
    for exchange in parties.exchanges:
        envelopes = transcript.phase(exchange.phase)
        yield from together(
            partial(server.answer, exchange.phase), envelopes.where(lambda sent: sent.receiver == SERVER)
        )
        yield from together(
            partial(client.take, exchange.phase), envelopes.where(lambda sent: sent.receiver == client.name)
        )
    # last, since a party that was handed a broken key is of no more use
    parties_by_name: dict[str, ClientParty | ServerParty] = {SERVER: server, client.name: client}
    for envelope in played.opening.phase(Phase.KEYS):
        if envelope.receiver in parties_by_name:
            yield envelope, partial(_give_key, parties_by_name[envelope.receiver], context)


def _give_key(party: ClientParty | ServerParty, context: RoundContext, envelope: Envelope) -> None:
    party.receive_key(envelope, context)


def _expect_refusal(deliver: Delivery, broken: Envelope, case: str) -> None:
    try:
        deliver(broken)
    except MalformedMessage:
        return
    except Exception as error:
        raise ConformanceFailure(f"{case}: {type(error).__name__} ({error}) in place of MalformedMessage") from error
    raise ConformanceFailure(f"{case}: accepted")


def _misdirected(envelope: Envelope) -> Iterator[tuple[str, Envelope]]:
    fields = {"round": envelope.round + 1, "phase": "gossip", "sender": "client-9", "receiver": "client-9"}
    for name, value in fields.items():
        yield f"another {name}", Envelope(**{**vars(envelope), name: value})


def _malformations(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Wrong payloads, each with what is wrong about it."""
    yield "empty", b""
    yield "one byte short", payload[:-1]
    yield "cut in half", payload[: len(payload) // 2]
    yield "one byte longer", payload + b"\0"
    yield "random bytes", numpy_generator("conformance", "random payload").bytes(len(payload))
    try:
        tensors = raw_tensors_from_bytes(payload, "a conformance check")
    except MalformedMessage:
        return
    yield "an unknown tensor", tensors_to_bytes({**tensors, "unknown": torch.ones(1)})
    for name, tensor in tensors.items():
        if tensor.numel():
            for case, changed in _wrong_tensors(tensor):
                yield f"tensor {name!r} {case}", tensors_to_bytes({**tensors, name: changed})
            yield f"tensor {name!r} missing", tensors_to_bytes({key: tensors[key] for key in tensors if key != name})


_SAME_SIZE: Mapping[torch.dtype, torch.dtype] = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.int64: torch.float64,
    torch.int32: torch.float32,
    torch.int16: torch.float16,
    torch.uint8: torch.int8,
}


def _wrong_tensors(tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield "with another axis", tensor[None]
    yield "with one value more", torch.cat([tensor.flatten(), tensor.flatten()[:1]])
    yield "of another type", tensor.view(_SAME_SIZE[tensor.dtype]) if tensor.dim() else tensor.double() + 0.5
    if tensor.is_floating_point():
        for value in (float("nan"), float("inf")):
            changed = tensor.clone()
            changed.view(-1)[-1] = value
            yield f"with {value}", changed
