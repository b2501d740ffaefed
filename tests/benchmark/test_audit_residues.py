"""The quotient test against phe itself: what PriDe's protocol sends is linked, what phe obfuscates is not."""

from __future__ import annotations

import random

import pytest
import torch
from gmpy2 import mpz
from phe.paillier import EncryptedNumber

from benchmark.audit.residues import linked_residues, public_moduli
from defenses.paillier.keys import generate_keypair, public_key_to_bytes
from federation.messages import KEY_AGENT, Envelope, Transcript, tensors_to_bytes
from federation.protocol import Phase

KEY = generate_keypair(512, random.Random(3).randbytes, allow_small=True)
PUBLIC = KEY.public_key
N = mpz(PUBLIC.n)
WEIGHTS = [0.25, -1.5, 3e-5, 0.0, 7.0]


def payload(*ciphertexts: int) -> bytes:
    content = b"".join(ciphertext.to_bytes(128, "big") for ciphertext in ciphertexts)
    return tensors_to_bytes({"numbers": torch.frombuffer(bytearray(content), dtype=torch.uint8)})


def message(numbers: list[EncryptedNumber]) -> bytes:
    return payload(*(number.ciphertext(be_secure=False) for number in numbers))


def broadcast() -> list[EncryptedNumber]:
    return [PUBLIC.encrypt(weight) for weight in (0.1, -0.2, 1e-3, 5.0, 0.7)]


def test_fresh_encryptions_are_not_linked() -> None:
    sent = [message([PUBLIC.encrypt(weight) for weight in WEIGHTS]) for _ in range(6)]
    assert linked_residues(sent, N) is None


def test_a_message_passed_on_unchanged_is_not_a_link() -> None:
    sent = message(broadcast())
    assert linked_residues([sent, sent], N) is None


def test_the_product_of_two_is_not_a_link() -> None:
    uploads = [[PUBLIC.encrypt(weight) for weight in WEIGHTS] for _ in range(2)]
    total = [one + other for one, other in zip(*uploads, strict=True)]
    assert linked_residues([*map(message, uploads), message(total)], N) is None


def test_phe_sums_are_linked() -> None:
    received = broadcast()
    sums = [number + weight for number, weight in zip(received, WEIGHTS, strict=True)]
    found = linked_residues([message(received), message(sums)], N)
    assert found is not None
    assert "no fresh nonce" in found or "one nonce" in found


def test_phe_sums_are_linked_at_other_exponents_alone() -> None:
    (received,) = broadcast()[:1]
    tiny = received + 1e-12
    assert tiny.exponent < received.exponent
    assert "2^" in (linked_residues([message([received]), message([tiny])], N) or "")


def test_phe_averages_are_linked() -> None:
    (received,) = broadcast()[:1]
    average = (received + 0.25) / 2
    assert linked_residues([message([received]), message([average])], N) is not None


def test_phe_sums_are_not_linked_once_obfuscated() -> None:
    received = broadcast()
    sums = [number + weight for number, weight in zip(received, WEIGHTS, strict=True)]
    for number in sums:
        number.obfuscate()
    assert linked_residues([message(received), message(sums)], N) is None


@pytest.mark.parametrize("nonce", [1, 12345])
def test_a_nonce_used_twice_is_linked(nonce: int) -> None:
    sent = payload(*(PUBLIC.raw_encrypt(plaintext, r_value=nonce) for plaintext in (5, 6)))
    assert "one nonce" in (linked_residues([sent], N) or "")


def test_no_nonce_at_all_is_linked() -> None:
    assert "has none" in (linked_residues([payload(int(1 + 5 * N))], N) or "")


def test_moduli_are_found_in_public_parts_alone() -> None:
    def keys(**parts: bytes) -> Transcript:
        tensors = {
            name.replace("_", "."): torch.frombuffer(bytearray(content), dtype=torch.uint8)
            for name, content in parts.items()
        }
        return Transcript([Envelope(0, Phase.KEYS, KEY_AGENT, "client-0", tensors_to_bytes(tensors))])

    modulus = public_key_to_bytes(PUBLIC)
    assert public_moduli(keys(paillier_public=modulus)) == [N]
    assert public_moduli(keys(paillier_secret=modulus)) == []
    assert public_moduli(keys(paillier_public=modulus[:32])) == []
    assert public_moduli(keys(paillier_public=int(KEY.p).to_bytes(64, "big"))) == []
    assert public_moduli(Transcript([Envelope(0, Phase.KEYS, KEY_AGENT, "client-0", b"no tensors")])) == []


def test_messages_of_another_form_hold_no_ciphertexts() -> None:
    assert linked_residues([b"text", tensors_to_bytes({"weights": torch.ones(3)})], N) is None
