"""What crosses the wire around one party's training in the PriDe protocol: what it received, and what it sent."""

from __future__ import annotations

from dataclasses import dataclass

from attacks.adaptive.pride import PrideRules
from federation.encrypted_numbers import EncryptedNumbers
from federation.errors import MalformedMessage
from federation.messages import Envelope, Transcript, raw_tensors_from_bytes, tensors_from_bytes
from federation.protocol import Phase
from federation.threat import AGGREGATE, Observation, PlainModel
from federation.weights import Weights, check_layout


@dataclass(frozen=True)
class EncryptedRound:
    """One party's side of a round.

    Attributes:
        rules: what was computed.
        before: the released model, which the broadcast carries in clear beside the numbers.
        received: the encrypted numbers of the broadcast.
        sent: those of the party's upload, as many and in the same order.
    """

    rules: PrideRules
    before: Weights
    received: EncryptedNumbers
    sent: EncryptedNumbers

    @classmethod
    def of(cls, observation: Observation, sender: str) -> EncryptedRound:
        """Read the messages to and from `sender`.

        Raises MalformedMessage where the position reads none, or what it reads are not numbers as the rules have them.
        """
        rules = PrideRules.known_to(observation) or PrideRules()
        layout, envelopes = observation.network.layout, observation.transcript.touching(sender)
        where = f"broadcast to {sender}"
        before = raw_tensors_from_bytes(_only(envelopes.phase(Phase.BROADCAST), where).payload, where)
        received = EncryptedNumbers.take_from(before, where)
        check_layout(before, layout, where)
        where = f"upload of {sender}"
        uploaded = raw_tensors_from_bytes(_only(envelopes.phase(Phase.UPLOAD), where).payload, where)
        sent = EncryptedNumbers.take_from(uploaded, where)
        positions = rules.sent(layout)
        if {len(received.ciphertexts), len(sent.ciphertexts)} != {positions.stop - positions.start}:
            raise MalformedMessage(f"{where}: other numbers than the {positions.stop - positions.start} that are due")
        if received.modulus != sent.modulus:
            raise MalformedMessage(f"{where}: under another modulus than the broadcast")
        return cls(rules, before, received, sent)


def released_model(observation: Observation) -> Weights | None:
    """The model that the round ended in; None where the position does not read it in clear."""
    if isinstance(observation.view, PlainModel):
        return observation.view.after.get(AGGREGATE)
    for envelope in observation.transcript.phase(Phase.RELEASE):
        try:
            return tensors_from_bytes(envelope.payload, observation.network.layout, "released model")
        except MalformedMessage:
            return None
    return None


def _only(envelopes: Transcript, what: str) -> Envelope:
    if len(envelopes) != 1:
        raise MalformedMessage(f"the position reads {len(envelopes) or 'no'} envelopes with a {what}; one is needed")
    return envelopes[0]
