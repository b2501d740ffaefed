"""Gains are found from a handful of updates, and the error that is stated is honest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from keyed_rounds import updates_of

from attacks.adaptive.gain_estimate import GainEstimate, estimate_gains
from attacks.adaptive.keynet_gauge import UNSURE
from attacks.adaptive.rescaling import KeyedUpdate, RescalingEquations
from defenses.keynet.channel import ChannelTransform
from defenses.keynet.keys import KeyPolicy, draw_keys
from federation.datasets import load_dataset
from federation.models import build_model
from federation.network import Network
from federation.threat import Observation
from federation.weights import weights_of


def equations_of(observations: list[Observation], count: int) -> RescalingEquations:
    network = observations[0].network
    unknown = frozenset(space.index for space in network.channels.spaces if space.role == "hidden")
    return RescalingEquations(network, updates_of(observations)[:count], unknown)


def errors(estimate: GainEstimate, equations: RescalingEquations, keys: Any) -> dict[int, tuple[float, float]]:
    """By space: the median |log error| over all channels, and the largest of those that the updates moved."""
    moved = equations.by_space(equations.moved())
    found = {}
    for space, gains in estimate.gains.items():
        wrong = (gains.log() - torch.from_numpy(keys.keys[space].gains).log()).abs()
        found[space] = (float(wrong.median()), float(wrong[moved[space] > 0].max()))
    return found


@pytest.mark.parametrize(
    ("name", "steps", "gain_range"),
    [("lenet5", 0, 2.0), ("residual", 0, 10.0), ("residual", 60, 2.0), ("residual-norm", 60, 10.0)],
)
def test_ten_updates_are_plenty(
    tools: Any, play: Callable[..., Any], after_training: Any, name: str, steps: int, gain_range: float
) -> None:
    keyed = play(tools.keynet(gain_range=gain_range), name, rounds=5, start=after_training(name, steps))
    equations = equations_of(keyed.observations, 10)
    estimate = estimate_gains(equations, gain_range)
    for median, largest in errors(estimate, equations, keyed.keys).values():
        assert median < 3e-5
        assert largest < 3e-4
    assert estimate.error < 1e-4
    assert estimate.residual < 1e-4
    assert estimate.updates == 10


@pytest.mark.slow
def test_the_whole_of_resnet18_from_two_updates(tools: Any) -> None:
    """2,880 gained channels, batch norm and residual sums; it takes some minutes on one core."""
    network = Network(lambda: build_model("resnet18", (3, 32, 32), 10, seed=0), (3, 32, 32), 10)
    keys = draw_keys(network.channels, tools.ROOT, KeyPolicy(2.0))
    keyed, before = ChannelTransform(keys, network.channels), weights_of(network.build())
    photographs = load_dataset("photos32").victims
    images, labels = (photographs.pixels()[:8] - 0.5) / 0.25, photographs.labels[:8] % 10
    updates = [
        KeyedUpdate(keyed.protect(before), keyed.protect(tools.step(network, before, images[part], labels[part])))
        for part in (slice(0, 4), slice(4, 8))
    ]
    hidden = frozenset(space.index for space in network.channels.spaces if space.role == "hidden")
    equations = RescalingEquations(network, updates, hidden)
    estimate = estimate_gains(equations, 2.0)
    assert max(median for median, _ in errors(estimate, equations, keys).values()) < 1e-3
    assert estimate.error < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 300])
def test_forty_updates_of_lenet5(tools: Any, play: Callable[..., Any], after_training: Any, steps: int) -> None:
    keyed = play(tools.keynet(), "lenet5", rounds=20, start=after_training("lenet5", steps))
    equations = equations_of(keyed.observations, 40)
    for median, _ in errors(estimate_gains(equations, 2.0), equations, keyed.keys).values():
        assert median < 3e-6


@pytest.mark.slow
def test_several_large_steps_after_training_are_flagged(tools: Any, digits: Any, after_training: Any) -> None:
    network, before = tools.network("lenet5"), after_training("lenet5", 300)
    keys = draw_keys(network.channels, tools.ROOT, KeyPolicy(2.0))
    keyed = ChannelTransform(keys, network.channels)
    updates, batches = [], iter(torch.arange(100).split(10))
    for _ in range(2):
        after = before
        for batch in (next(batches) for _ in range(5)):
            after = tools.step(network, after, digits.normalised[batch], digits.labels[batch])
        updates.append(KeyedUpdate(keyed.protect(before), keyed.protect(after)))
    equations = RescalingEquations(network, updates, frozenset({1, 2, 3, 4}))
    estimate = estimate_gains(equations, 2.0)
    assert max(median for median, _ in errors(estimate, equations, keys).values()) > 0.05
    assert estimate.error > UNSURE


def test_two_updates_do(tools: Any, play: Callable[..., Any]) -> None:
    keyed = play(tools.keynet(), "lenet5", rounds=1)
    equations = equations_of(keyed.observations, 2)
    estimate = estimate_gains(equations, 2.0)
    assert max(median for median, _ in errors(estimate, equations, keyed.keys).values()) < 1e-3
    assert estimate.error < 1e-3


def test_one_update_leaves_nothing_to_check_the_gains_by(tools: Any, play: Callable[..., Any]) -> None:
    keyed = play(tools.keynet(), "residual-norm", rounds=1)
    estimate = estimate_gains(equations_of(keyed.observations, 1), 2.0)
    assert estimate.error == pytest.approx(torch.tensor(2.0).log().item() / 3**0.5)


def test_noise_is_not_taken_for_gains(tools: Any, play: Callable[..., Any]) -> None:
    keyed = play(tools.keynet(), "residual", rounds=5)
    generator = torch.Generator().manual_seed(0)

    def noise(update: KeyedUpdate) -> KeyedUpdate:
        drawn = {
            name: tensor - (tensor - update.after[name]).norm() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in update.before.items()
        }
        return KeyedUpdate(update.before, drawn)

    network = keyed.observations[0].network
    noisy = RescalingEquations(network, list(map(noise, updates_of(keyed.observations))), frozenset({1, 2}))
    estimate = estimate_gains(noisy, 2.0)
    assert estimate.residual > 0.1
    assert estimate.error > 0.1
    assert all(bool((gains <= 2.0 + 1e-9).all() and (gains >= 0.5 - 1e-9).all()) for gains in estimate.gains.values())


def test_updates_that_change_nothing_leave_the_gains_at_one(tools: Any, play: Callable[..., Any]) -> None:
    keyed = play(tools.keynet(), "residual")
    network = keyed.observations[0].network
    still = [KeyedUpdate(update.before, update.before) for update in updates_of(keyed.observations)]
    estimate = estimate_gains(RescalingEquations(network, still, frozenset({1, 2})), 2.0)
    assert all(torch.equal(gains, torch.ones_like(gains)) for gains in estimate.gains.values())
    assert estimate.error > 0.1


@pytest.mark.parametrize("factors", [1, 2])
def test_gains_of_the_outputs_are_found_as_well(tools: Any, play: Callable[..., Any], factors: int) -> None:
    keyed = play(tools.keynet(outputs="monomial"), "residual", rounds=5)
    network = keyed.observations[0].network
    unknown = frozenset(space.index for space in network.channels.spaces if space.role != "input")
    equations = RescalingEquations(network, updates_of(keyed.observations), unknown)
    estimate = estimate_gains(equations, 2.0, factors)
    assert max(largest for _, largest in errors(estimate, equations, keyed.keys).values()) < 1e-2
