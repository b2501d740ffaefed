"""What a position makes of a round of PriDe: bytes, held keys and public facts, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from phe.paillier import PaillierPrivateKey

from defenses.paillier.pride import arithmetic, messages
from defenses.paillier.pride.rules import Rules
from federation.messages import Transcript
from federation.protocol import Phase
from federation.threat import AGGREGATE, Ciphertext, Nothing, PlainModel, Position, View
from federation.weights import Weights

CLOUD_SUM = "cloud-sum"
"""In `hidden_by`: what is read of a party still has the cloud's weights in it."""


def read_round(
    rules: Rules,
    key_bits: int,
    transcript: Transcript,
    position: Position,
    held: Mapping[str, bytes],
    *,
    published: bool,
    sample_counts: Mapping[str, int],
) -> View:
    """Decode as much of one round's transcript as the position can.

    - With the private key, as the cloud (server, key agent): of each party what its ciphertexts decrypt to, which is
      w_0 + a_k w_k (six-party form) or half of that (two-party); see `rules`. The cloud's weights are in it, and the
      view says so by `CLOUD_SUM`, though w_0 stands in the broadcast and a_k is public.
    - The cloud together with a client, or anyone under a published key: the parties' weights.
    - A client or who reads releases alone: the released models, which are in clear.
    - Anyone else: ciphertext.

    Values that are not sent (`first_rows_only`) are those of the model before.

    Args:
        rules: what is computed.
        key_bits: the agreed length of the modulus.
        transcript: the envelopes of one round that the position reads.
        position: where the adversary stands.
        held: serialised state of the parties that it holds, by wire name.
        published: whether the private key is meant for everyone.
        sample_counts: public training-set sizes of the cohort.
    """
    broadcasts, uploads = transcript.phase(Phase.BROADCAST), transcript.phase(Phase.UPLOAD)
    releases = transcript.phase(Phase.RELEASE)
    if not broadcasts or not (uploads or releases):
        return Nothing("no broadcast and update of the same round among the envelopes that it reads")
    before, _ = messages.broadcast_from_bytes(broadcasts[0].payload, rules, "broadcast")
    released = {AGGREGATE: messages.release_from_bytes(releases[0].payload, rules, "release")} if releases else {}
    private_key = _private_key(held, transcript, key_bits)
    if private_key is None:
        if position in (Position.CLIENT, Position.AGGREGATE):
            return PlainModel(before, released)
        return Ciphertext(messages.NAME, sum(len(envelope.payload) for envelope in uploads))
    opened = published or position is Position.COLLUSION
    total = sum(sample_counts.values())
    after = {}
    for envelope in uploads:
        values, exact = _decrypted(envelope.payload, rules, private_key)
        if opened:
            values = rules.party_weights(values, before, sample_counts[envelope.sender] / total)
        after[envelope.sender] = rules.replaced(before, values, exact)
    return PlainModel(before, after | released, frozenset() if opened else frozenset({CLOUD_SUM}))


def _private_key(held: Mapping[str, bytes], transcript: Transcript, key_bits: int) -> PaillierPrivateKey | None:
    """The first private key among the held states and the key messages."""
    states = {f"the state of {party}": content for party, content in held.items()}
    states |= {f"key message to {envelope.receiver}": envelope.payload for envelope in transcript.phase(Phase.KEYS)}
    for where, content in states.items():
        _, private_key = messages.keys_from_bytes(content, key_bits, where)
        if private_key is not None:
            return private_key
    return None


@lru_cache(maxsize=16)  # a number takes 3 ms, and several adversaries and attacks look at the same round
def _decrypted(payload: bytes, rules: Rules, private_key: PaillierPrivateKey) -> tuple[arithmetic.Values, Weights]:
    """The numbers of one contribution, and its counters."""
    numbers, exact = messages.upload_from_bytes(payload, rules, "contribution")
    encrypted = arithmetic.from_message(numbers, private_key.public_key)
    return arithmetic.decrypt(private_key, encrypted), exact
