"""The wire format: envelopes of real bytes, read with suspicion, and the transcript that a round leaves."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from federation.errors import DataError, MalformedMessage
from federation.files import write_bytes
from federation.weights import TensorSpec, Weights, check_layout

SERVER = "server"
KEY_AGENT = "key-agent"

_MAGIC = b"KHE1"
# magic, round, lengths of phase, sender and receiver, length of the payload
_HEADER = struct.Struct(">4sIBBBQ")


def client_name(index: int) -> str:
    """The wire name of the client with this index."""
    return f"client-{index}"


@dataclass(frozen=True)
class Envelope:
    """One message: who sent what to whom, in which phase of which round.

    Attributes:
        round: the round's number, from 0.
        phase: the protocol step, such as "broadcast" or "upload".
        sender, receiver: wire names of the parties.
        payload: the serialised content.
    """

    round: int
    phase: str
    sender: str
    receiver: str
    payload: bytes

    def to_bytes(self) -> bytes:
        """The envelope as it crosses the wire."""
        names = [text.encode("ascii") for text in (self.phase, self.sender, self.receiver)]
        header = _HEADER.pack(_MAGIC, self.round, *map(len, names), len(self.payload))
        return b"".join([header, *names, self.payload])

    @property
    def size(self) -> int:
        """Bytes on the wire, header included."""
        return _HEADER.size + len(self.phase) + len(self.sender) + len(self.receiver) + len(self.payload)

    def check_route(self, round_number: int, phases: Collection[str], senders: Collection[str], receiver: str) -> None:
        """What a party checks before it reads the payload.

        Raises MalformedMessage unless the envelope is of this round and one of these phases, from one of these senders
        and to this receiver.
        """
        if self.round != round_number or self.phase not in phases:
            raise MalformedMessage(
                f"{receiver} is due round {round_number}, {' or '.join(phases)}; got round {self.round}, {self.phase!r}"
            )
        if self.sender not in senders or self.receiver != receiver:
            raise MalformedMessage(f"{receiver} got an envelope from {self.sender!r} to {self.receiver!r}")

    @classmethod
    def from_bytes(cls, content: bytes) -> Envelope:
        """Read one envelope; raises MalformedMessage for anything but exactly one well-formed envelope."""
        envelopes = list(_read_envelopes(content))
        if len(envelopes) != 1:
            raise MalformedMessage(f"expected one envelope, found {len(envelopes)}")
        return envelopes[0]


def _read_envelopes(content: bytes) -> Iterator[Envelope]:
    position = 0
    while position < len(content):
        header = content[position : position + _HEADER.size]
        if len(header) < _HEADER.size or header[:4] != _MAGIC:
            raise MalformedMessage(f"byte {position}: no envelope header")
        _, round_number, *lengths = _HEADER.unpack(header)
        position += _HEADER.size
        fields = []
        for length in lengths:
            if position + length > len(content):
                raise MalformedMessage(
                    f"byte {position}: the envelope is {position + length - len(content)} bytes short"
                )
            fields.append(content[position : position + length])
            position += length
        try:
            phase, sender, receiver = (field.decode("ascii") for field in fields[:3])
        except UnicodeDecodeError as error:
            raise MalformedMessage("an envelope's phase, sender or receiver is not ASCII") from error
        yield Envelope(round_number, phase, sender, receiver, fields[3])


class Transcript(tuple[Envelope, ...]):
    """The envelopes of a round, in the order in which they were sent."""

    def where(self, wanted: Callable[[Envelope], bool]) -> Transcript:
        """The envelopes for which `wanted` holds."""
        return Transcript(envelope for envelope in self if wanted(envelope))

    def phase(self, phase: str) -> Transcript:
        """The envelopes of one phase."""
        return self.where(lambda envelope: envelope.phase == phase)

    def touching(self, *parties: str) -> Transcript:
        """The envelopes that any of these parties sent or received."""
        return self.where(lambda envelope: envelope.sender in parties or envelope.receiver in parties)

    def save(self, path: Path) -> None:
        """Write the envelopes one after the other, atomically."""
        write_bytes(path, b"".join(envelope.to_bytes() for envelope in self))

    @classmethod
    def load(cls, path: Path) -> Transcript:
        """Read what `save` wrote; raises DataError for a missing or damaged file."""
        try:
            return cls(_read_envelopes(path.read_bytes()))
        except (OSError, MalformedMessage) as error:
            raise DataError(f"{path}: not a readable transcript ({error}); remove it to have it made anew") from error


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise named tensors (safetensors: a length, a JSON header, raw little-endian values)."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


def tensors_from_bytes(payload: bytes, specs: Iterable[TensorSpec], where: str) -> Weights:
    """Read named tensors and check them against `specs`; raises MalformedMessage for anything else.

    Args:
        payload: bytes from the wire.
        specs: the tensors that must be there, and no others.
        where: what the message is, for the error's text.
    """
    expected = list(specs)
    tensors = raw_tensors_from_bytes(payload, where)
    check_layout(tensors, expected, where)
    return {spec.name: tensors[spec.name] for spec in expected}


def raw_tensors_from_bytes(payload: bytes, where: str) -> Weights:
    """Read named tensors whose shapes the receiver cannot know beforehand; the caller checks them.

    One set of tensors has one serialisation, the one of `tensors_to_bytes`; raises MalformedMessage for any other.
    """
    try:
        tensors = safetensors.torch.load(payload)
        canonical = tensors_to_bytes(tensors)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise MalformedMessage(f"{where}: not a readable set of tensors ({error})") from error
    if canonical != payload:
        raise MalformedMessage(f"{where}: not in canonical form (reordered, padded or with something besides tensors)")
    return tensors
