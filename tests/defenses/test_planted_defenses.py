"""Fakes that must not pass: each planted defense cheats in one way, and the audit or the conformance suite says which."""

from __future__ import annotations

import base64
import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import nacl.secret
import numpy as np
import pytest
import torch
from gmpy2 import mpz
from phe.paillier import EncryptedNumber, PaillierPublicKey

from benchmark.audit import audit_claims, earned_shortcut
from benchmark.audit.stand_in import smallest_stand_in, stand_in
from benchmark.conformance import CHECKS, ConformanceFailure, Subject
from defenses.base import Claim, Magnitudes
from defenses.keynet.channel import ChannelTransform
from defenses.keynet.defense import KeyNet, KeyNetClient
from defenses.keynet.keys import identity_keys
from defenses.paillier import arithmetic
from defenses.paillier.message import PaillierMessage
from defenses.paillier.protocol import Paillier, PaillierClient
from defenses.plain import OpenServer, Plain, PlainClient
from defenses.stack import Stack
from defenses.stages import Admit, ClientCodec, ClientTransform, Codec, KeyMaterial, ServerCodec
from federation.messages import SERVER, Envelope, raw_tensors_from_bytes, tensors_to_bytes
from federation.models import build_model
from federation.network import Network
from federation.protocol import Parties, RoundContext
from federation.secret_root import SecretRoot
from federation.weights import Kind, Layout, Weights, counters, flatten, floating, unflatten

ROOT = SecretRoot(b"planted defenses" * 2)


def pad(label: object, size: int) -> bytes:
    """`size` bytes that are the same whenever the label is."""
    return hashlib.shake_256(repr(label).encode()).digest(size)


def xor(content: bytes, mask: bytes) -> bytes:
    return (np.frombuffer(content, np.uint8) ^ np.frombuffer(mask, np.uint8)).tobytes()


class Cipher(ABC):
    """What a fake does to the float32 bytes of a model; `sender` and `round_number` say which message it is."""

    @abstractmethod
    def seal(self, content: bytes, sender: str, round_number: int) -> bytes: ...

    @abstractmethod
    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes: ...


class AsItIs(Cipher):
    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        return content

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        return sealed


class Base64(Cipher):
    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        return base64.b64encode(content)

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        return base64.b64decode(sealed)


class ConstantXor(Cipher):
    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        return xor(content, pad("constant", len(content)))

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        return self.seal(sealed, sender, round_number)


class PadOfTheSender(Cipher):
    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        return xor(content, pad(sender, len(content)))

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        return self.seal(sealed, sender, round_number)


class PadOfTheRound(Cipher):
    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        return xor(content, pad(round_number, len(content)))

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        return self.seal(sealed, sender, round_number)


class AdditiveMask(Cipher):
    """float32 patterns plus a constant mask, modulo 2^32."""

    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        mask = np.frombuffer(pad("constant", len(content)), "<u4")
        return (np.frombuffer(content, "<u4") + mask).tobytes()

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        mask = np.frombuffer(pad("constant", len(sealed)), "<u4")
        return (np.frombuffer(sealed, "<u4") - mask).tobytes()


class ShortPad(Cipher):
    """A fresh random pad, but of 13 bytes that repeat."""

    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        short = nacl.utils.random(13)
        return short + xor(content, (short * (len(content) // 13 + 1))[: len(content)])

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        content = sealed[13:]
        return xor(content, (sealed[:13] * (len(content) // 13 + 1))[: len(content)])


class HugeNoise(Cipher):
    """float32 values plus fresh noise that drowns them: hardly readable, and no ciphertext."""

    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        noise = np.random.default_rng().normal(0, 1e3, len(content) // 4)
        return (np.frombuffer(content, "<f4") + noise).astype("<f4").tobytes()

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        return sealed


class StreamCipher(Cipher):
    """XSalsa20-Poly1305; with a fresh nonce, honest ciphertext."""

    def __init__(self, fresh_nonce: bool) -> None:
        self._box = nacl.secret.SecretBox(pad("key", 32))
        self._fresh_nonce = fresh_nonce

    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        return bytes(self._box.encrypt(content, None if self._fresh_nonce else bytes(24)))

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        return self._box.decrypt(sealed)


@dataclass(frozen=True)
class Fake(Codec):
    """Claims to hide everything; its server quietly knows how to open what it should only add."""

    cipher: Cipher

    name: ClassVar[str] = "fake"
    keyed: ClassVar[bool] = True

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        return KeyMaterial(secret=b"" if receiver == SERVER else root.stream(32))

    def claims(self, network: Network) -> Mapping[str, Claim]:
        return {spec.name: Claim.PLAIN if spec.kind is Kind.COUNTER else Claim.HIDDEN for spec in network.layout}

    def stated_error(self, magnitudes: Magnitudes) -> float:
        return magnitudes.weights * 2.0**-23

    def leaky_twin(self) -> Codec:
        return Plain()

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        return FakeClient(name, self.cipher, network.layout)

    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        return FakeServer(self.cipher, network.layout)


def sealed_message(cipher: Cipher, weights: Weights, layout: Layout, sender: str, round_number: int) -> bytes:
    content = flatten(weights, floating(layout)).numpy().astype("<f4").tobytes()
    sealed = cipher.seal(content, sender, round_number)
    exact = {spec.name: weights[spec.name] for spec in counters(layout)}
    origin = torch.tensor([int(sender.removeprefix("client-")), round_number])
    return tensors_to_bytes(
        {"sealed": torch.frombuffer(bytearray(sealed), dtype=torch.uint8), "origin": origin} | exact
    )


def opened_message(cipher: Cipher, payload: bytes, layout: Layout) -> Weights:
    tensors = raw_tensors_from_bytes(payload, "fake")
    sealed, (sender, round_number) = tensors.pop("sealed"), tensors.pop("origin").tolist()
    content = cipher.open(sealed.numpy().tobytes(), f"client-{sender}", round_number)
    values = torch.frombuffer(bytearray(content), dtype=torch.float32)
    return unflatten(values, floating(layout)) | tensors


class FakeClient(PlainClient):
    def __init__(self, name: str, cipher: Cipher, layout: Layout) -> None:
        super().__init__(layout)
        self._name, self._cipher = name, cipher

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        return sealed_message(self._cipher, weights, self._layout, self._name, context.round)

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        return opened_message(self._cipher, payload, self._layout)


class FakeServer(OpenServer):
    def __init__(self, cipher: Cipher, layout: Layout) -> None:
        super().__init__(layout)
        self._cipher = cipher

    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        opened = {sender: opened_message(self._cipher, payload, self._layout) for sender, payload in uploads.items()}
        return self.mean(opened, context, admit)


class BeginningOnly(Cipher):
    """Honest ciphertext for the first 8,192 bytes, and the rest as it is."""

    _cipher = StreamCipher(fresh_nonce=True)
    _size = 8192

    def seal(self, content: bytes, sender: str, round_number: int) -> bytes:
        return self._cipher.seal(content[: self._size], sender, round_number) + content[self._size :]

    def open(self, sealed: bytes, sender: str, round_number: int) -> bytes:
        size = self._size + nacl.secret.SecretBox.NONCE_SIZE + nacl.secret.SecretBox.MACBYTES
        return self._cipher.open(sealed[:size], sender, round_number) + sealed[size:]


FAKES: dict[str, tuple[Cipher, str]] = {
    "the weights as they are": (AsItIs(), "share a run of"),
    "base64": (Base64(), "share a run of"),
    "a constant XOR mask": (ConstantXor(), "share a run of"),
    "a constant additive mask": (AdditiveMask(), "share a run of"),
    "a pad for each sender": (PadOfTheSender(), "share a run of"),
    "a pad for each round": (PadOfTheRound(), "share a run of"),
    "a short pad": (ShortPad(), "repeats"),
    "huge noise": (HugeNoise(), "not uniform"),
    "a stream cipher with a fixed nonce": (StreamCipher(fresh_nonce=False), "share a run of"),
}


@pytest.mark.parametrize("name", FAKES)
def test_a_fake_is_refused_the_ciphertext_shortcut(name: str) -> None:
    cipher, reason = FAKES[name]
    result = earned_shortcut(Stack("fake", [Fake(cipher)]), stand_in(), ROOT)
    assert not result.passed
    assert reason in result.reason


@pytest.mark.parametrize("name", FAKES)
def test_a_fake_is_caught_by_the_wire_claims(name: str) -> None:
    findings = audit_claims(Stack("fake", [Fake(FAKES[name][0])]), stand_in(), ROOT)
    hidden = [finding for finding in findings if finding.claim is Claim.HIDDEN]
    assert hidden
    assert not any(finding.passed for finding in hidden)


def test_an_honest_stream_cipher_is_granted_it() -> None:
    result = earned_shortcut(Stack("fake", [Fake(StreamCipher(fresh_nonce=True))]), stand_in(), ROOT)
    assert result.passed, result.reason


def test_a_network_of_moderate_size_is_audited_itself() -> None:
    larger = Network(lambda: build_model("logistic", (1, 28, 28), 10, seed=0), (1, 28, 28), 10)
    defense = Stack("fake", [Fake(BeginningOnly())])
    assert earned_shortcut(defense, stand_in(), ROOT).passed
    result = earned_shortcut(defense, larger, ROOT)
    assert not result.passed
    assert "share a run" in result.reason


class Unrandomised(PaillierClient):
    """Paillier as it must not be; whatever arrives, it goes on as if from zeros, since only the wire matters here."""

    def decode(self, payload: bytes) -> Weights:
        return {spec.name: torch.zeros(spec.shape, dtype=spec.dtype) for spec in self._layout}


@dataclass
class FixedNonces:
    """An encryptor whose nonces are so many constants, the same in every message."""

    public_key: PaillierPublicKey
    nonces: int
    noise_bits: int = 0

    def encrypt(self, plaintexts: Iterable[mpz]) -> list[mpz]:
        n = mpz(self.public_key.n)
        return [
            (1 + n * (plaintext + secrets.randbits(self.noise_bits)))
            * pow(mpz(3 + index % self.nonces), n, n * n)
            % (n * n)
            for index, plaintext in enumerate(plaintexts)
        ]


class OneNonce(Unrandomised):
    @property
    def _encryptor(self) -> FixedNonces:  # type: ignore[override]
        return FixedNonces(self._private_key.public_key, nonces=1)


class NoncesOfThePlace(Unrandomised):
    @property
    def _encryptor(self) -> FixedNonces:  # type: ignore[override]
        return FixedNonces(self._private_key.public_key, nonces=10_000)


class NoncesOfThePlaceUnderNoise(Unrandomised):
    """The weights are rounded at random, so that no two messages are alike."""

    @property
    def _encryptor(self) -> FixedNonces:  # type: ignore[override]
        return FixedNonces(self._private_key.public_key, nonces=10_000, noise_bits=1000)


class PheSum(Unrandomised):
    """PriDe's upload: phe's sum of the broadcast ciphertext and the own weights, not re-randomised."""

    def _noise(self) -> int:
        return 0

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        assert context.incoming is not None
        own = PaillierMessage.from_bytes(super().encode(weights, base, context), self._layout, "own")
        broadcast = PaillierMessage.from_bytes(context.incoming.payload, self._layout, "broadcast")
        key = self._private_key.public_key
        count = len(own.ciphertexts) // arithmetic.ciphertext_bytes(key)
        plaintexts = self._decryptor.decrypt(arithmetic.ciphertexts_from_bytes(key, own.ciphertexts, count))
        count = len(broadcast.ciphertexts) // arithmetic.ciphertext_bytes(key)
        received = arithmetic.ciphertexts_from_bytes(key, broadcast.ciphertexts, count)
        sums = [
            (EncryptedNumber(key, int(ciphertext)) + (int(plaintext) + self._noise())).ciphertext(be_secure=False)
            for ciphertext, plaintext in zip(received, plaintexts, strict=False)
        ]
        own_rest = own.ciphertexts[len(sums) * arithmetic.ciphertext_bytes(key) :]
        content = arithmetic.ciphertexts_to_bytes(key, [mpz(value) for value in sums]) + own_rest
        return PaillierMessage(content, own.exponents, own.capacity, own.counters).to_bytes()


class PheSumUnderNoise(PheSum):
    """The same with weights that are rounded at random."""

    def _noise(self) -> int:
        return secrets.randbits(1000)


@dataclass(frozen=True)
class FakePaillier(Paillier):
    """Paillier with another client."""

    client_class: type[PaillierClient] = field(default=PaillierClient, kw_only=True)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        honest = super().client(name, material, network)
        assert isinstance(honest, PaillierClient)
        return self.client_class(name, honest._private_key, network.layout, self.minimum_parties)


@pytest.mark.parametrize(
    ("client_class", "reason"),
    [
        (OneNonce, "share a run"),
        (NoncesOfThePlace, "share a run"),
        (NoncesOfThePlaceUnderNoise, "one nonce"),
        (PheSum, "share a run"),
        (PheSumUnderNoise, "one nonce"),
    ],
)
def test_paillier_without_fresh_nonces_is_refused(client_class: type[PaillierClient], reason: str) -> None:
    result = earned_shortcut(Stack("fake", [FakePaillier(client_class=client_class)]), stand_in(), ROOT)
    assert not result.passed
    assert reason in result.reason


def test_the_real_paillier_is_granted_it() -> None:
    larger = Network(lambda: build_model("logistic", (1, 14, 14), 10, seed=0), (1, 14, 14), 10)
    result = earned_shortcut(Stack("paillier", [Paillier()]), larger, ROOT)
    assert result.passed, result.reason


def test_a_defense_that_leaves_something_open_is_refused_it() -> None:
    for stage in (Plain(), KeyNet()):
        defense = Stack("open", [stage, Plain()] if isinstance(stage, KeyNet) else [stage])
        result = earned_shortcut(defense, stand_in(), ROOT)
        assert not result.passed
        assert "does not claim to hide" in result.reason


@dataclass(frozen=True)
class NoOp(KeyNet):
    """Issues keys and claims to permute, but sends the weights as they are."""

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientTransform:
        return KeyNetClient(ChannelTransform(identity_keys(network.channels), network.channels))


@dataclass(frozen=True)
class ClaimsPlain(KeyNet):
    """Permutes, but says that everything is plain."""

    def claims(self, network: Network) -> Mapping[str, Claim]:
        return {spec.name: Claim.PLAIN for spec in network.layout}


def test_a_no_op_is_caught() -> None:
    findings = audit_claims(Stack("no-op", [NoOp(), Plain()]), stand_in(), ROOT)
    transformed = [finding for finding in findings if finding.claim is Claim.TRANSFORMED]
    assert transformed
    assert all(not finding.passed and "in their places" in finding.reason for finding in transformed)


def test_hiding_what_is_claimed_to_be_plain_is_caught() -> None:
    findings = audit_claims(Stack("modest", [ClaimsPlain(), Plain()]), stand_in(), ROOT)
    assert any(not finding.passed for finding in findings)


@dataclass(frozen=True)
class KeysOfNoRoot(KeyNet):
    """Draws the same keys whatever the root, as keys from a published seed would be."""

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        return super().draw_keys(network, receiver, ROOT)


@dataclass(frozen=True)
class KeyInClear(KeyNet):
    """Seals the keys for clients, and sends them to the server in clear."""

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        if receiver == SERVER:
            return KeyMaterial(secret=b"", public=super().draw_keys(network, "client-0", root).secret)
        return super().draw_keys(network, receiver, root)


@dataclass(frozen=True)
class KeptTwin(KeyNet):
    """Its leaky twin keeps the key."""

    def leaky_twin(self) -> KeyNet:
        return self


@dataclass(frozen=True)
class Optimist(KeyNet):
    """States no error, though gains round."""

    def stated_error(self, magnitudes: Magnitudes) -> float:
        return -1.0


class OutOfBand(PlainClient):
    """Recovers what was put aside in memory, not what arrives."""

    aside: ClassVar[dict[str, Weights]] = {}

    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        self.aside["weights"] = weights
        return super().encode_initial(weights, context)

    def decode(self, payload: bytes) -> Weights:
        return self.aside["weights"]


class Careless(PlainClient):
    """Reads what it gets without a check."""

    def decode(self, payload: bytes) -> Weights:
        tensors = raw_tensors_from_bytes(payload, "global message")
        return {spec.name: tensors[spec.name].reshape(spec.shape) for spec in self._layout}


@dataclass(frozen=True)
class PlainWith(Plain):
    """Plain with another client."""

    client_class: type[PlainClient] = PlainClient

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        return self.client_class(network.layout)


class Hospitable(Stack):
    """Its server aggregates whatever it gets."""

    def parties(self, network: Network, clients: list[str], root: SecretRoot) -> Parties:  # type: ignore[override]
        parties = super().parties(network, clients, root)
        server = parties.server

        def aggregate(uploads: list[Envelope], context: RoundContext) -> None:
            server.state = uploads[-1].payload if uploads else server.state

        server.aggregate = aggregate  # type: ignore[method-assign,assignment]
        return parties


CHEATS: dict[str, tuple[Callable[[], Stack], str, str]] = {
    "no-op": (lambda: Stack("x", [NoOp(), Plain()]), "wire claims", "in their places"),
    "keys of no root": (lambda: Stack("x", [KeysOfNoRoot(), Plain()]), "keys come from the root", "same keys"),
    "keys opened by any root": (lambda: Stack("x", [KeysOfNoRoot(), Plain()]), "wrong key opens nothing", "reads most"),
    "key in clear": (lambda: Stack("x", [KeyInClear(), Plain()]), "keys stay secret", "in clear"),
    "twin that keeps the key": (lambda: Stack("x", [KeptTwin(), Plain()]), "leaky twin leaks", "hidden by keynet"),
    "too small a stated error": (lambda: Stack("x", [Optimist(), Plain()]), "round trip", "off by"),
    "weights out of band": (lambda: Stack("x", [PlainWith(OutOfBand)]), "tampering shows", "nobody noticed"),
    "unchecked message": (lambda: Stack("x", [PlainWith(Careless)]), "malformed refused", "broadcast"),
    "any cohort": (lambda: Hospitable("x", [Plain()]), "cohort enforced", "accepts"),
    "no mean": (lambda: Hospitable("x", [Plain()]), "round trip", "off by"),
    "fake ciphertext": (lambda: Stack("x", [Fake(ConstantXor())]), "ciphertext shortcut", "share a run"),
}


@pytest.mark.parametrize("name", CHEATS)
def test_the_conformance_suite_catches(name: str) -> None:
    build, check, reason = CHEATS[name]
    subject = Subject(build(), smallest_stand_in() if check == "tampering shows" else stand_in(), ROOT)
    with pytest.raises(ConformanceFailure, match=reason):
        CHECKS[check](subject)
