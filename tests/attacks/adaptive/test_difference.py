"""A fellow party subtracts its own weights from the released average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attacks.adaptive.difference import Difference, other_contribution
from attacks.base import Budget, Reconstruction, missing_need
from attacks.cosine import Cosine
from federation.threat import Observation, PlainModel, Position, Victim
from federation.weights import largest_difference

BUDGET = Budget(evaluations=100)
VALUES = hnp.arrays(np.float64, 5, elements=st.floats(-10, 10, allow_subnormal=False))


def reconstructed(observation: Observation, victim: Victim, attack: Any = None) -> Reconstruction:
    attack = attack or Difference()
    generator = torch.Generator().manual_seed(3)
    found: Reconstruction = attack.reconstruct([observation], [victim], generator=generator, budget=BUDGET)[0]
    return found


@given(own=VALUES, other=VALUES, share=st.floats(0, 0.9))
def test_what_is_left_of_an_average(own: np.ndarray, other: np.ndarray, share: float) -> None:
    average = share * own + (1 - share) * other
    np.testing.assert_allclose(other_contribution(average, own, share), other, atol=1e-12)
    np.testing.assert_allclose(
        other_contribution(torch.from_numpy(average), torch.from_numpy(own), share), other, atol=1e-12
    )


@given(own=VALUES, other=VALUES)
def test_the_papers_case_is_twice_the_average_less_the_own(own: np.ndarray, other: np.ndarray) -> None:
    average = (own + other) / 2
    np.testing.assert_array_equal(other_contribution(average, own, 1 / 2), 2 * average - own)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        other_contribution(np.zeros(1), np.zeros(1), share)


DEFENSES: list[Any] = [
    "plain",
    "paillier",
    "keynet",
    {"form": "two-party", "cloud_half": True},
    {"form": "six-party", "cloud_half": True, "absolute_precision": 1e-7},
    {"form": "six-party"},
]


@pytest.mark.parametrize("defense", DEFENSES, ids=str)
def test_a_fellow_party_recovers_the_other_under_every_defense(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, defense: Any
) -> None:
    played = play(defense if isinstance(defense, str) else pride(**defense))
    observation = played.observed(Position.CLIENT, own=("client-1",))
    assert missing_need(Difference(), observation) is None
    assert isinstance(observation.view, PlainModel)
    assert "client-0" not in observation.view.after
    found = reconstructed(observation, victim)
    assert found.recovered_weights is not None
    assert largest_difference(found.recovered_weights, played.trained["client-0"]) < 1e-6
    undefended = reconstructed(played.in_clear(), victim, Cosine())
    assert float((found.images - undefended.images).abs().mean()) < 0.01


@pytest.mark.parametrize("options", [{}, {"cloud_half": True}], ids=str)
def test_all_but_one_recover_the_last(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, options: dict[str, Any]
) -> None:
    played = play(pride(**options), counts=(1, 3, 2))
    observation = played.observed(Position.CLIENT, own=("client-1", "client-2"))
    found = reconstructed(observation, victim).recovered_weights
    assert found is not None
    assert largest_difference(found, played.trained["client-0"]) < 2e-6


def test_among_several_others_nobody_is_recovered(play: Callable[..., Any], victim: Victim) -> None:
    observation = play("plain", counts=(1, 3, 2)).observed(Position.CLIENT, own=("client-1",))
    found = reconstructed(observation, victim)
    assert found.recovered_weights is None
    assert "client-0 is one of 2 parties in the average" in found.note
    assert torch.equal(found.images, torch.full_like(found.images, 0.5))


def test_nothing_without_a_release_or_an_update_of_ones_own(play: Callable[..., Any], victim: Victim) -> None:
    observation = play("plain").observed(Position.CLIENT, own=("client-1",))
    assert missing_need(Difference(), replace(observation, own_updates={})) == (
        "needs the update of a client that the position holds"
    )
    view = observation.view
    assert isinstance(view, PlainModel)
    unreleased = replace(observation, view=replace(view, after={"client-1": view.after["client-1"]}))
    assert "no released model" in reconstructed(unreleased, victim).note


def test_rows_that_are_not_averaged_are_not_claimed(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim
) -> None:
    played = play(pride(first_rows_only=True))
    found = reconstructed(played.observed(Position.CLIENT, own=("client-1",)), victim).recovered_weights
    assert found is not None
    torch.testing.assert_close(found["1.weight"][:2], played.trained["client-0"]["1.weight"][:2], atol=1e-6, rtol=0)
    assert bool(found["1.weight"][2:].isnan().all())


def test_a_release_of_noise_shows_no_image(
    play: Callable[..., Any], victim: Victim, pictures: torch.Tensor, hiding: Any
) -> None:
    observation = play("plain").observed(Position.CLIENT, own=("client-1",))
    view = observation.view
    assert isinstance(view, PlainModel)
    generator = torch.Generator().manual_seed(2)
    drawn = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in view.before.items()}
    noisy = replace(observation, view=replace(view, after={**view.after, "aggregate": drawn}))
    assert float((reconstructed(noisy, victim).images - pictures[:1]).square().mean()) > 0.05
    first, again = (reconstructed(each, victim) for each in (observation, hiding(observation, Difference.needs)))
    assert float((first.images - pictures[:1]).square().mean()) < 0.005
    assert torch.equal(first.images, again.images)
