"""What a position makes of a stacked defense's transcript: bytes, held keys and public facts, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defenses.parties import keyring_from_bytes
from defenses.stages import ClientCodec, ClientTransform, Codec, KeyMaterial, Transform
from federation.messages import Transcript
from federation.network import Network
from federation.protocol import Phase, RoundContext
from federation.seeds import torch_generator
from federation.threat import AGGREGATE, Ciphertext, Nothing, PlainModel, View
from federation.weights import Weights


@dataclass(frozen=True)
class _Reader:
    """The decoding parts that a position can build from the keys that it holds."""

    codec: ClientCodec
    transforms: Sequence[ClientTransform]
    hidden_by: frozenset[str]

    def undo(self, weights: Weights, context: RoundContext) -> Weights:
        for transform in reversed(self.transforms):
            weights = transform.undo(weights, context)
        return weights


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
    that a transform is undone only if all those further out were.
    """
    broadcasts, uploads = transcript.phase(Phase.BROADCAST), transcript.phase(Phase.UPLOAD)
    releases = transcript.phase(Phase.RELEASE)
    if not broadcasts or not (uploads or releases):
        return Nothing("no broadcast and update of the same round among the envelopes that it reads")
    keyring = _held_keys((*transforms, codec), held, transcript)
    if not codec.opens(keyring[codec.name]):
        return Ciphertext(codec.name, sum(len(envelope.payload) for envelope in uploads))
    reader = _reader(transforms, codec, keyring, network)
    cohort = tuple(envelope.sender for envelope in uploads) or tuple(sample_counts)
    total = sum(sample_counts[name] for name in sample_counts)
    context = RoundContext(broadcasts[0].round, cohort, sample_counts, torch_generator(0))
    base = reader.codec.decode(broadcasts[0].payload)
    after = {
        envelope.sender: reader.undo(
            reader.codec.decode_upload(envelope.payload, base, sample_counts[envelope.sender] / total), context
        )
        for envelope in uploads
    }
    if releases:
        after[AGGREGATE] = reader.undo(reader.codec.decode(releases[0].payload), context)
    return PlainModel(reader.undo(base, context), after, reader.hidden_by)


def _held_keys(
    stages: Sequence[Transform | Codec], held: Mapping[str, bytes], transcript: Transcript
) -> dict[str, KeyMaterial]:
    """The key material of the first party that the position holds, else the public parts that were sent in clear."""
    for party, content in held.items():
        if content:
            return keyring_from_bytes(content, stages, f"the state of {party}")
    keyring = {stage.name: KeyMaterial() for stage in stages}
    for envelope in transcript.phase(Phase.KEYS):
        sent = keyring_from_bytes(envelope.payload, stages, "a key message")
        keyring |= {name: KeyMaterial(b"", material.public) for name, material in sent.items() if material.public}
    return keyring


def _reader(
    transforms: Sequence[Transform], codec: Codec, keyring: Mapping[str, KeyMaterial], network: Network
) -> _Reader:
    undone: list[ClientTransform] = []
    hidden: set[str] = set()
    for stage in reversed(transforms):
        if not stage.opens(keyring[stage.name]):
            hidden.add(stage.name)
        elif not hidden:
            undone.insert(0, stage.client("reader", keyring[stage.name], network))
    return _Reader(codec.client("reader", keyring[codec.name], network), undone, frozenset(hidden))
