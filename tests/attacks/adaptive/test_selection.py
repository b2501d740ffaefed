"""Who was selected, from the model before, the models sent and the model after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.adaptive.selection import EXPLAINED, PaillierSelection, averaged, replaced, selected_party
from attacks.base import Budget
from federation.messages import Transcript, tensors_to_bytes
from federation.protocol import Phase
from federation.threat import Observation, Position, Victim
from federation.weights import Weights

PARTIES = ["client-0", "client-1", "client-2"]


def drawn(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 4, generator=generator), "count": torch.tensor(seed)}


@pytest.mark.parametrize("combine", [replaced, averaged])
@given(chosen=st.sampled_from(PARTIES), seed=st.integers(0, 10_000))
def test_the_selected_party_is_found(combine: Any, chosen: str, seed: int) -> None:
    before, candidates = drawn(seed), {name: drawn(seed + 1 + index) for index, name in enumerate(PARTIES)}
    after = {name: tensor.float() for name, tensor in combine(before, candidates[chosen]).items()}
    found = selected_party(before, candidates, after, combine=combine)
    assert found.name == chosen
    assert found.residual < 1e-6
    assert found.margin > 1 - 1e-5


@given(seed=st.integers(0, 10_000))
def test_an_average_of_all_is_explained_by_nobody(seed: int) -> None:
    before, candidates = drawn(seed), {name: drawn(seed + 1 + index) for index, name in enumerate(PARTIES)}
    after = {"weight": torch.stack([each["weight"] for each in candidates.values()]).mean(0)}
    for combine in (replaced, averaged):
        assert selected_party(before, candidates, after, combine=combine).residual > EXPLAINED


def test_two_equal_candidates_have_no_margin() -> None:
    before, twin = drawn(0), drawn(1)
    found = selected_party(before, {"client-0": twin, "client-1": twin}, twin, combine=replaced)
    assert (found.margin, found.residual) == (0, 0)


def test_a_model_that_did_not_move_is_explained_by_nobody() -> None:
    before = drawn(0)
    found = selected_party(before, {"client-0": drawn(1)}, before, combine=replaced)
    assert (found.margin, found.residual) == (0, 1)


def test_somebody_must_be_there() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        selected_party(drawn(0), {}, drawn(1), combine=replaced)


def released_by(observation: Observation, weights: Weights) -> Observation:
    """The observation of a round that released these weights."""
    payload = tensors_to_bytes(weights)
    return replace(
        observation,
        transcript=Transcript(
            replace(envelope, payload=payload) if envelope.phase == Phase.RELEASE else envelope
            for envelope in observation.transcript
        ),
    )


def found_in(observation: Observation, victim: Victim) -> Any:
    generator = torch.Generator().manual_seed(0)
    return PaillierSelection().reconstruct([observation], [victim], generator=generator, budget=Budget(5))[0]


@pytest.mark.parametrize("chosen", ["client-0", "client-1"])
@pytest.mark.parametrize("half", [True, False])
def test_a_stranger_tells_whose_model_was_released(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, chosen: str, half: bool
) -> None:
    played = play(pride(randomised=False))
    selected = played.trained[chosen]
    release = {name: (tensor + played.before[name]) / 2 for name, tensor in selected.items()} if half else selected
    found = found_in(released_by(played.observed(Position.EAVESDROPPER), release), victim)
    assert f"the released model is that of {chosen}" in found.note
    assert found.findings["candidates"] == 2
    assert found.findings["selection residual"] < 1e-4
    assert found.findings["selection margin"] > 0.99
    assert found.recovered_weights is not None


@pytest.mark.parametrize(
    "defense", ["plain", {"randomised": False}, {"randomised": False, "cloud_half": True}], ids=str
)
def test_an_average_is_told_from_a_selection(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, defense: Any
) -> None:
    played = play(defense if isinstance(defense, str) else pride(**defense))
    found = found_in(played.observed(Position.EAVESDROPPER), victim)
    assert "no single party's model explains the released one" in found.note
    assert found.findings["selection residual"] > EXPLAINED


def test_randomised_sums_leave_nobody_to_find(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim
) -> None:
    found = found_in(play(pride(randomised=True)).observed(Position.EAVESDROPPER), victim)
    assert found.findings["candidates"] == 0
    assert "the victim's model is not read, hence nobody found" in found.note
    assert found.recovered_weights is None
