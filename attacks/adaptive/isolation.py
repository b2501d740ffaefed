"""A server that fills a round up with zeros, so that its sum is one party's update (Pavlak 2018, threats).

A minimum number of parties is no protection by itself: with the public key the server encrypts zeros and lets them
stand for the others' contributions. The product is an encryption of the one party's contribution, which whoever opens
sums would open. The server has no key, so that it has to get somebody to do so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from gmpy2 import mpz
from phe.paillier import PaillierPublicKey
from torch import Tensor

from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.base import ATTACKS, Need
from federation.errors import MalformedMessage
from federation.messages import Transcript, raw_tensors_from_bytes, tensors_to_bytes
from federation.protocol import Phase
from federation.threat import Observation, Victim

_CIPHERTEXTS, _MODULUS = "paillier.ciphertexts", "paillier.public"


@ATTACKS.register("paillier-isolation")
@dataclass(frozen=True)
class PaillierIsolation(WeightRecovery):
    """Form the sum of one party's upload and forged zeros. It stays ciphertext to the server: no weights, no image."""

    name: ClassVar[str] = "paillier-isolation"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRANSCRIPT})
    made_for: ClassVar[frozenset[str]] = frozenset({"paillier"})
    figures_only: ClassVar[bool] = True

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """No weights, but how many ciphertexts the isolated sum has that the server could send out."""
        try:
            modulus = _modulus(observation.transcript)
            upload = _upload(observation.transcript, victim.sender)
            total = isolated_sum(upload, isolating_contribution(upload, modulus), modulus)
            count = len(_ciphertexts(raw_tensors_from_bytes(total, "isolated sum"), modulus))
        except MalformedMessage as error:
            return Recovery.nothing(str(error))
        return Recovery.nothing(
            f"a sum of {victim.sender}'s contribution and zeros was formed; it is ciphertext without a client's key, and "
            "clients refuse what does not carry their cohort's tags",
            {"isolated ciphertexts": float(count)},
        )


def isolating_contribution(upload: bytes, modulus: int) -> bytes:
    """A contribution of zeros, forged from public material, in the form of this upload and for the same round.

    One is enough beside the upload: the product of several is distributed as one is.

    Args:
        upload: the payload of the party to be isolated.
        modulus: n.

    Raises:
        MalformedMessage: where `upload` holds no packed Paillier ciphertexts under this modulus.
    """
    tensors = raw_tensors_from_bytes(upload, "upload")
    public_key = PaillierPublicKey(modulus)
    zeros = [mpz(public_key.raw_encrypt(0)) for _ in _ciphertexts(tensors, modulus)]
    return tensors_to_bytes({**tensors, _CIPHERTEXTS: _as_tensor(zeros, modulus)})


def isolated_sum(upload: bytes, forged: bytes, modulus: int) -> bytes:
    """What the server would send out: the ciphertexts of both multiplied, all else as in the upload."""
    tensors = raw_tensors_from_bytes(upload, "upload")
    others = _ciphertexts(raw_tensors_from_bytes(forged, "forged contribution"), modulus)
    products = [
        one * other % (modulus * modulus) for one, other in zip(_ciphertexts(tensors, modulus), others, strict=True)
    ]
    return tensors_to_bytes({**tensors, _CIPHERTEXTS: _as_tensor(products, modulus)})


def _modulus(transcript: Transcript) -> int:
    for envelope in transcript.phase(Phase.KEYS):
        public = raw_tensors_from_bytes(envelope.payload, "key message").get(_MODULUS)
        if public is not None and public.dtype == torch.uint8 and len(public):
            return int.from_bytes(public.numpy().tobytes(), "big")
    raise MalformedMessage("the position reads no message with a public Paillier key")


def _upload(transcript: Transcript, sender: str) -> bytes:
    for envelope in transcript.phase(Phase.UPLOAD):
        if envelope.sender == sender:
            return envelope.payload
    raise MalformedMessage(f"the position reads no upload of {sender}")


def _ciphertexts(tensors: Mapping[str, Tensor], modulus: int) -> list[mpz]:
    packed, width = tensors.get(_CIPHERTEXTS), _width(modulus)
    if packed is None or packed.dtype != torch.uint8 or packed.dim() != 1 or len(packed) % width:
        raise MalformedMessage(f"upload: no packed Paillier ciphertexts of {width} bytes each")
    content = packed.numpy().tobytes()
    return [mpz.from_bytes(content[start : start + width], "big") for start in range(0, len(content), width)]


def _as_tensor(ciphertexts: list[mpz], modulus: int) -> Tensor:
    content = b"".join(ciphertext.to_bytes(_width(modulus), "big") for ciphertext in ciphertexts)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _width(modulus: int) -> int:
    return 2 * -(-modulus.bit_length() // 8)
