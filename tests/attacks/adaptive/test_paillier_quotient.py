"""Weights off the quotient of two ciphertexts: against `phe`, and through whole rounds of the protocol as written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phe.paillier import EncryptedNumber, PaillierPrivateKey, generate_paillier_keypair

from attacks.adaptive.paillier_quotient import SHARE_RECOVERED, PaillierQuotient, quotient_weights
from attacks.base import Budget, Need
from attacks.cosine import Cosine
from benchmark.recovered_weights import exact_share
from federation.encrypted_numbers import EncryptedNumbers
from federation.errors import MalformedMessage
from federation.messages import Transcript, raw_tensors_from_bytes, tensors_to_bytes
from federation.protocol import Phase
from federation.threat import Observation, Position, Victim

BUDGET = Budget(evaluations=30)


def message(numbers: Sequence[EncryptedNumber], *, randomised: bool = False) -> EncryptedNumbers:
    """Numbers as `phe` hands them out: as they are, or re-randomised."""
    return EncryptedNumbers(
        int(numbers[0].public_key.n),
        tuple(int(number.ciphertext(be_secure=randomised)) for number in numbers),
        np.array([number.exponent for number in numbers], np.int32),
    )


def added(
    key: PaillierPrivateKey, cloud: Sequence[float], party: Sequence[float], precision: float | None, divisor: float
) -> tuple[list[EncryptedNumber], list[EncryptedNumber]]:
    """E(w_0) and (E(w_0) + w) / divisor, by `phe` alone."""
    before = [key.public_key.encrypt(value, precision=precision) for value in cloud]
    after = [number + value for number, value in zip(before, party, strict=True)]
    return before, [number / divisor for number in after] if divisor != 1 else after


MAGNITUDES = st.floats(1e-12, 1e4) | st.floats(2.0**-20, 0.125, width=32)
"""Of weights; with much smaller ones beside them sums do not fit the short key."""

WEIGHTS = st.builds(lambda sign, size: sign * size, st.sampled_from([-1.0, 0.0, 1.0]), MAGNITUDES)


@given(
    pairs=st.lists(st.tuples(WEIGHTS, WEIGHTS), min_size=1, max_size=4),
    precision=st.sampled_from([None, 7, 1e-7]),
    divisor=st.sampled_from([1.0, 2.0, 6.0]),
)
@settings(max_examples=40, deadline=None)
def test_every_bit_is_recovered(
    short_key: PaillierPrivateKey, pairs: list[tuple[float, float]], precision: float | None, divisor: float
) -> None:
    cloud, party = [one for one, _ in pairs], [other for _, other in pairs]
    before, after = added(short_key, cloud, party, precision, divisor)
    found = quotient_weights(message(before), message(after), divided_by=divisor)
    np.testing.assert_array_equal(found, party)


def test_every_bit_is_recovered_at_the_length_that_is_used() -> None:
    _, key = generate_paillier_keypair(n_length=2048)
    cloud, party = np.random.default_rng(0).normal(0, 0.05, (2, 20)).astype(np.float32).astype(float)
    before, after = added(key, cloud.tolist(), party.tolist(), None, 2.0)
    np.testing.assert_array_equal(quotient_weights(message(before), message(after), divided_by=2.0), party)


def test_nothing_is_recovered_where_sums_were_randomised(short_key: PaillierPrivateKey) -> None:
    before, after = added(short_key, [0.1, -0.2, 0.3], [0.5, 0.0, -0.25], None, 1.0)
    assert np.isnan(quotient_weights(message(before), message(after, randomised=True))).all()


def test_each_number_stands_for_itself(short_key: PaillierPrivateKey) -> None:
    before, after = added(short_key, [0.1, -0.2, 0.3], [0.5, 0.0, -0.25], None, 1.0)
    after[1].obfuscate()
    np.testing.assert_array_equal(quotient_weights(message(before), message(after)), [0.5, np.nan, -0.25])


def test_nothing_is_recovered_with_the_wrong_divisor(short_key: PaillierPrivateKey) -> None:
    before, after = added(short_key, [0.1, -0.2], [0.5, 0.25], None, 2.0)
    for divisor in (1.0, 4.0, 6.0):
        assert np.isnan(quotient_weights(message(before), message(after), divided_by=divisor)).all()


def test_hostile_numbers_are_no_signal(short_key: PaillierPrivateKey) -> None:
    before, after = (message(numbers) for numbers in added(short_key, [0.1] * 3, [0.5] * 3, None, 1.0))
    start = time.perf_counter()
    for exponents in ([1024] * 3, [-1024] * 3):
        for one, other in ((exponents, after.exponents), (before.exponents, exponents), (exponents, exponents)):
            spoilt = [
                replace(numbers, exponents=np.array(changed, np.int32))
                for numbers, changed in ((before, one), (after, other))
            ]
            found = quotient_weights(spoilt[0], spoilt[1])
            assert np.isnan(found).all()
    shared_factor = replace(before, ciphertexts=(int(short_key.p),) * 3)
    assert np.isnan(quotient_weights(shared_factor, after)).all()
    assert time.perf_counter() - start < 5


def test_numbers_that_do_not_belong_together_are_refused(short_key: PaillierPrivateKey) -> None:
    before, after = (message(numbers) for numbers in added(short_key, [0.1, 0.2], [0.5, 0.5], None, 1.0))
    shorter = EncryptedNumbers(after.modulus, after.ciphertexts[:1], after.exponents[:1])
    for upload in (shorter, replace(after, modulus=after.modulus + 2)):
        with pytest.raises(MalformedMessage, match="as many ciphertexts after as before, under the same modulus"):
            quotient_weights(before, upload)


def reconstructed(observation: Observation, victim: Victim, attack: Any = None) -> Any:
    attack = attack or PaillierQuotient()
    return attack.reconstruct([observation], [victim], generator=torch.Generator().manual_seed(3), budget=BUDGET)[0]


RULES: list[dict[str, Any]] = [
    {"form": "two-party"},
    {"form": "two-party", "cloud_half": True},
    {"form": "six-party"},
    {"form": "six-party", "cloud_half": True},
]


@pytest.mark.parametrize("position", [Position.EAVESDROPPER, Position.SERVER])
@pytest.mark.parametrize("options", RULES, ids=str)
def test_a_stranger_does_as_well_as_if_nothing_were_encrypted(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, options: dict[str, Any], position: Position
) -> None:
    played = play(pride(randomised=False, **options))
    found = reconstructed(played.observed(position), victim)
    assert found.recovered_weights is not None
    assert exact_share(dict(found.recovered_weights), played.trained["client-0"]) == 1
    assert found.findings == {SHARE_RECOVERED: 1.0}
    undefended = reconstructed(played.in_clear(), victim, Cosine())
    assert torch.equal(found.images, undefended.images)
    assert found.labels.tolist() == undefended.labels.tolist()
    assert found.objective == undefended.objective


def test_two_rows_are_recovered_where_two_are_sent(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim
) -> None:
    played = play(pride(randomised=False, first_rows_only=True))
    found = reconstructed(played.observed(Position.EAVESDROPPER), victim).recovered_weights
    weight, true = found["1.weight"], played.trained["client-0"]["1.weight"]
    assert torch.equal(weight[:2], true[:2])
    assert bool(weight[2:].isnan().all())
    assert bool(found["1.bias"].isnan().all())


def test_randomised_sums_leave_a_guess(play: Callable[..., Any], pride: Callable[..., Any], victim: Victim) -> None:
    found = reconstructed(play(pride(randomised=True)).observed(Position.EAVESDROPPER), victim)
    assert found.findings == {SHARE_RECOVERED: 0.0}
    assert found.recovered_weights is None
    assert "they were re-randomised" in found.note
    assert torch.equal(found.images, torch.full_like(found.images, 0.5))


def with_upload(observation: Observation, change: Callable[[dict[str, Any]], None]) -> Observation:
    """The observation with the victim's upload changed on its way."""

    def changed(envelope: Any) -> Any:
        if envelope.phase != Phase.UPLOAD or envelope.sender != "client-0":
            return envelope
        tensors = raw_tensors_from_bytes(envelope.payload, "upload")
        change(tensors)
        return replace(envelope, payload=tensors_to_bytes(tensors))

    return replace(observation, transcript=Transcript(map(changed, observation.transcript)))


def noise(tensors: dict[str, Any]) -> None:
    table = tensors["encrypted.ciphertexts"]
    table.copy_(torch.randint(256, table.shape, generator=torch.Generator().manual_seed(5)))
    table[:, 0] = 0  # so that each is under n^2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (noise, "they were re-randomised"),
        (lambda tensors: tensors.pop("encrypted.exponents"), "the exponents must be"),
        (lambda tensors: tensors["encrypted.modulus"].fill_(255), "under another modulus than the broadcast"),
        (
            lambda tensors: tensors.update(
                {name: tensors[name][:3] for name in ("encrypted.ciphertexts", "encrypted.exponents")}
            ),
            "other numbers than the 148 that are due",
        ),
    ],
    ids=["noise", "no exponents", "another modulus", "too few"],
)
def test_a_tampered_upload_leaves_a_guess(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, change: Any, said: str
) -> None:
    found = reconstructed(with_upload(play(pride(randomised=False)).observed(Position.EAVESDROPPER), change), victim)
    assert said in found.note
    assert found.recovered_weights is None
    assert torch.equal(found.images, torch.full_like(found.images, 0.5))


def test_nothing_is_recovered_where_nothing_is_encrypted_one_by_one(play: Callable[..., Any], victim: Victim) -> None:
    found = reconstructed(play("paillier").observed(Position.SERVER), victim)
    assert found.recovered_weights is None
    assert "no vector of bytes with the modulus of encrypted numbers" in found.note


def test_it_repeats_itself_and_reads_what_it_declares(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, hiding: Any
) -> None:
    observation = play(pride(randomised=False)).observed(Position.EAVESDROPPER)
    first = reconstructed(observation, victim)
    again = reconstructed(hiding(observation, PaillierQuotient.needs), victim)
    assert torch.equal(first.images, again.images)
    assert PaillierQuotient.needs == {Need.TRANSCRIPT, Need.SCHEME}
