"""The sound Paillier protocol: clients share the private key, the server only adds ciphertexts.

Each round the clients first agree on one power-of-two bound per tensor, in public, so that every value of a tensor is
encoded at one fixed exponent. Each client scales its weights by n_k / n, packs them, adds a slot that holds 1, and
sends fresh encryptions; the server multiplies ciphertexts and can open none. The sum in the last slot tells whoever
decrypts how many contributions are in it. What an individual client sent is never decrypted by the others'
software, but any client holds the key: against a client that taps another's upload the transport has to protect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from defenses.base import Claim, Magnitudes
from defenses.paillier import arithmetic, keys
from defenses.paillier.codec import PackedFixedPoint, power_of_two_exponent
from defenses.paillier.message import PaillierMessage, exponents_from
from defenses.registry import DEFENSES
from defenses.stages import Admit, ClientCodec, Codec, KeyMaterial, ServerCodec
from federation.errors import MalformedMessage, UsageError
from federation.messages import SERVER, Envelope, tensors_to_bytes
from federation.network import Network
from federation.protocol import Exchange, Moment, RoundContext
from federation.secret_root import SecretRoot
from federation.weights import Kind, Layout, TensorSpec, Weights, counters, flatten, floating, unflatten

BOUNDS = "bounds"
"""The exchange in which the cohort agrees on one bound per tensor."""


@DEFENSES.register("paillier")
@dataclass(frozen=True)
class Paillier(Codec):
    """Additively homomorphic encryption of the weights (Paillier 1999), packed; the private key is with the clients.

    Attributes:
        key_bits: length of the modulus; 2048 at least.
        minimum_parties: a client sends nothing to a cohort of fewer.
        publish_key: hand the private key to everyone (the leaky twin).
    """

    key_bits: int = 2048
    minimum_parties: int = 2
    publish_key: bool = False

    name: ClassVar[str] = "paillier"
    keyed: ClassVar[bool] = True
    key_holders: ClassVar[str] = "every client (one private key)"
    collusion_bound: ClassVar[str] = "one client"
    exchanges: ClassVar[tuple[Exchange, ...]] = (Exchange(BOUNDS, Moment.BEFORE_UPLOAD),)

    def __post_init__(self) -> None:
        if self.key_bits < keys.SECURE_BITS:
            raise UsageError(f"paillier: key_bits is {self.key_bits}; it must be {keys.SECURE_BITS} or more")

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        """The modulus in clear to everyone, the private key to clients alone."""
        private_key = _keypair(self.key_bits, root.stream(32))
        secret = keys.private_key_to_bytes(private_key)
        if self.publish_key:
            return KeyMaterial(public=secret)
        public = keys.public_key_to_bytes(private_key.public_key)
        return KeyMaterial(b"" if receiver == SERVER else secret, public)

    def opens(self, material: KeyMaterial) -> bool:
        """Only the private key opens anything."""
        return bool(material.secret) or (self.publish_key and bool(material.public))

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """Everything is hidden but counters, which are no secret; nothing is under a published key."""
        weights = Claim.PLAIN if self.publish_key else Claim.HIDDEN
        return {spec.name: Claim.PLAIN if spec.kind is Kind.COUNTER else weights for spec in network.layout}

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """Half a unit of fixed point a client, under a bound of at most twice the largest weight, and one rounding."""
        packing = PackedFixedPoint(self.key_bits, magnitudes.clients)
        exponent = power_of_two_exponent(magnitudes.weights)
        return packing.stated_error(exponent) + magnitudes.weights * 2.0**-24

    def leaky_twin(self) -> Paillier:
        """The same protocol with the private key published."""
        return replace(self, publish_key=True)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        """A client's part, with the private key; raises MalformedMessage where it does not fit the public modulus."""
        private_key = keys.private_key_from_bytes(material.public if self.publish_key else material.secret)
        if not self.publish_key and material.public != keys.public_key_to_bytes(private_key.public_key):
            raise MalformedMessage(f"key message to {name}: the private key is not the one of the public modulus")
        return PaillierClient(name, private_key, network.layout, self.minimum_parties)

    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        """The server's part, with the modulus alone; before it has arrived, the server can add nothing."""
        return PaillierServer(self._public_key(material.public) if material.public else None, network.layout)

    def _public_key(self, public: bytes) -> keys.PaillierPublicKey:
        """The modulus, as it is sent to everyone."""
        return (
            keys.private_key_from_bytes(public).public_key if self.publish_key else keys.public_key_from_bytes(public)
        )


@lru_cache(maxsize=4)
def _keypair(bits: int, seed: bytes) -> keys.PaillierPrivateKey:
    """The key pair of a root: the same for every receiver, so that it is searched for once."""
    return keys.generate_keypair(bits, SecretRoot(seed).reader())


class PaillierClient(ClientCodec):
    """The client's part: it alone encrypts and decrypts."""

    def __init__(self, name: str, private_key: keys.PaillierPrivateKey, layout: Layout, minimum_parties: int) -> None:
        self._name = name
        self._private_key = private_key
        self._layout = layout
        self._minimum_parties = minimum_parties
        self._offered: Tensor | None = None
        self._agreed: Tensor | None = None

    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        """The whole model as one contribution under its own bounds."""
        return self._encrypt(weights, self._own_exponents(weights), capacity=1)

    def offer(self, phase: str, weights: Weights, context: RoundContext) -> list[Envelope]:
        """The exponents of this client's bounds; raises UsageError in a cohort that is too small to hide in."""
        if len(context.cohort) < self._minimum_parties:
            raise UsageError(
                f"{self._name} takes part in no round of {len(context.cohort)} (minimum_parties is "
                f"{self._minimum_parties}): the sum would be its own update"
            )
        self._offered = self._own_exponents(_scaled(weights, context.share(self._name)))
        return [Envelope(context.round, phase, self._name, SERVER, tensors_to_bytes({"exponents": self._offered}))]

    def take(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> None:
        """The agreed exponents; raises MalformedMessage for none, or where they leave out what this client offered."""
        assert self._offered is not None, "the client offered its own bounds first"
        if len(inbox) != 1:
            raise MalformedMessage(f"{self._name} got {len(inbox)} agreed bounds; there must be one")
        agreed = exponents_from(inbox[0].payload, self._layout, "agreed bounds")
        if bool((agreed < self._offered).any()):
            raise MalformedMessage(f"{self._name} got agreed bounds below those that it offered")
        self._agreed = agreed

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        """Fresh encryptions of the weights times n_k / n, under the agreed bounds."""
        assert self._agreed is not None, "the bounds were agreed before the upload"
        return self._encrypt(_scaled(weights, context.share(self._name)), self._agreed, capacity=len(context.cohort))

    def decode(self, payload: bytes) -> Weights:
        """Decrypt a global message; raises MalformedMessage where it is not a sum under this key."""
        message = PaillierMessage.from_bytes(payload, self._layout, "global message")
        return self._decrypt(message, "global message", contributions=message.capacity, divide_by=1.0)

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """Decrypt one client's contribution, as whoever has the key and taps the wire can."""
        message = PaillierMessage.from_bytes(payload, self._layout, "contribution")
        return self._decrypt(message, "contribution", contributions=1, divide_by=share)

    @cached_property
    def _encryptor(self) -> arithmetic.OwnerEncryptor:
        return arithmetic.OwnerEncryptor(self._private_key)

    @cached_property
    def _decryptor(self) -> arithmetic.Decryptor:
        return arithmetic.Decryptor(self._private_key)

    def _own_exponents(self, weights: Weights) -> Tensor:
        largest = [float(weights[spec.name].abs().amax()) if spec.size else 0.0 for spec in floating(self._layout)]
        return torch.tensor([power_of_two_exponent(value) for value in largest], dtype=torch.int16)

    def _encrypt(self, weights: Weights, exponents: Tensor, capacity: int) -> bytes:
        packing = PackedFixedPoint(self._private_key.public_key.n.bit_length(), capacity)
        values = flatten(weights, floating(self._layout)).numpy()
        integers = packing.quantise(values, _per_value(exponents, floating(self._layout)))
        encrypted = self._encryptor.encrypt(packing.pack(np.append(integers, 1)))
        content = arithmetic.ciphertexts_to_bytes(self._private_key.public_key, encrypted)
        exact = {spec.name: weights[spec.name] for spec in counters(self._layout)}
        return PaillierMessage(content, exponents, capacity, exact).to_bytes()

    def _decrypt(self, message: PaillierMessage, where: str, contributions: int, divide_by: float) -> Weights:
        public_key, specs = self._private_key.public_key, floating(self._layout)
        packing = PackedFixedPoint(public_key.n.bit_length(), message.capacity)
        count = _slot_count(self._layout)
        ciphertexts = arithmetic.ciphertexts_from_bytes(public_key, message.ciphertexts, packing.ciphertexts_for(count))
        integers = packing.unpack(self._decryptor.decrypt(ciphertexts), count)
        if integers[-1] != contributions:
            raise MalformedMessage(f"{where}: the sum of {integers[-1]} contributions, not of {contributions}")
        values = packing.dequantise(integers[:-1], _per_value(message.exponents, specs)) / divide_by
        weights = unflatten(torch.from_numpy(values), specs) | message.counters
        return {spec.name: weights[spec.name] for spec in self._layout}


class PaillierServer(ServerCodec):
    """The server's part: it multiplies ciphertexts modulo n^2 and agrees bounds."""

    def __init__(self, public_key: keys.PaillierPublicKey | None, layout: Layout) -> None:
        self._public_key = public_key
        self._layout = layout

    def answer(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> list[Envelope]:
        """The largest exponent per tensor, to every client; raises MalformedMessage where one of the cohort is missing."""
        if sorted(envelope.sender for envelope in inbox) != sorted(context.cohort):
            raise MalformedMessage(
                f"round {context.round}: {len(inbox)} bounds, one of each of {context.cohort} is due"
            )
        offers = [exponents_from(envelope.payload, self._layout, f"bounds of {envelope.sender}") for envelope in inbox]
        agreed = tensors_to_bytes({"exponents": torch.stack(offers).amax(dim=0)})
        return [Envelope(context.round, phase, SERVER, name, agreed) for name in context.cohort]

    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        """The product of the cohort's ciphertexts: the encrypted sum of what they scaled by n_k / n."""
        assert self._public_key is not None, "the modulus is handed out before the first round"
        messages = {
            sender: PaillierMessage.from_bytes(payload, self._layout, f"contribution of {sender}")
            for sender, payload in uploads.items()
        }
        first = next(iter(messages.values()))
        for sender, message in messages.items():
            if message.capacity != len(uploads) or not torch.equal(message.exponents, first.exponents):
                raise MalformedMessage(f"contribution of {sender}: not at the agreed bounds, or for another cohort")
        count = _slot_count(self._layout)
        packing = PackedFixedPoint(self._public_key.n.bit_length(), len(uploads))
        columns = [
            arithmetic.ciphertexts_from_bytes(self._public_key, message.ciphertexts, packing.ciphertexts_for(count))
            for message in messages.values()
        ]
        product = arithmetic.ciphertexts_to_bytes(self._public_key, arithmetic.add(self._public_key, columns))
        largest = {
            spec.name: torch.stack([message.counters[spec.name] for message in messages.values()]).amax(dim=0)
            for spec in counters(self._layout)
        }
        return PaillierMessage(product, first.exponents, len(uploads), largest).to_bytes()

    def remap(self, payload: bytes, change: Callable[[Weights], Weights]) -> bytes:
        """Refused: the server cannot change what it cannot open."""
        raise UsageError("paillier: the server cannot re-key weights that it cannot open; use one key for all clients")


def _scaled(weights: Weights, share: float) -> Weights:
    """The floating-point tensors times `share`, in float64; counters as they are."""
    return {name: tensor.double() * share if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def _slot_count(layout: Layout) -> int:
    """Slots of a message: one a value, and one that counts contributions."""
    return sum(spec.size for spec in floating(layout)) + 1


def _per_value(exponents: Tensor, specs: Sequence[TensorSpec]) -> np.ndarray:
    """Each tensor's exponent, once for each of its values."""
    return np.repeat(exponents.numpy().astype(np.int64), [spec.size for spec in specs])
