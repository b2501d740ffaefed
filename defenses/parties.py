"""Clients and server of a stacked defense, each with its own keys; the key agent has a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from defenses.agent import StackAgent
from defenses.keyrings import Keyring, keyring_from_bytes, keyring_to_bytes
from defenses.plain import Plain
from defenses.stages import (
    ClientCodec,
    ClientTransform,
    Codec,
    KeyMaterial,
    LocalStepsOfStages,
    ServerCodec,
    ServerTransform,
    Stage,
    Transform,
)
from federation.errors import KeyholeError, MalformedMessage
from federation.messages import KEY_AGENT, SERVER, Envelope
from federation.network import Network
from federation.protocol import Phase, RoundContext
from federation.sealing import TransportKey
from federation.secret_root import SecretRoot
from federation.weights import Weights

__all__ = ["ClientSide", "StackAgent", "StackClient", "StackServer"]


class _KeyHolder:
    """What clients and server share: a transport key, and a keyring that arrives in sealed envelopes."""

    def __init__(self, name: str, stages: Sequence[Stage], root: SecretRoot) -> None:
        self.name = name
        self._stages = stages
        self._transport = TransportKey(root.derive("transport", name))
        self._keyring = {stage.name: KeyMaterial() for stage in stages}

    @property
    def transport_public(self) -> bytes:
        """What others seal with."""
        return self._transport.public

    def receive_key(self, envelope: Envelope, context: RoundContext) -> None:
        """Open a key message and replace the keyring; raises MalformedMessage where it is not one for this party."""
        envelope.check_route(context.round, [Phase.KEYS], [KEY_AGENT], self.name)
        sealed = keyring_from_bytes(envelope.payload, self._stages, f"key message to {self.name}")
        keyring = {
            name: KeyMaterial(self._transport.open(material.secret) if material.secret else b"", material.public)
            for name, material in sealed.items()
        }
        self._build(keyring)  # where this raises, the party goes on with the keys that it had
        self._keyring = keyring

    def held(self) -> bytes:
        """The keyring, serialised."""
        return keyring_to_bytes(self._keyring) if any(m.secret for m in self._keyring.values()) else b""

    def _build(self, keyring: Keyring) -> None:
        """Make this party's parts of the stages, all or none; raises MalformedMessage for keys that do not fit."""
        raise NotImplementedError


class StackClient(_KeyHolder):
    """A client: its weights pass every transform and then the codec; what it receives comes back the same way."""

    def __init__(
        self, name: str, transforms: Sequence[Transform], codec: Codec, network: Network, root: SecretRoot
    ) -> None:
        super().__init__(name, (*transforms, codec), root)
        self._side = ClientSide(transforms, codec, network)
        self._received_payload = b""
        self._received: Weights = {}  # the latest global weights, as they came off the wire
        if not any(stage.keyed for stage in self._stages):
            self._build(self._keyring)

    def protect_initial(self, weights: Weights, context: RoundContext) -> Envelope:
        """See `ClientParty.protect_initial`."""
        payload = self._codec.encode_initial(self._apply(weights, context), context)
        return Envelope(context.round, Phase.INITIAL, self.name, SERVER, payload)

    def recover(self, envelope: Envelope, context: RoundContext) -> Weights:
        """See `ClientParty.recover`."""
        envelope.check_route(context.round, [Phase.BROADCAST, Phase.RELEASE], [SERVER], self.name)
        if envelope.payload != self._received_payload:  # the same message is not decrypted twice
            self._received, self._received_payload = self._codec.decode(envelope.payload), envelope.payload
        weights = self._received
        for transform in reversed(self._transforms):
            weights = transform.undo(weights, context)
        return weights

    def offer(self, phase: str, context: RoundContext) -> list[Envelope]:
        """See `ClientParty.offer`."""
        assert context.trained is not None, "the codec's exchanges take place after training"
        return self._codec.offer(phase, self._apply(context.trained, context), context)

    def take(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> None:
        """See `ClientParty.take`."""
        for envelope in inbox:
            envelope.check_route(context.round, [phase], [SERVER, *context.cohort], self.name)
        self._codec.take(phase, inbox, context)

    def protect(self, context: RoundContext) -> Envelope:
        """See `ClientParty.protect`."""
        assert context.trained is not None, "a client protects what it trained"
        payload = self._codec.encode(self._apply(context.trained, context), self._received, context)
        return Envelope(context.round, Phase.UPLOAD, self.name, SERVER, payload)

    def transform_images(self, images: Tensor) -> Tensor:
        """See `ClientParty.transform_images`."""
        return LocalStepsOfStages(self._transforms).transform_images(images)

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `ClientParty.step_gradients`."""
        return LocalStepsOfStages(self._transforms).step_gradients(model, images, labels)

    @property
    def _codec(self) -> ClientCodec:
        return self._side.codec

    @property
    def _transforms(self) -> Sequence[ClientTransform]:
        return self._side.transforms

    def _apply(self, weights: Weights, context: RoundContext) -> Weights:
        for transform in self._transforms:
            weights = transform.apply(weights, context)
        return weights

    def _build(self, keyring: Keyring) -> None:
        self._side.build(self.name, keyring)
        self._received_payload = b""


class ClientSide:
    """The client's parts of all stages, built from a keyring."""

    def __init__(self, transforms: Sequence[Transform], codec: Codec, network: Network) -> None:
        self._stages, self._codec, self._network = transforms, codec, network
        self._built: tuple[list[ClientTransform], ClientCodec] | None = None

    def build(self, name: str, keyring: Keyring) -> None:
        """Make the parts anew; raises MalformedMessage for key material that does not fit."""
        transforms = [stage.client(name, keyring[stage.name], self._network) for stage in self._stages]
        self._built = transforms, self._codec.client(name, keyring[self._codec.name], self._network)

    @property
    def transforms(self) -> list[ClientTransform]:
        """The transforms' parts, from the weights outwards."""
        return self._parts[0]

    @property
    def codec(self) -> ClientCodec:
        """The codec's part."""
        return self._parts[1]

    @property
    def _parts(self) -> tuple[list[ClientTransform], ClientCodec]:
        if self._built is None:
            raise KeyholeError("this party has not received its keys yet")
        return self._built


class StackServer(_KeyHolder):
    """The server: it combines contributions in the codec's terms and holds the current global message."""

    def __init__(self, transforms: Sequence[Transform], codec: Codec, network: Network, root: SecretRoot) -> None:
        super().__init__(SERVER, (*transforms, codec), root)
        self._network = network
        self._transforms = transforms
        self._codec_stage = codec
        self.state = b""
        self._build(self._keyring)

    def adopt(self, envelope: Envelope, context: RoundContext) -> None:
        """See `ServerParty.adopt`."""
        envelope.check_route(context.round, [Phase.INITIAL], context.cohort[:1], SERVER)
        self.state = self._remapped(envelope.payload, lambda weights: self._admit(envelope.sender, weights))

    def broadcast(self, phase: str, receivers: Sequence[str], context: RoundContext) -> list[Envelope]:
        """See `ServerParty.broadcast`."""
        addressed = self._addressed(receivers)
        return [Envelope(context.round, phase, SERVER, receiver, addressed[receiver]) for receiver in receivers]

    def answer(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> list[Envelope]:
        """See `ServerParty.answer`."""
        for envelope in inbox:
            envelope.check_route(context.round, [phase], context.cohort, SERVER)
        return self._codec.answer(phase, inbox, context)

    def aggregate(self, uploads: Sequence[Envelope], context: RoundContext) -> None:
        """See `ServerParty.aggregate`; raises MalformedMessage where one of the cohort is missing or comes twice."""
        senders = [envelope.sender for envelope in uploads]
        if sorted(senders) != sorted(context.cohort):
            raise MalformedMessage(f"round {context.round}: contributions from {senders}, expected {context.cohort}")
        for envelope in uploads:
            envelope.check_route(context.round, [Phase.UPLOAD], context.cohort, SERVER)
        payloads = {envelope.sender: envelope.payload for envelope in uploads}
        received = self._addressed(context.cohort)
        if all(part.alike for part in self._server_transforms):
            self.state = self._codec.combine(payloads, received[context.cohort[0]], context, self._admit)
            return
        # Contributions may be relative to what their sender received, in its own frame: each is combined on its own.
        admitted = {
            sender: self._codec.combine(
                {sender: payload}, received[sender], replace(context, cohort=(sender,)), self._admit
            )
            for sender, payload in payloads.items()
        }
        self.state = Plain().server(KeyMaterial(), self._network).combine(admitted, b"", context, _as_it_is)

    def _admit(self, sender: str, weights: Weights) -> Weights:
        for transform in reversed(self._server_transforms):
            weights = transform.admit(sender, weights)
        return weights

    def _addressed(self, receivers: Sequence[str]) -> dict[str, bytes]:
        """The global message as each of these receives it; the same for all who are in one frame."""

        def address(receiver: str, weights: Weights) -> Weights:
            for transform in self._server_transforms:
                weights = transform.address(receiver, weights)
            return weights

        if all(part.alike for part in self._server_transforms):
            return dict.fromkeys(receivers, self._remapped(self.state, lambda weights: address(receivers[0], weights)))
        return {name: self._codec.remap(self.state, partial(address, name)) for name in receivers}

    def _remapped(self, payload: bytes, change: Callable[[Weights], Weights]) -> bytes:
        """A global message changed, where there is anything to change."""
        return self._codec.remap(payload, change) if self._server_transforms else payload

    def _build(self, keyring: Keyring) -> None:
        parts = [stage.server(keyring[stage.name], self._network) for stage in self._transforms]
        codec: ServerCodec = self._codec_stage.server(keyring[self._codec_stage.name], self._network)
        self._server_transforms: list[ServerTransform] = [part for part in parts if part is not None]
        self._codec = codec


def _as_it_is(sender: str, weights: Weights) -> Weights:
    """The admission of weights that are in the server's frame already."""
    return weights
