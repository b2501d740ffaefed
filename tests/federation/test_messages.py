"""Envelopes and tensors on the wire: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.errors import DataError, MalformedMessage
from federation.messages import (
    SERVER,
    Envelope,
    Transcript,
    client_name,
    raw_tensors_from_bytes,
    tensors_from_bytes,
    tensors_to_bytes,
)
from federation.weights import Kind, TensorSpec

names = st.text(alphabet=st.characters(max_codepoint=127), max_size=20)
envelopes = st.builds(
    Envelope,
    round=st.integers(0, 2**32 - 1),
    phase=names,
    sender=names,
    receiver=names,
    payload=st.binary(max_size=60),
)
ENVELOPE = Envelope(3, "upload", client_name(1), SERVER, b"content of the message")
TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a": torch.tensor([1, -2], dtype=torch.int64),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0),
}
SPECS = [TensorSpec(name, tuple(tensor.shape), tensor.dtype, Kind.PARAMETER) for name, tensor in TENSORS.items()]


@given(envelopes)
def test_an_envelope_survives_the_wire(envelope: Envelope) -> None:
    content = envelope.to_bytes()
    assert len(content) == envelope.size
    assert Envelope.from_bytes(content) == envelope


def test_the_header_is_big_endian_and_documented() -> None:
    content = ENVELOPE.to_bytes()
    assert content[:4] == b"KHE1"
    assert struct.unpack(">IBBBQ", content[4:19]) == (3, 6, 8, 6, 22)
    assert content[19:] == b"uploadclient-1server" + ENVELOPE.payload


@pytest.mark.parametrize("length", range(len(ENVELOPE.to_bytes())))
def test_a_cut_envelope_is_refused(length: int) -> None:
    with pytest.raises(MalformedMessage):
        Envelope.from_bytes(ENVELOPE.to_bytes()[:length])


@given(st.binary(max_size=80))
def test_random_bytes_are_no_envelope(content: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Envelope.from_bytes(content)


def test_more_than_one_envelope_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="found 2"):
        Envelope.from_bytes(ENVELOPE.to_bytes() * 2)
    with pytest.raises(MalformedMessage, match="no envelope header"):
        Envelope.from_bytes(ENVELOPE.to_bytes() + b"\0")


def test_names_that_are_not_ascii_are_refused() -> None:
    content = bytearray(ENVELOPE.to_bytes())
    content[19] |= 0x80
    with pytest.raises(MalformedMessage, match="ASCII"):
        Envelope.from_bytes(bytes(content))


@given(st.integers(0, len(ENVELOPE.to_bytes()) - 1), st.integers(1, 255))
def test_a_changed_byte_changes_the_envelope_or_is_refused(position: int, flip: int) -> None:
    content = bytearray(ENVELOPE.to_bytes())
    content[position] ^= flip
    with contextlib.suppress(MalformedMessage):
        assert Envelope.from_bytes(bytes(content)) != ENVELOPE


def test_the_route_of_an_envelope_is_checked() -> None:
    ENVELOPE.check_route(3, ["upload"], ["client-0", "client-1"], SERVER)
    for arguments, reason in {
        (4, ("upload",), ("client-1",), SERVER): "round 4",
        (3, ("broadcast", "release"), ("client-1",), SERVER): "broadcast or release",
        (3, ("upload",), ("client-0",), SERVER): "'client-1'",
        (3, ("upload",), ("client-1",), "client-0"): "'server'",
    }.items():
        with pytest.raises(MalformedMessage, match=reason):
            ENVELOPE.check_route(*arguments)


def test_a_transcript_is_sorted_by_phase_and_party() -> None:
    down = Envelope(0, "broadcast", SERVER, client_name(0), b"")
    up, other = (Envelope(0, "upload", client_name(index), SERVER, b"") for index in (0, 1))
    transcript = Transcript([down, up, other])
    assert transcript.phase("upload") == (up, other)
    assert transcript.touching(client_name(0)) == (down, up)
    assert transcript.touching(SERVER) == transcript
    assert transcript.where(lambda envelope: envelope.receiver == "nobody") == ()
    assert isinstance(transcript.phase("upload"), Transcript)


@given(st.lists(envelopes, max_size=4))
@settings(max_examples=20)
def test_a_transcript_survives_the_disk(tmp_path_factory: pytest.TempPathFactory, sent: list[Envelope]) -> None:
    path = tmp_path_factory.mktemp("transcript") / "round"
    Transcript(sent).save(path)
    assert Transcript.load(path) == tuple(sent)


def test_a_damaged_or_missing_transcript_is_named(tmp_path: Path) -> None:
    path = tmp_path / "round"
    with pytest.raises(DataError, match="round: not a readable transcript"):
        Transcript.load(path)
    Transcript([ENVELOPE]).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="round: not a readable transcript"):
        Transcript.load(path)


def test_tensors_survive_the_wire() -> None:
    payload = tensors_to_bytes(TENSORS)
    read = tensors_from_bytes(payload, SPECS, "message")
    assert list(read) == list(TENSORS)
    assert all(read[name].equal(tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    for name, array in safetensors.numpy.load(payload).items():
        np.testing.assert_array_equal(array, TENSORS[name].numpy())


def test_views_are_written_by_value() -> None:
    base = torch.arange(6.0).view(2, 3)
    read = raw_tensors_from_bytes(tensors_to_bytes({"t": base.T}), "message")
    assert read["t"].equal(base.T)


def raw(header: Mapping[str, object] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], size: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(8),
        b"\xff" * 40,
        raw(b"{}"),  # not padded
        raw(b"no json"),
        raw({"a": entry("F32", [2**63, 0], 0)}),
        raw({"a": entry("F32", [0, 2**64 - 1], 0)}),
        raw({"a": entry("F32", [-1], 4)}, bytes(4)),
        raw({"a": entry("F32", [2], 4)}, bytes(4)),
        raw({"a": entry("F4", [1], 1)}, bytes(1)),
        raw({"a": entry("F8_E8M0", [1], 1)}, bytes(1)),
        raw({"a": entry("X", [1], 1)}, bytes(1)),
        tensors_to_bytes(TENSORS)[:-1],
        tensors_to_bytes(TENSORS) + b"\0",
    ],
)
def test_what_is_no_set_of_tensors_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^the message: "):
        raw_tensors_from_bytes(payload, "the message")


def test_one_set_of_tensors_has_one_serialisation() -> None:
    payload = tensors_to_bytes({"a": torch.ones(2), "b": torch.ones(2)})
    (size,) = struct.unpack("<Q", payload[:8])
    header, data = payload[8 : 8 + size], payload[8 + size :]
    entries = json.loads(header)
    same_values = [
        raw(header.replace(b" ", b"\t") if b" " in header else header + b"\t" * 8, data),
        raw(header + b" " * 8, data),
        raw(json.dumps(entries, separators=(",", ":")).encode().ljust(size + 8), data),
        raw(json.dumps(dict(reversed(entries.items())), separators=(",", ":")).encode().ljust(size), data),
        raw(json.dumps(entries | {"__metadata__": {"key": "value"}}).encode(), data),
    ]
    for other in same_values:
        assert other != payload
        with pytest.raises(MalformedMessage):
            raw_tensors_from_bytes(other, "message")


@given(st.integers(0, len(tensors_to_bytes(TENSORS)) - 1), st.integers(1, 255))
@settings(max_examples=400)
def test_a_changed_byte_changes_the_tensors_or_is_refused(position: int, flip: int) -> None:
    payload = bytearray(tensors_to_bytes(TENSORS))
    payload[position] ^= flip
    try:
        read = tensors_from_bytes(bytes(payload), SPECS, "message")
    except MalformedMessage:
        return
    assert any(read[name].numpy().tobytes() != tensor.numpy().tobytes() for name, tensor in TENSORS.items())


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 4), max_size=3), st.binary(max_size=30))
def test_an_invented_header_raises_nothing_else(sizes: dict[str, int], data: bytes) -> None:
    header = {name: {"dtype": "F32", "shape": [size], "data_offsets": [0, size]} for name, size in sizes.items()}
    with contextlib.suppress(MalformedMessage):
        raw_tensors_from_bytes(raw(header, data), "message")


def test_tensors_are_checked_against_the_layout() -> None:
    with pytest.raises(MalformedMessage, match="missing or unknown"):
        tensors_from_bytes(tensors_to_bytes(TENSORS), SPECS[1:], "message")
    broken = TENSORS | {"b.weight": torch.full((2, 3), float("nan"))}
    with pytest.raises(MalformedMessage, match="not finite"):
        tensors_from_bytes(tensors_to_bytes(broken), SPECS, "message")
