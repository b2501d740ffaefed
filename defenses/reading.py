"""What a position makes of a stacked defense's transcript: bytes, held keys and public facts, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from defenses.keyrings import Keyring, keyring_from_bytes, keyrings_from_bytes
from defenses.stages import ClientCodec, ClientTransform, Codec, KeyMaterial, Transform
from federation.messages import KEY_AGENT, SERVER, Envelope, Transcript
from federation.network import Network
from federation.protocol import Phase, RoundContext
from federation.seeds import torch_generator
from federation.threat import AGGREGATE, Nothing, PlainModel, View
from federation.weights import Weights

Keyrings: TypeAlias = Mapping[str, Keyring]
"""What a position holds, by party; under every party's name also what the agent sent it in clear."""


class _Opener:
    """One transform undone as far as a position's keys allow.

    Args:
        stage: the transform.
        keyrings: what the position holds.
        network: the public architecture.
    """

    def __init__(self, stage: Transform, keyrings: Keyrings, network: Network) -> None:
        self._stage, self._network = stage, network
        server = keyrings[SERVER][stage.name] if SERVER in keyrings else KeyMaterial()
        self._server = stage.server(server, network)
        # what leads from the server's frame to others opens nothing by itself
        able = {party: ring[stage.name] for party, ring in keyrings.items() if party != SERVER or self._server is None}
        self._materials = {party: material for party, material in able.items() if stage.opens(material)}
        if not stage.keyed:
            self._materials.setdefault("anyone", KeyMaterial())
        self._parts: dict[str, ClientTransform] = {}

    def opens(self, client: str) -> bool:
        """Whether what this client sends or receives can be opened."""
        reachable = self._server is not None or not self._stage.key_per_client
        return client in self._materials or (reachable and bool(self._materials))

    def undo(self, client: str, weights: Weights, context: RoundContext) -> Weights:
        """The transform undone; where no key is held but the server's part is, brought to the server's frame."""
        if client in self._materials:
            return self._part(client).undo(weights, context)
        colluder = next(iter(self._materials), None)
        if self._server is not None and (colluder is None or self._stage.key_per_client):
            weights = self._server.admit(client, weights)
            weights = weights if colluder is None else self._server.address(colluder, weights)
        return self._part(colluder).undo(weights, context) if colluder and self.opens(client) else weights

    def _part(self, party: str) -> ClientTransform:
        if party not in self._parts:
            self._parts[party] = self._stage.client(party, self._materials[party], self._network)
        return self._parts[party]


@dataclass(frozen=True)
class _Reader:
    """What a position can decode of the codec and the transforms under it."""

    codec: ClientCodec
    openers: Mapping[str, _Opener]  # by stage name, from the weights outwards

    def undo(self, client: str, weights: Weights, context: RoundContext) -> Weights:
        """Undo the transforms of what this client sent or received, up to the first that stays."""
        for opener in reversed(list(self.openers.values())):
            weights = opener.undo(client, weights, context)
            if not opener.opens(client):
                break
        return weights

    def hidden_by(self, client: str) -> frozenset[str]:
        """The stages that stay in place on what this client sends or receives."""
        return frozenset(name for name, opener in self.openers.items() if not opener.opens(client))


def read_stack(
    transforms: Sequence[Transform],
    codec: Codec,
    transcript: Transcript,
    held: Mapping[str, bytes],
    *,
    network: Network,
    sample_counts: Mapping[str, int],
) -> View:
    """Decode as much of one round's transcript as the held keys allow.

    Transforms whose key is missing stay in place and are named in `hidden_by`; they hide everything further in, so
    that a transform is undone only if all those further out were. Where clients have keys each, every message is undone
    as far as can be, and the global weights are read from the broadcast of which most can be undone: an outsider sees
    them in the first receiver's frame, and every upload in its sender's.
    """
    broadcasts, uploads = transcript.phase(Phase.BROADCAST), transcript.phase(Phase.UPLOAD)
    releases = transcript.phase(Phase.RELEASE)
    if not broadcasts or not (uploads or releases):
        return Nothing("no broadcast and update of the same round among the envelopes that it reads")
    keyrings = _keyrings((*transforms, codec), held, transcript)
    material = next((ring[codec.name] for ring in keyrings.values() if codec.opens(ring[codec.name])), KeyMaterial())
    if not codec.opens(material):
        sent = {envelope.sender: envelope.payload for envelope in uploads}
        released = {AGGREGATE: releases[0].payload} if releases else {}
        hidden_by = frozenset(stage.name for stage in (*transforms, codec) if stage.keyed)
        return codec.closed_view(network, broadcasts[0].payload, sent | released, hidden_by)
    openers = {stage.name: _Opener(stage, keyrings, network) for stage in transforms}
    reader = _Reader(codec.client("reader", material, network), openers)
    cohort = tuple(envelope.sender for envelope in uploads) or tuple(sample_counts)
    total = sum(sample_counts[name] for name in sample_counts)
    context = RoundContext(broadcasts[0].round, cohort, sample_counts, torch_generator(0))

    decoded = {payload: reader.codec.decode(payload) for payload in {envelope.payload for envelope in broadcasts}}
    received = {envelope.receiver: decoded[envelope.payload] for envelope in broadcasts}
    client = min(received, key=lambda name: len(reader.hidden_by(name)))

    def opened(envelope: Envelope) -> Weights:
        sender, share = envelope.sender, sample_counts[envelope.sender] / total
        upload = reader.codec.decode_upload(envelope.payload, received.get(sender, received[client]), share)
        return reader.undo(sender, upload, context)

    after = {envelope.sender: opened(envelope) for envelope in uploads}
    hidden_by = frozenset[str]().union(*map(reader.hidden_by, (client, *after)))
    if releases:
        release = min(releases, key=lambda envelope: len(reader.hidden_by(envelope.receiver)))
        after[AGGREGATE] = reader.undo(release.receiver, reader.codec.decode(release.payload), context)
    return PlainModel(reader.undo(client, received[client], context), after, hidden_by)


def _keyrings(
    stages: Sequence[Transform | Codec], held: Mapping[str, bytes], transcript: Transcript
) -> dict[str, Keyring]:
    """What the position holds, by party, and for other parties the parts of key messages that were sent in clear."""
    keyrings: dict[str, Keyring] = {}
    for party, content in held.items():
        if content and party == KEY_AGENT:
            keyrings |= keyrings_from_bytes(content, stages, f"the state of {party}")
        elif content:
            keyrings[party] = keyring_from_bytes(content, stages, f"the state of {party}")
    for envelope in transcript.phase(Phase.KEYS):
        sent = keyring_from_bytes(envelope.payload, stages, "a key message")
        in_clear = {name: KeyMaterial(b"", material.public) for name, material in sent.items()}
        keyrings.setdefault(envelope.receiver, in_clear)
    return keyrings or {"nobody": {stage.name: KeyMaterial() for stage in stages}}
