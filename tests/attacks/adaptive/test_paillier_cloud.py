"""The cloud that holds the key subtracts its own weights from what each party's ciphertexts decrypt to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.adaptive.paillier_cloud import PaillierCloud
from attacks.base import Budget, Reconstruction
from attacks.cosine import Cosine
from federation.threat import Observation, PlainModel, Position, Victim
from federation.weights import largest_difference

BUDGET = Budget(evaluations=100)


def reconstructed(observation: Observation, victim: Victim, attack: Any = None) -> Reconstruction:
    attack = attack or PaillierCloud()
    generator = torch.Generator().manual_seed(3)
    found: Reconstruction = attack.reconstruct([observation], [victim], generator=generator, budget=BUDGET)[0]
    return found


@pytest.mark.parametrize("randomised", [True, False])
@pytest.mark.parametrize("cloud_half", [True, False])
@pytest.mark.parametrize("form", ["two-party", "six-party"])
def test_every_form_gives_the_weights_away(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, form: str, cloud_half: bool, randomised: bool
) -> None:
    played = play(pride(form=form, cloud_half=cloud_half, randomised=randomised))
    observation = played.observed(Position.SERVER)
    assert observation.view.hidden_by == {"cloud-sum"}
    found = reconstructed(observation, victim)
    assert found.recovered_weights is not None
    # the view is rounded to float32 with the cloud's weights in it, and divided by a share of 1/4 afterwards
    assert largest_difference(found.recovered_weights, played.trained["client-0"]) < 1e-6
    undefended = reconstructed(played.in_clear(), victim, Cosine())
    assert float((found.images - undefended.images).abs().mean()) < 0.01


@pytest.mark.parametrize("precision", [1e-3, 7.0])
def test_rounding_before_encryption_is_taken_into_account(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, precision: float
) -> None:
    played = play(pride(absolute_precision=precision, cloud_half=True))
    found = reconstructed(played.observed(Position.SERVER), victim)
    step = {1e-3: 16.0**-3, 7.0: 1.0}[precision]
    for name, tensor in (found.recovered_weights or {}).items():
        rounded = (played.trained["client-0"][name].double() / step).round() * step
        torch.testing.assert_close(tensor.double(), rounded, atol=1e-6, rtol=0)
    assert found.recovered_weights


def test_values_that_were_not_sent_are_not_claimed(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim
) -> None:
    played = play(pride(first_rows_only=True))
    found = reconstructed(played.observed(Position.SERVER), victim).recovered_weights
    assert found is not None
    torch.testing.assert_close(found["1.weight"][:2], played.trained["client-0"]["1.weight"][:2], atol=1e-6, rtol=0)
    assert bool(found["1.weight"][2:].isnan().all())
    assert bool(found["1.bias"].isnan().all())


def test_an_update_of_noise_shows_no_image(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, pictures: torch.Tensor
) -> None:
    played = play(pride())
    observation = played.observed(Position.SERVER)
    view = observation.view
    assert isinstance(view, PlainModel)
    generator = torch.Generator().manual_seed(2)
    drawn = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in view.before.items()}
    noisy = replace(observation, view=replace(view, after={**view.after, "client-0": drawn}))
    whole = reconstructed(observation, victim).images
    spoilt = reconstructed(noisy, victim).images
    assert float((whole - pictures[:1]).square().mean()) < 0.005
    assert float((spoilt - pictures[:1]).square().mean()) > 0.05


def test_without_the_sum_there_is_nothing_to_subtract(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, hiding: Any
) -> None:
    observation = play(pride()).observed(Position.SERVER)
    for changed in (
        replace(observation, scheme={}),
        replace(observation, view=PlainModel({}, {}, frozenset({"cloud-sum"}))),
    ):
        found = reconstructed(changed, victim)
        assert found.recovered_weights is None
        assert "no sum of client-0's weights and the cloud's" in found.note
    first, again = (reconstructed(each, victim) for each in (observation, hiding(observation, PaillierCloud.needs)))
    assert torch.equal(first.images, again.images)
