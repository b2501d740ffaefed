"""Ciphers that must not pass for one: the wire audit refuses them the ciphertext shortcut and says why."""

from __future__ import annotations

import base64
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import nacl.secret
import numpy as np
import pytest
import torch

from benchmark.audit import audit_claims, earned_shortcut
from benchmark.audit.stand_in import stand_in
from benchmark.conformance import CHECKS, ConformanceFailure, Subject
from defenses.base import Claim, Magnitudes
from defenses.keynet.defense import KeyNet
from defenses.plain import OpenServer, Plain, PlainClient
from defenses.stack import Stack
from defenses.stages import Admit, ClientCodec, Codec, KeyMaterial, ServerCodec
from federation.messages import SERVER, raw_tensors_from_bytes, tensors_to_bytes
from federation.models import build_model
from federation.network import Network
from federation.protocol import RoundContext
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


def test_the_conformance_suite_refuses_a_fake() -> None:
    subject = Subject(Stack("x", [Fake(ConstantXor())]), stand_in(), ROOT)
    with pytest.raises(ConformanceFailure, match="share a run"):
        CHECKS["ciphertext shortcut"](subject)


def test_a_defense_that_leaves_something_open_is_refused_it() -> None:
    for stage in (Plain(), KeyNet()):
        defense = Stack("open", [stage, Plain()] if isinstance(stage, KeyNet) else [stage])
        result = earned_shortcut(defense, stand_in(), ROOT)
        assert not result.passed
        assert "does not claim to hide" in result.reason
