"""Checks on keys: where they come from, where they must not show, and what they open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from benchmark.audit.chosen import CLIENTS, COLLUDER
from benchmark.conformance.subject import COUNTS, ConformanceFailure, Subject, largest_excess
from defenses.base import Claim
from federation.errors import MalformedMessage
from federation.messages import KEY_AGENT, Transcript, raw_tensors_from_bytes
from federation.protocol import Parties, Phase
from federation.threat import PlainModel, Position
from federation.weights import floating

PIECE_BYTES = 32
"""Length of the pieces of a key that are searched for in every envelope."""

_FEWEST_VALUES = 4
"""Different bytes that a piece has at least; one with fewer, such as padding, stands in many places by chance."""

_SHORTEST_PIECE_BYTES = 8
"""A shorter stretch of a key stands on a wire of megabytes by chance."""

NOT_KEYED = "not applicable: nobody holds a key"


def keys_stay_secret(subject: Subject) -> str:
    """No 32 bytes of what clients and key agent hold stand in an envelope, unless they are public in every key message.

    What a party holds is secret but for tensors whose name ends in ".public", and for what it would hold under any
    root.
    """
    if not subject.is_keyed:
        return NOT_KEYED
    parties = subject.played.federation.parties
    other = replace(subject, root=subject.other_root).played.federation.parties
    wire = b"".join(envelope.to_bytes() for envelope in subject.played.transcript)
    searched: set[bytes] = set()
    for name in (*CLIENTS, KEY_AGENT):
        secret, public = _secret_and_public(parties.held(name))
        anyway = public + b"".join(_secret_and_public(other.held(name)))
        pieces = _pieces(secret, anyway) - searched
        for piece in _standing_in(wire, pieces):
            raise ConformanceFailure(f"{len(piece)} bytes of the key of {name} cross the wire in clear")
        searched |= pieces
    return f"none of {len(searched)} different pieces of keys on the wire"


def keys_come_from_the_root(subject: Subject) -> str:
    """Keys are a function of the secret root and of nothing else: not of the run's seed."""
    if not subject.is_keyed:
        return NOT_KEYED
    first = subject.played
    same_root = replace(subject, seed=subject.seed + 1).played
    same_seed = replace(subject, root=subject.other_root).played
    if _held(same_root.federation.parties) != _held(first.federation.parties):
        raise ConformanceFailure("another seed gives other keys of the same root")
    if _held(same_seed.federation.parties) == _held(first.federation.parties):
        raise ConformanceFailure("another root gives the same keys")
    uploads = _payloads(first.record.transcript)
    if uploads & _payloads(same_seed.record.transcript):
        raise ConformanceFailure("another root gives the same uploads")
    return "of the root alone"


def leaky_twin_leaks(subject: Subject) -> str:
    """To the server, the leaky twin's messages are the plain weights."""
    twin = replace(subject, defense=subject.defense.leaky_twin())
    return _reads_all(twin, Position.SERVER, "the server of the leaky twin")


def collusion_opens(subject: Subject) -> str:
    """A server with one client's state reads every update as under no defense, where one client is all it takes."""
    bounds = set(subject.defense.collusion_bound.split("; "))
    if not bounds <= {"none needed", "one client"}:
        return f"not applicable: collusion takes {subject.defense.collusion_bound}"
    return _reads_all(subject, Position.COLLUSION, "the server with a client's key")


def wrong_key_opens_nothing(subject: Subject) -> str:
    """With a client's state under another root, no tensor that is claimed to be hidden or transformed can be read."""
    if not subject.is_keyed:
        return NOT_KEYED
    other = replace(subject, root=subject.other_root).played.federation.parties
    try:
        view = subject.played.federation.view(
            subject.played.record, Position.COLLUSION, {COLLUDER: other.held(COLLUDER)}
        )
    except MalformedMessage as error:
        return f"refused: {error}"
    if not isinstance(view, PlainModel):
        return type(view).__name__
    claims = subject.defense.claims(subject.network)
    bound = subject.played.federation.stated_error(subject.played.record)
    for spec in floating(subject.network.layout):
        for client, truth in subject.played.record.trained.items():
            off = (view.after[client][spec.name].double() - truth[spec.name].double()).abs() > bound
            if claims[spec.name] is not Claim.PLAIN and float(off.double().mean()) <= 0.5:
                raise ConformanceFailure(f"another root's key reads most of tensor {spec.name!r} of {client}")
    return "other weights"


def _reads_all(subject: Subject, position: Position, reader: str) -> str:
    federation, record = subject.played.federation, subject.played.record
    view = federation.view(record, position)
    if not isinstance(view, PlainModel) or view.hidden_by:
        hidden = f" hidden by {', '.join(sorted(view.hidden_by))}" if isinstance(view, PlainModel) else ""
        raise ConformanceFailure(f"{reader} reads {type(view).__name__}{hidden}, not the plain weights")
    client, excess = largest_excess(view, record, _tolerances(federation.stated_error(record)))
    if excess > 0:
        raise ConformanceFailure(
            f"{reader} reads weights of {client} that are off by {excess:.3g} beyond the stated error"
        )
    return "the plain weights"


def _tolerances(stated_error: float) -> dict[str, float]:
    """The stated error is an aggregate's; a single contribution may have been scaled down by n_k / n before rounding."""
    total = sum(COUNTS.values())
    return {client: stated_error / min(1.0, len(COUNTS) * count / total) for client, count in COUNTS.items()}


def _held(parties: Parties) -> Mapping[str, bytes]:
    return {name: parties.held(name) for name in (*CLIENTS, KEY_AGENT)}


def _payloads(transcript: Transcript) -> set[bytes]:
    return {envelope.payload for envelope in transcript.phase(Phase.UPLOAD)}


def _secret_and_public(held: bytes) -> tuple[bytes, bytes]:
    """The contents of all tensors that a party holds, however nested; names, types and sizes of tensors are no secret."""
    secret, public = bytearray(), bytearray()
    for name, content in _contents("", held):
        (public if name.endswith(".public") else secret).extend(content)
    return bytes(secret), bytes(public)


def _contents(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The innermost tensors of serialised ones, each with the name of the public tensor that it is in, else its own."""
    try:
        tensors = raw_tensors_from_bytes(content, "what a party holds")
    except MalformedMessage:
        yield name, content
        return
    for inner, tensor in tensors.items():
        yield from _contents(name if name.endswith(".public") else inner, tensor.numpy().tobytes())


def _pieces(secret: bytes, anyway: bytes) -> set[bytes]:
    """All runs of `PIECE_BYTES` of what is secret in a secret; a shorter stretch as a whole.

    Left out are runs of hardly any different bytes, and stretches too short to tell from chance.
    """
    return {
        piece
        for stretch in _stretches(secret, anyway)
        if len(stretch) >= _SHORTEST_PIECE_BYTES
        for piece in _runs(stretch, min(PIECE_BYTES, len(stretch)))
        if len(set(piece)) >= _FEWEST_VALUES
    }


def _stretches(secret: bytes, anyway: bytes) -> Iterator[bytes]:
    """A secret without the runs that are known anyway.

    They are cut out whole: the last 31 bytes of a public modulus and one byte of the prime that a party keeps behind
    it stand on the wire by chance, once in 256 times that the modulus does.
    """
    known = set(_runs(anyway, PIECE_BYTES))
    start = end = 0
    while end < len(secret):
        if secret[end : end + PIECE_BYTES] in known:
            yield secret[start:end]
            while secret[end : end + PIECE_BYTES] in known:
                end += 1
            start = end = end + PIECE_BYTES - 1
        else:
            end += 1
    yield secret[start:]


def _standing_in(wire: bytes, pieces: set[bytes]) -> set[bytes]:
    """Those of the pieces that stand anywhere in the wire: one pass for all of a length."""
    return {run for length in {len(piece) for piece in pieces} for run in _runs(wire, length) if run in pieces}


def _runs(content: bytes, length: int) -> Iterator[bytes]:
    return (content[start : start + length] for start in range(len(content) - length + 1))
