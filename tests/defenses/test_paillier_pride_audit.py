"""What the wire audit makes of paillier-pride: no shortcut for ciphertext, with or without fresh randomness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from benchmark.audit import audit_claims, earned_shortcut
from benchmark.audit.chosen import CLIENTS, ChosenFederation, moved_by, spread_weights
from benchmark.audit.residues import linked_residues, public_moduli
from benchmark.audit.stand_in import smallest_stand_in, stand_in
from benchmark.conformance import CHECKS, Subject
from defenses.base import Claim, uniform_claim
from defenses.paillier.pride.defense import PaillierPride
from federation.network import Network
from federation.protocol import Phase
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import Ciphertext, PlainModel, Position, View
from federation.weights import floating

ROOT = SecretRoot(b"audits of the pride defense....." * 2)
FORMS = ("six-party", "two-party")


@dataclass(frozen=True)
class ShortKeys(PaillierPride):
    """With keys that are too short to hide anything, for speed."""

    key_bits: int = 512
    smallest_bits: ClassVar[int] = 512


@dataclass(frozen=True)
class AllHidden(ShortKeys):
    """Claims that everything is hidden."""

    def claims(self, network: Network) -> Mapping[str, Claim]:
        return {**super().claims(network), **uniform_claim(floating(network.layout), Claim.HIDDEN)}


@dataclass(frozen=True)
class WireAlone(AllHidden):
    """As if the server had no key: only the bytes of the wire can tell."""

    def view(self, transcript: Any, position: Position, held: Mapping[str, bytes], **facts: Any) -> View:
        return super().view(transcript, Position.EAVESDROPPER, {}, **facts)


@pytest.mark.parametrize("randomised", [False, True])
def test_it_does_not_claim_the_shortcut(randomised: bool) -> None:
    result = earned_shortcut(PaillierPride(randomised=randomised), stand_in(), ROOT)
    assert not result.passed
    assert "does not claim to hide" in result.reason


def test_claiming_it_does_not_help_while_the_server_holds_the_key() -> None:
    result = earned_shortcut(AllHidden(randomised=False), stand_in(), ROOT)
    assert not result.passed
    assert result.reason == "the server reads PlainModel, not ciphertext"
    findings = audit_claims(AllHidden(randomised=False), smallest_stand_in(), ROOT)
    hidden = [finding for finding in findings if finding.claim is Claim.HIDDEN]
    assert hidden
    assert not any(finding.passed for finding in hidden)


@pytest.mark.parametrize("form", FORMS)
def test_without_fresh_randomness_equal_messages_show(form: Any) -> None:
    result = earned_shortcut(WireAlone(form=form, randomised=False), stand_in(), ROOT)
    assert not result.passed
    assert "two encryptions of the same flat weights share a run" in result.reason


@pytest.mark.parametrize("form", FORMS)
def test_with_fresh_randomness_the_exponents_still_show(form: Any) -> None:
    result = earned_shortcut(WireAlone(form=form), stand_in(), ROOT)
    assert not result.passed
    assert "bytes are not uniform" in result.reason


def test_it_is_the_exponents_alone_that_show() -> None:
    """One precision for all gives one exponent for all, and then fresh randomness hides everything."""
    result = earned_shortcut(WireAlone(absolute_precision=1e-7), stand_in(), ROOT)
    assert result.passed, result.reason


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("randomised", [False, True])
def test_the_quotient_test_links_uploads_to_the_broadcast_unless_re_randomised(form: Any, randomised: bool) -> None:
    network = smallest_stand_in()
    federation = ChosenFederation(ShortKeys(form=form, randomised=randomised), network, ROOT)
    generator = torch_generator("linked")
    opening = federation.start(spread_weights(network.layout, generator, smallest=0.5, largest=1.0))
    update = spread_weights(network.layout, generator, smallest=0.1, largest=0.2)
    record = federation.play(0, dict.fromkeys(CLIENTS, moved_by(update)))
    payloads = [envelope.payload for envelope in record.transcript if envelope.phase in (Phase.BROADCAST, Phase.UPLOAD)]
    [modulus] = public_moduli(opening)
    assert (linked_residues(payloads, modulus) is None) == randomised


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", ["round trip", "wire claims", "leaky twin leaks", "collusion opens"])
def test_conforms_with_real_keys(form: Any, check: str) -> None:
    assert CHECKS[check](Subject(PaillierPride(form=form), smallest_stand_in(), ROOT))


@pytest.mark.slow
def test_an_eavesdropper_on_real_keys_reads_ciphertext_of_512_bytes_a_number() -> None:
    subject = Subject(PaillierPride(), smallest_stand_in(), ROOT)
    federation, record = subject.played.federation, subject.played.record
    view = federation.view(record, Position.EAVESDROPPER)
    assert isinstance(view, Ciphertext)
    count = sum(spec.size for spec in floating(subject.network.layout))
    assert 0 < view.byte_count / len(CLIENTS) - count * (512 + 4) < 1000
    assert isinstance(federation.view(record, Position.SERVER), PlainModel)
