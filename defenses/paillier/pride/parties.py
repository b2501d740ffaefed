"""The parties of PriDe: a cloud that makes the key and keeps it, and clients that have the public half alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
from phe.paillier import EncryptedNumber, PaillierPrivateKey, PaillierPublicKey
from torch import Tensor, nn

from defenses.paillier.arithmetic import OwnerEncryptor, PublicEncryptor
from defenses.paillier.pride import arithmetic, messages
from defenses.paillier.pride.rules import Rules
from federation.errors import KeyholeError, MalformedMessage
from federation.messages import SERVER, Envelope, tensors_to_bytes
from federation.protocol import Phase, RoundContext
from federation.training import cross_entropy_gradients
from federation.weights import Weights, check_layout, counters


class PrideCloud:
    """The server: the paper's cloud, its own key agent. It decrypts what parties return.

    Args:
        rules: what is computed.
        private_key: its key pair.
        publish: whether to send the private key to everyone (the leaky twin).
    """

    def __init__(self, rules: Rules, private_key: PaillierPrivateKey, *, publish: bool) -> None:
        self.state = b""  # the global weights in clear, as a release carries them
        self._rules = rules
        self._private_key = private_key
        self._public_key: PaillierPublicKey = private_key.public_key
        self._key_message = messages.keys_to_bytes(self._public_key, private_key if publish else None)
        self._issued: set[str] = set()

    def issue(self, context: RoundContext) -> list[Envelope]:
        """The public key, to every client of the cohort that has not got it yet (`KeyAgentParty.issue`)."""
        due = [name for name in context.cohort if name not in self._issued]
        self._issued.update(due)
        return [Envelope(context.round, Phase.KEYS, SERVER, name, self._key_message) for name in due]

    def held(self) -> bytes:
        """The whole key pair, serialised."""
        return messages.keys_to_bytes(self._public_key, self._private_key)

    def receive_key(self, envelope: Envelope, context: RoundContext) -> None:
        """Refused: the cloud makes its own key."""
        raise MalformedMessage(f"{SERVER} makes its own key; it takes none from {envelope.sender!r}")

    def adopt(self, envelope: Envelope, context: RoundContext) -> None:
        """See `ServerParty.adopt`."""
        envelope.check_route(context.round, [Phase.INITIAL], context.cohort[:1], SERVER)
        messages.release_from_bytes(envelope.payload, self._rules, "initial model")
        self.state = envelope.payload

    def broadcast(self, phase: str, receivers: Sequence[str], context: RoundContext) -> list[Envelope]:
        """The global weights: to those who train, encrypted as well, by one fresh encryption for all of them."""
        payload = self.state
        if phase == Phase.BROADCAST:
            encrypted = arithmetic.encrypt_as_owner(
                self._rules.values(self._weights),
                self._encryptor,
                self._public_key,
                absolute_precision=self._rules.absolute_precision,
            )
            # fresh as they are
            payload = messages.broadcast_to_bytes(self._weights, arithmetic.to_message(encrypted, randomised=False))
        return [Envelope(context.round, phase, SERVER, receiver, payload) for receiver in receivers]

    def answer(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> list[Envelope]:
        """There are no exchanges to answer."""
        return []

    def aggregate(self, uploads: Sequence[Envelope], context: RoundContext) -> None:
        """Average what the parties returned and decrypt the average (two-party form: decrypt each, then average).

        Raises MalformedMessage where one of the cohort is missing or comes twice, or returned something else.
        """
        senders = [envelope.sender for envelope in uploads]
        if sorted(senders) != sorted(context.cohort):
            raise MalformedMessage(f"round {context.round}: contributions from {senders}, expected {context.cohort}")
        columns, exact = [], []
        for envelope in uploads:
            envelope.check_route(context.round, [Phase.UPLOAD], context.cohort, SERVER)
            where = f"contribution of {envelope.sender}"
            numbers, own_counters = messages.upload_from_bytes(envelope.payload, self._rules, where)
            columns.append(arithmetic.from_message(numbers, self._public_key))
            exact.append(own_counters)
        largest = {
            spec.name: torch.stack([own[spec.name] for own in exact]).amax(dim=0)
            for spec in counters(self._rules.layout)
        }
        values = self._rules.released(self._average(columns), self._weights, len(columns))
        aggregate = self._rules.replaced(self._weights, values, largest)
        check_layout(aggregate, self._rules.layout, f"aggregate of round {context.round}")
        self.state = tensors_to_bytes(aggregate)

    def _average(self, columns: Sequence[Sequence[EncryptedNumber]]) -> arithmetic.Values:
        parties = len(columns)
        if self._rules.form == "two-party":
            decrypted = [arithmetic.decrypt(self._private_key, column) for column in columns]
            return sum(decrypted[1:], start=decrypted[0]) / parties
        total = arithmetic.divide(arithmetic.divide(arithmetic.add(columns), parties), 2)
        return arithmetic.decrypt(self._private_key, total)

    @property
    def _weights(self) -> Weights:
        return messages.release_from_bytes(self.state, self._rules, "global model")

    @cached_property
    def _encryptor(self) -> OwnerEncryptor:
        return OwnerEncryptor(self._private_key)


class PrideClient:
    """A party: it trains from the weights in clear and adds what it trained to the encrypted ones.

    Args:
        name: its wire name.
        rules: what is computed.
        key_bits: the agreed length of the modulus.
        randomised: whether ciphertexts are re-randomised before they leave.
    """

    def __init__(self, name: str, rules: Rules, key_bits: int, *, randomised: bool) -> None:
        self.name = name
        self._rules = rules
        self._key_bits = key_bits
        self._randomised = randomised
        self._key_message = b""
        self._public_key: PaillierPublicKey | None = None
        self._received: list[EncryptedNumber] = []  # of the latest broadcast

    def receive_key(self, envelope: Envelope, context: RoundContext) -> None:
        """Take the public key (see `ClientParty.receive_key`)."""
        envelope.check_route(context.round, [Phase.KEYS], [SERVER], self.name)
        where = f"key message to {self.name}"
        self._public_key, _ = messages.keys_from_bytes(envelope.payload, self._key_bits, where)
        self._key_message = envelope.payload

    def held(self) -> bytes:
        """What the cloud sent it: the public key."""
        return self._key_message

    def protect_initial(self, weights: Weights, context: RoundContext) -> Envelope:
        """See `ClientParty.protect_initial`: in clear, as every released model is."""
        return Envelope(context.round, Phase.INITIAL, self.name, SERVER, tensors_to_bytes(weights))

    def recover(self, envelope: Envelope, context: RoundContext) -> Weights:
        """See `ClientParty.recover`."""
        envelope.check_route(context.round, [Phase.BROADCAST, Phase.RELEASE], [SERVER], self.name)
        if envelope.phase == Phase.RELEASE:
            return messages.release_from_bytes(envelope.payload, self._rules, "released model")
        if self._public_key is None:
            raise KeyholeError(f"{self.name} has not received its key yet")
        weights, numbers = messages.broadcast_from_bytes(envelope.payload, self._rules, "broadcast")
        self._received = arithmetic.from_message(numbers, self._public_key)
        return weights

    def offer(self, phase: str, context: RoundContext) -> list[Envelope]:
        """There are no exchanges to take part in."""
        return []

    def take(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> None:
        """There are no exchanges to take part in."""

    def protect(self, context: RoundContext) -> Envelope:
        """E(w_0) + a_k w_k, divided by 2 in the two-party form."""
        assert context.trained is not None, "a client protects what it trained"
        rules = self._rules
        values = rules.factor(context.share(self.name)) * rules.values(context.trained)
        summed = arithmetic.add_plain(self._received, values, absolute_precision=rules.absolute_precision)
        if rules.form == "two-party":
            summed = arithmetic.divide(summed, 2)
        if self._randomised:
            assert self._public_key is not None, "the broadcast was read under it"
            summed = arithmetic.rerandomised(summed, _public_encryptor(self._public_key))
        exact = {spec.name: context.trained[spec.name] for spec in counters(rules.layout)}
        payload = messages.upload_to_bytes(arithmetic.to_message(summed, randomised=False), exact)
        return Envelope(context.round, Phase.UPLOAD, self.name, SERVER, payload)

    def transform_images(self, images: Tensor) -> Tensor:
        """Training sees the images as they are."""
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Plain mean cross-entropy."""
        return cross_entropy_gradients(model, images, labels)


@lru_cache(maxsize=2)
def _public_encryptor(public_key: PaillierPublicKey) -> PublicEncryptor:
    """The tables of a key, which all parties of this process have in common; their randomness is fresh each time."""
    return PublicEncryptor(public_key)
