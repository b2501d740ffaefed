"""Who knows the weights of which keyed ones are seen has the monomial keys, order and all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.adaptive.known_initialisation import KnownInitialisation, keys_by_division
from attacks.base import Budget, missing_need
from federation.threat import Observation, Oracle, PlainModel, Victim
from federation.weights import Weights, flatten, floating, largest_difference

BUDGET = Budget(evaluations=60)
VICTIM = Victim("v", 0, "client-0", 1)


def knowing(observation: Observation, initial: Weights) -> Observation:
    values = flatten(initial, floating(observation.network.layout))
    return replace(observation, oracles={Oracle.INITIAL_MODEL: values})


def reconstructed(observations: list[Observation], victim: Victim = VICTIM) -> Any:
    attack = KnownInitialisation(inner="dlg")
    return attack.reconstruct(observations, [victim], generator=torch.Generator().manual_seed(3), budget=BUDGET)[0]


@pytest.mark.parametrize("name", ["lenet5", "lenet-zhu", "residual-norm", "depthwise", "concatenated"])
@pytest.mark.parametrize("options", [{}, {"gain_range": 10.0, "outputs": "monomial"}, {"gain_range": 1.0}], ids=str)
def test_division_gives_every_key(tools: Any, play: Callable[..., Any], name: str, options: dict[str, Any]) -> None:
    keyed = play(tools.keynet(**options), name)
    view, channels = keyed.observations[0].view, keyed.observations[0].network.channels
    found = keys_by_division(keyed.start, view.before, channels)
    assert found is not None
    for space, key in enumerate(keyed.keys.monomial):
        assert found.places[space].tolist() == key.permutation.tolist()
        torch.testing.assert_close(found.gains[space], torch.from_numpy(key.gains), rtol=1e-5, atol=0)


def test_the_trained_weights_are_recovered_and_the_label_with_them(
    tools: Any, play: Callable[..., Any], digits: Any
) -> None:
    keyed = play(tools.keynet(), "residual")
    found = reconstructed([knowing(keyed.observations[0], keyed.start)])
    network = keyed.observations[0].network
    true = tools.step(network, keyed.start, digits.normalised[:1], digits.labels[:1])
    assert found.recovered_weights is not None
    assert largest_difference(found.recovered_weights, true) < 1e-6
    assert found.labels.tolist() == digits.labels[:1].tolist()
    assert found.note == ""


def test_keys_found_once_open_later_rounds(tools: Any, play: Callable[..., Any]) -> None:
    keyed = play(tools.keynet(), "residual", rounds=2, on=True)
    observations = [knowing(observation, keyed.start) for observation in keyed.observations]
    found = reconstructed(observations, Victim("later", 1, "client-0", 1))
    assert found.recovered_weights is not None
    lone = reconstructed(observations[1:])
    assert lone.note == "no signal: the prior guess; no round under these keynet keys begins with the known model"
    assert lone.recovered_weights is None


def test_not_those_of_another_epoch(tools: Any, play: Callable[..., Any]) -> None:
    keyed = play(tools.keynet(rotation=1), "residual", rounds=2, on=True)
    observations = [knowing(observation, keyed.start) for observation in keyed.observations]
    assert reconstructed(observations, Victim("later", 1, "client-0", 1)).recovered_weights is None


@pytest.mark.parametrize("kind", ["soft", "orthogonal"])
def test_keys_that_mix_do_not_come_by_division(tools: Any, play: Callable[..., Any], kind: str) -> None:
    keyed = play(tools.keynet(kind=kind), "residual")
    observation = knowing(keyed.observations[0], keyed.start)
    assert isinstance(observation.view, PlainModel)
    assert keys_by_division(keyed.start, observation.view.before, observation.network.channels) is None
    assert missing_need(KnownInitialisation(), observation) == f"needs keys that mix no channels (these are {kind})"


def test_another_model_gives_no_keys(tools: Any, play: Callable[..., Any]) -> None:
    keyed = play(tools.keynet(), "residual")
    generator = torch.Generator().manual_seed(0)
    other = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in keyed.start.items()}
    assert reconstructed([knowing(keyed.observations[0], other)]).key_claims == {}
    channels = keyed.observations[0].network.channels
    zeros = {name: torch.zeros_like(tensor) for name, tensor in keyed.start.items()}
    assert keys_by_division(zeros, keyed.start, channels) is None


def test_without_the_oracle_it_does_not_begin(tools: Any, play: Callable[..., Any]) -> None:
    (observation,) = play(tools.keynet(), "residual").observations
    assert missing_need(KnownInitialisation(), observation) == "needs the initial weights"
    assert reconstructed([observation]).key_claims == {}
