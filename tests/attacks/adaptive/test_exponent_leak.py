"""What the exponents of `phe` tell: magnitudes, and zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from phe.paillier import PaillierPrivateKey

from attacks.adaptive.exponent_leak import ZERO_EXPONENT, PaillierExponents, entropy, given_away_as_zero
from attacks.base import Budget
from federation.threat import Position, Victim


@given(st.lists(st.integers(-20, 5), min_size=1, max_size=40))
def test_entropy_is_scipys(exponents: list[int]) -> None:
    counts = np.unique(exponents, return_counts=True)[1]
    assert entropy(np.array(exponents, np.int32)) == pytest.approx(scipy.stats.entropy(counts, base=2), abs=1e-12)


def summed(key: PaillierPrivateKey, cloud: Sequence[float], party: Sequence[float]) -> list[np.ndarray]:
    """Exponents of E(w_0) and of E(w_0) + w, by `phe` alone."""
    before = [key.public_key.encrypt(value) for value in cloud]
    after = [number + value for number, value in zip(before, party, strict=True)]
    return [np.array([number.exponent for number in numbers], np.int32) for numbers in (before, after)]


def test_magnitudes_show_to_a_power_of_16(short_key: PaillierPrivateKey) -> None:
    party = [1.5, 0.5, 1 / 16, 1 / 17, 16.0**-2, 1e-4, 0.0]
    _, exponents = summed(short_key, [1e3] * len(party), party)
    assert exponents.tolist() == [-13, -14, -14, -15, -15, -17, ZERO_EXPONENT]


def test_zeros_among_small_weights_are_found(short_key: PaillierPrivateKey) -> None:
    party = np.random.default_rng(1).normal(0, 0.02, 60)
    party[::4] = 0.0
    cloud = np.zeros(60)
    received, sent = summed(short_key, cloud.tolist(), party.tolist())
    found = given_away_as_zero(received, sent, cloud)
    small = np.abs(party) < 1 / 16
    assert np.array_equal(found[small], (party == 0)[small])


def test_what_was_large_before_is_not_taken_for_zero(short_key: PaillierPrivateKey) -> None:
    received, sent = summed(short_key, [0.4, 0.0, 0.01], [0.4, 0.0, 0.0])
    assert sent.tolist() == [-14, -14, -15]
    # the first stayed what it was; in the third the exponent of 0.01 covers that of zero
    assert given_away_as_zero(received, sent, np.array([0.4, 0.0, 0.01])).tolist() == [False, True, False]


def found_in(played: Any, victim: Victim) -> Any:
    observation = played.observed(Position.EAVESDROPPER)
    generator = torch.Generator().manual_seed(0)
    return PaillierExponents().reconstruct([observation], [victim], generator=generator, budget=Budget(5))[0]


@pytest.mark.parametrize("form", ["two-party", "six-party"])
@pytest.mark.parametrize("randomised", [True, False])
def test_exponents_leak_whether_or_not_sums_are_randomised(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, form: str, randomised: bool
) -> None:
    found = found_in(play(pride(form=form, randomised=randomised)), victim)
    assert 0.3 < found.findings["bits leaked a weight"] < 3
    assert torch.equal(found.images, torch.full_like(found.images, 0.5))
    assert found.recovered_weights is None
    assert "exponents tell magnitudes, not images" in found.note


def test_one_exponent_for_all_leaks_nothing(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim
) -> None:
    found = found_in(play(pride(absolute_precision=1e-7, randomised=False)), victim)
    assert found.findings == {"bits leaked a weight": 0.0, "share of zeros found": 0.0}


@pytest.mark.parametrize("form", ["two-party", "six-party"])
def test_weights_that_never_moved_from_zero_are_counted(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, form: str
) -> None:
    played = play(pride(form=form), zeros=True)
    share = torch.cat([tensor.flatten() for tensor in played.trained["client-0"].values()]).eq(0).float().mean()
    assert share > 0.3
    assert found_in(played, victim).findings["share of zeros found"] == pytest.approx(float(share))


def test_it_says_where_there_are_no_exponents(play: Callable[..., Any], victim: Victim) -> None:
    found = PaillierExponents().recover(play("paillier").observed(Position.SERVER), victim)
    assert found.findings == {}
    assert "no vector of bytes with the modulus" in found.note
