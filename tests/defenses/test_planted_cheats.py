"""Defenses that must not pass: each cheats in one way, and the wire claims or the conformance suite says which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest

from benchmark.audit import audit_claims
from benchmark.audit.stand_in import smallest_stand_in, stand_in
from benchmark.conformance import CHECKS, ConformanceFailure, Subject
from defenses.base import Claim, Magnitudes
from defenses.keynet.channel import ChannelTransform
from defenses.keynet.defense import KeyNet, KeyNetClient
from defenses.keynet.keys import identity_keys
from defenses.plain import Plain, PlainClient
from defenses.stack import Stack
from defenses.stages import ClientCodec, ClientTransform, KeyMaterial
from federation.messages import SERVER, Envelope, raw_tensors_from_bytes
from federation.network import Network
from federation.protocol import Parties, RoundContext
from federation.secret_root import SecretRoot
from federation.weights import Weights

ROOT = SecretRoot(b"planted defenses" * 2)


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
}


@pytest.mark.parametrize("name", CHEATS)
def test_the_conformance_suite_catches(name: str) -> None:
    build, check, reason = CHEATS[name]
    subject = Subject(build(), smallest_stand_in() if check == "tampering shows" else stand_in(), ROOT)
    with pytest.raises(ConformanceFailure, match=reason):
        CHECKS[check](subject)
