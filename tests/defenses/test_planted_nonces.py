"""Paillier without fresh nonces: each planted client saves randomness in one way, and none earns the ciphertext shortcut."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from gmpy2 import mpz
from phe.paillier import EncryptedNumber, PaillierPublicKey

from benchmark.audit import earned_shortcut
from benchmark.audit.stand_in import stand_in
from defenses.paillier import arithmetic
from defenses.paillier.client import PaillierClient
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.message import Occasion, PaillierMessage
from defenses.paillier.protocol import Paillier
from defenses.stack import Stack
from defenses.stages import ClientCodec, KeyMaterial
from federation.models import build_model
from federation.network import Network
from federation.protocol import RoundContext
from federation.secret_root import SecretRoot
from federation.weights import Weights

ROOT = SecretRoot(b"planted defenses" * 2)


class Unrandomised(PaillierClient):
    """Paillier as it must not be; whatever arrives, it goes on as if from zeros, since only the wire matters here."""

    def decode(self, payload: bytes) -> Weights:
        return {spec.name: torch.zeros(spec.shape, dtype=spec.dtype) for spec in self._layout}

    @property
    def key(self) -> PaillierPublicKey:
        return self._sums._private_key.public_key

    def read(self, payload: bytes) -> tuple[PaillierMessage, list[mpz]]:
        """A message and its ciphertexts."""
        message = PaillierMessage.from_bytes(payload, self._layout, "planted")
        count = len(message.ciphertexts) // arithmetic.ciphertext_bytes(self.key)
        return message, arithmetic.ciphertexts_from_bytes(self.key, message.ciphertexts, count)


class ConstantNonces(Unrandomised):
    """Its nonces are so many constants, the same in every message."""

    nonces: ClassVar[int]
    noise_bits: ClassVar[int] = 0

    def _encrypt(self, weights: Weights, occasion: Occasion, generator: torch.Generator) -> bytes:
        message, ciphertexts = self.read(super()._encrypt(weights, occasion, generator))
        n = mpz(self.key.n)
        planted = [
            (1 + n * (plaintext + secrets.randbits(self.noise_bits)))
            * pow(mpz(3 + index % self.nonces), n, n * n)
            % (n * n)
            for index, plaintext in enumerate(self._sums._decryptor.decrypt(ciphertexts))
        ]
        return replace(message, ciphertexts=arithmetic.ciphertexts_to_bytes(self.key, planted)).to_bytes()


class OneNonce(ConstantNonces):
    nonces = 1


class NoncesOfThePlace(ConstantNonces):
    nonces = 10_000


class NoncesOfThePlaceUnderNoise(ConstantNonces):
    """The weights are rounded at random on top of that."""

    nonces = 10_000
    noise_bits = 1000


class PheSum(Unrandomised):
    """PriDe's upload: phe's sum of the broadcast ciphertext and the own weights, not re-randomised."""

    noise_bits: ClassVar[int] = 0

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        assert context.incoming is not None
        own, ciphertexts = self.read(super().encode(weights, base, context))
        _, received = self.read(context.incoming.payload)
        sums = [
            (EncryptedNumber(self.key, int(there)) + (int(here) + secrets.randbits(self.noise_bits))).ciphertext(
                be_secure=False
            )
            for there, here in zip(received, self._sums._decryptor.decrypt(ciphertexts), strict=False)
        ]
        planted = [mpz(value) for value in sums] + ciphertexts[len(sums) :]
        return replace(own, ciphertexts=arithmetic.ciphertexts_to_bytes(self.key, planted)).to_bytes()


class PheSumUnderNoise(PheSum):
    """The same with weights that are rounded at random."""

    noise_bits = 1000


@dataclass(frozen=True)
class FakePaillier(Paillier):
    """Paillier with another client."""

    client_class: type[PaillierClient] = field(default=PaillierClient, kw_only=True)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        return self.client_class(name, ClientKeys.from_bytes(material.secret), network.layout, self.minimum_parties)


@pytest.mark.parametrize(
    "client_class", [OneNonce, NoncesOfThePlace, NoncesOfThePlaceUnderNoise, PheSum, PheSumUnderNoise]
)
def test_paillier_without_fresh_nonces_is_refused(client_class: type[PaillierClient]) -> None:
    """Though no two ciphertexts need be alike: their plaintexts hold tags, which differ."""
    result = earned_shortcut(Stack("fake", [FakePaillier(client_class=client_class)]), stand_in(), ROOT)
    assert not result.passed
    assert "one nonce" in result.reason


def test_the_real_paillier_is_granted_it() -> None:
    larger = Network(lambda: build_model("logistic", (1, 14, 14), 10, seed=0), (1, 14, 14), 10)
    result = earned_shortcut(Stack("paillier", [Paillier()]), larger, ROOT)
    assert result.passed, result.reason
