"""The parties of a stacked defense: key agent, clients and server, each with its own keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

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
from federation.messages import KEY_AGENT, SERVER, Envelope, raw_tensors_from_bytes, tensors_to_bytes
from federation.network import Network
from federation.protocol import Phase, RoundContext
from federation.sealing import TransportKey, seal
from federation.secret_root import SecretRoot
from federation.weights import Weights


def keyring_to_bytes(keyring: Mapping[str, KeyMaterial]) -> bytes:
    """A party's key material by stage name, as named byte tensors."""
    parts = {}
    for name, material in keyring.items():
        parts[f"{name}.secret"] = _as_tensor(material.secret)
        parts[f"{name}.public"] = _as_tensor(material.public)
    return tensors_to_bytes(parts)


def keyring_from_bytes(content: bytes, stages: Sequence[Stage], where: str) -> dict[str, KeyMaterial]:
    """Read what `keyring_to_bytes` wrote for these stages; raises MalformedMessage for anything else."""
    tensors = raw_tensors_from_bytes(content, where)
    known = {f"{stage.name}.{part}" for stage in stages for part in ("secret", "public")}
    if tensors.keys() != known or any(t.dtype != torch.uint8 or t.dim() != 1 for t in tensors.values()):
        raise MalformedMessage(f"{where}: not key material for the stages {', '.join(stage.name for stage in stages)}")

    content_of = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return {
        stage.name: KeyMaterial(content_of[f"{stage.name}.secret"], content_of[f"{stage.name}.public"])
        for stage in stages
    }


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


class StackAgent:
    """Draws the keys of every stage from the secret root, seals them for each party, and rotates them when due.

    Args:
        stages: the stages of the defense.
        network: the public architecture.
        root: the run's secret root.
        transport: public transport keys by party.
    """

    def __init__(
        self, stages: Sequence[Stage], network: Network, root: SecretRoot, transport: Mapping[str, bytes]
    ) -> None:
        self._stages = stages
        self._network = network
        self._root = root
        self._transport = dict(transport)
        self._issued: dict[str, tuple[int, ...]] = {}

    def issue(self, context: RoundContext) -> list[Envelope]:
        """Key messages for the parties of this round whose keys are not those of the round's epochs."""
        epochs = tuple(stage.key_epoch(context.round) for stage in self._stages)
        due = [name for name in (*context.cohort, SERVER) if self._issued.get(name) != epochs]
        envelopes = []
        for receiver in due:
            self._issued[receiver] = epochs
            keyring = self._keyring(receiver, epochs)
            if any(material.secret or material.public for material in keyring.values()):
                envelopes.append(self._envelope(receiver, keyring, context.round))
        return envelopes

    def held(self) -> bytes:
        """Every stage's keys of the latest epoch, as a client would hold them."""
        receiver = next(name for name in self._transport if name != SERVER)
        return keyring_to_bytes(self._keyring(receiver, self._issued[receiver]))

    def _keyring(self, receiver: str, epochs: Sequence[int]) -> dict[str, KeyMaterial]:
        return {
            stage.name: stage.draw_keys(self._network, receiver, self._root.derive("stage", stage.name, epoch))
            for stage, epoch in zip(self._stages, epochs, strict=True)
        }

    def _envelope(self, receiver: str, keyring: Mapping[str, KeyMaterial], round_number: int) -> Envelope:
        public_key = self._transport[receiver]
        sealed = {
            name: KeyMaterial(seal(material.secret, public_key) if material.secret else b"", material.public)
            for name, material in keyring.items()
        }
        return Envelope(round_number, Phase.KEYS, KEY_AGENT, receiver, keyring_to_bytes(sealed))


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

    def _build(self, keyring: Mapping[str, KeyMaterial]) -> None:
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

    def _build(self, keyring: Mapping[str, KeyMaterial]) -> None:
        self._side.build(self.name, keyring)
        self._received_payload = b""


class ClientSide:
    """The client's parts of all stages, built from a keyring."""

    def __init__(self, transforms: Sequence[Transform], codec: Codec, network: Network) -> None:
        self._stages, self._codec, self._network = transforms, codec, network
        self._built: tuple[list[ClientTransform], ClientCodec] | None = None

    def build(self, name: str, keyring: Mapping[str, KeyMaterial]) -> None:
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
        self.state = envelope.payload

    def broadcast(self, phase: str, receivers: Sequence[str], context: RoundContext) -> list[Envelope]:
        """See `ServerParty.broadcast`."""
        return [
            Envelope(context.round, phase, SERVER, receiver, self._addressed_to(receiver)) for receiver in receivers
        ]

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
        self.state = self._codec.combine(payloads, self.state, context, self._admit)

    def _admit(self, sender: str, weights: Weights) -> Weights:
        for transform in reversed(self._server_transforms):
            weights = transform.admit(sender, weights)
        return weights

    def _addressed_to(self, receiver: str) -> bytes:
        def address(weights: Weights) -> Weights:
            for transform in self._server_transforms:
                weights = transform.address(receiver, weights)
            return weights

        return self._codec.remap(self.state, address) if self._server_transforms else self.state

    def _build(self, keyring: Mapping[str, KeyMaterial]) -> None:
        parts = [stage.server(keyring[stage.name], self._network) for stage in self._transforms]
        codec: ServerCodec = self._codec_stage.server(keyring[self._codec_stage.name], self._network)
        self._server_transforms: list[ServerTransform] = [part for part in parts if part is not None]
        self._codec = codec
