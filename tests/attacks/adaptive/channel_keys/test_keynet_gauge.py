"""Channel keys fall to nothing but updates: as good as undefended, and honest where they do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.adaptive.keynet_gauge import KeyNetGauge
from attacks.base import Attack, Budget, Reconstruction, missing_need
from attacks.cosine import Cosine
from benchmark.metrics.pixel import psnr, to_eight_bit
from defenses.quantization import Quantization
from federation.models import build_model
from federation.network import Network
from federation.threat import Observation, PlainModel, Position, Victim

OPTIONS = {"rate": 0.1, "decay": 0.3}
BUDGET = Budget(evaluations=400)
HASTY = Budget(evaluations=10)
"""Where the images do not matter."""

CLEAR = 20.0
FLOOR = 13.0
"""Decibels that are shown, and those that a guess reaches (the mean image of the right class)."""


def reconstructed(
    observations: list[Observation], count: int, attack: Attack | None = None, budget: Budget = BUDGET
) -> list[Reconstruction]:
    victims = [Victim(f"v{index}", index, "client-0", 1) for index in range(count)]
    generator = torch.Generator().manual_seed(3)
    attack = attack or KeyNetGauge(inner_options=OPTIONS)
    return attack.reconstruct(observations, victims, generator=generator, budget=budget)


def quality(found: list[Reconstruction], digits: Any) -> float:
    """Mean PSNR; the first client's images are the even ones."""
    images = to_eight_bit(torch.cat([item.images for item in found]))
    return float(psnr(to_eight_bit(digits.pixels[: 2 * len(found) : 2]), images).mean())


def test_keys_cost_it_nothing(tools: Any, play: Callable[..., Any], digits: Any) -> None:
    plain = reconstructed(play(tools.keynet(publish_key=True), rounds=2).observations, 1)
    keyed = play(tools.keynet(), rounds=2)
    found = reconstructed(keyed.observations, 1)
    assert quality(plain, digits) > CLEAR
    assert quality(found, digits) > CLEAR
    assert quality(reconstructed(keyed.observations, 1, Cosine(**OPTIONS)), digits) < FLOOR
    for item in found:
        assert item.findings["updates used"] == 4
        assert item.findings["expected error of log gains"] < 1e-3
        assert item.note == ""
        assert item.labels is None, "the outputs are permuted"
        assert item.recovered_weights is None, "channels stand in an unknown order"
        for space, key in enumerate(keyed.keys.monomial[1:-1], start=1):
            wrong = (item.key_claims[f"gains.{space}"].log() - torch.from_numpy(key.gains).log()).abs()
            assert float(wrong.median()) < 1e-3


def test_permutations_alone_are_inverted_as_they_stand(tools: Any, play: Callable[..., Any], digits: Any) -> None:
    keyed = play(tools.keynet(gain_range=1.0), "lenet-zhu", rounds=2)
    found = reconstructed(keyed.observations, 2, KeyNetGauge(inner="dlg"))
    assert quality(found, digits) > CLEAR
    assert found[0].note == "permutations alone: the keyed network, inverted as it stands"


def test_labels_are_claimed_where_the_outputs_are_in_order(tools: Any, play: Callable[..., Any], digits: Any) -> None:
    found = reconstructed(play(tools.keynet(outputs="identity"), "residual", rounds=2).observations, 2, budget=HASTY)
    assert [int(item.labels) for item in found if item.labels is not None] == digits.labels[:4:2].tolist()


def test_quantised_updates_give_gains_to_a_per_cent_or_two(tools: Any, play: Callable[..., Any], digits: Any) -> None:
    stack = tools.keynet(Quantization(127, "max", 512))
    keyed = play(stack, "residual", rounds=8)
    (found,) = reconstructed(keyed.observations, 1, budget=HASTY)
    for space, key in enumerate(keyed.keys.monomial[1:-1], start=1):
        wrong = (found.key_claims[f"gains.{space}"].log() - torch.from_numpy(key.gains).log()).abs()
        assert float(wrong.median()) < 0.05


def test_one_update_alone_is_used_and_flagged(tools: Any, play: Callable[..., Any]) -> None:
    (observation,) = play(tools.keynet(), "residual", rounds=1).observations
    assert isinstance(observation.view, PlainModel)
    alone = replace(observation.view, after={"client-0": observation.view.after["client-0"]})
    (found,) = reconstructed([replace(observation, view=alone)], 1, budget=HASTY)
    assert found.findings["updates used"] == 1
    assert found.note == "too few updates to be sure of the gains"


@pytest.mark.parametrize("kind", ["soft", "orthogonal"])
def test_keys_that_mix_are_beyond_it(tools: Any, play: Callable[..., Any], kind: str) -> None:
    (observation,) = play(tools.keynet(kind=kind), "residual").observations
    assert missing_need(KeyNetGauge(), observation) == f"needs keys that mix no channels (these are {kind})"
    (found,) = reconstructed([observation], 1)
    assert found.note == f"no signal: the prior guess; needs keys that mix no channels (these are {kind})"
    assert torch.equal(found.images, torch.full_like(found.images, 0.5))


def test_networks_that_cannot_be_rescaled_are_beyond_it(tools: Any, play: Callable[..., Any]) -> None:
    (observation,) = play(tools.keynet(), "residual-tanh").observations
    needs = "needs channels that can be rescaled, as behind ReLU (here tanh)"
    assert missing_need(KeyNetGauge(), observation) == needs
    (in_clear,) = play(tools.keynet(publish_key=True), "residual-tanh").observations
    assert missing_need(KeyNetGauge(), in_clear) is None


def test_who_does_not_know_the_scheme_inverts_what_he_reads(tools: Any, play: Callable[..., Any]) -> None:
    (observation,) = play(tools.keynet(), "residual").observations
    unaware = replace(observation, scheme={})
    (found,), (plain,) = (reconstructed([unaware], 1, attack, HASTY) for attack in (None, Cosine(**OPTIONS)))
    assert torch.equal(found.images, plain.images)
    assert not found.key_claims


def test_rotation_parts_an_eavesdroppers_rounds_but_not_the_servers(tools: Any, play: Callable[..., Any]) -> None:
    rotating = tools.keynet(rotation=1)
    wire = play(rotating, "residual", rounds=3, position=Position.EAVESDROPPER, on=True)
    used = [item.findings["updates used"] for item in reconstructed(wire.observations, 3, budget=HASTY)]
    assert used == [2, 2, 2]
    first, later = (item.key_claims["gains.1"].log() for item in reconstructed(wire.observations, 2, budget=HASTY))
    true = torch.from_numpy(wire.keys.monomial[1].gains).log()
    assert float((first - true).abs().median()) < 1e-2
    assert float((later - true).abs().median()) > 0.1


@pytest.mark.parametrize(("position", "updates"), [(Position.SERVER, 4), (Position.EAVESDROPPER, 2)])
def test_with_keys_of_each_clients_own(tools: Any, play: Callable[..., Any], position: Position, updates: int) -> None:
    """The server brings all clients to one frame; on the wire each client's updates stand alone."""
    observations = play(tools.keynet(per_client=True), "residual", rounds=2, position=position).observations
    found = reconstructed(observations, 2, budget=HASTY)
    assert [item.findings["updates used"] for item in found] == [updates, updates]
    victim = Victim("other", 0, "client-1", 1)
    (other,) = KeyNetGauge(inner_options=OPTIONS).reconstruct(
        observations, [victim], generator=torch.Generator().manual_seed(3), budget=HASTY
    )
    assert ("client-1's update was keyed otherwise" in other.note) == (position is Position.EAVESDROPPER)


def test_it_reads_what_it_declares_alone(tools: Any, play: Callable[..., Any], hiding: Any) -> None:
    (observation,) = play(tools.keynet(), "residual").observations
    first, again = (
        reconstructed([each], 1, budget=HASTY)[0] for each in (observation, hiding(observation, KeyNetGauge.needs))
    )
    assert torch.equal(first.images, again.images)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_networks_of_thousands_of_channels_are_within_reach(tools: Any, play: Callable[..., Any], name: str) -> None:
    observation = play(tools.keynet(), "lenet5").observations[0]
    network = Network(lambda: build_model(name, (3, 32, 32), 10, seed=0), (3, 32, 32), 10)
    hidden = sum(space.size for space in network.channels.spaces if space.role == "hidden")
    assert hidden > 2048
    assert missing_need(KeyNetGauge(), replace(observation, network=network)) is None
