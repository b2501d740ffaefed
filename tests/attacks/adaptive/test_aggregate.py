"""The released mean as an update of a larger batch, under every defense whose release clients recover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.adaptive import recovery
from attacks.adaptive.aggregate import Aggregate
from attacks.base import Attack, Budget, History, Reconstruction, prior_guess
from attacks.cosine import Cosine
from federation.threat import AGGREGATE, Observation, Oracle, PlainModel, Position, Victim
from federation.weights import largest_difference

BUDGET = Budget(evaluations=100)


@dataclass(frozen=True)
class Recorder(Attack):
    """Returns the prior guess, and keeps what it was handed."""

    name = "recorder"
    seen: list[Observation] = field(default_factory=list)
    victims: list[Victim] = field(default_factory=list)

    def reconstruct(self, history: History, victims: Sequence[Victim], **_: Any) -> list[Reconstruction]:
        self.seen.extend(history)
        self.victims.extend(victims)
        return [prior_guess(history[victim.observation], victim) for victim in victims]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What stands in for the inner attack."""
    inner = Recorder()
    monkeypatch.setattr(recovery, "build_attack", lambda *_: inner)
    return inner


def reconstructed(observation: Observation, victim: Victim, attack: Any = None) -> Reconstruction:
    attack = attack or Aggregate()
    generator = torch.Generator().manual_seed(3)
    found: Reconstruction = attack.reconstruct([observation], [victim], generator=generator, budget=BUDGET)[0]
    return found


def from_outside(played: Any) -> Observation:
    """Of somebody who reads the released models alone, as clients recover them."""
    observation: Observation = played.observed(Position.CLIENT)
    assert isinstance(observation.view, PlainModel)
    after = {AGGREGATE: observation.view.after[AGGREGATE]}
    return replace(observation, view=replace(observation.view, after=after))


def batch(pictures: Tensor, classes: int, counts: tuple[int, ...], of: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The images and labels on which the hand-made clients of `play` trained."""
    pixels = [pictures[index : index + counts[index]] for index in of]
    labels = [(torch.arange(counts[index]) % classes + index + 2) % classes for index in of]
    return torch.cat(pixels), torch.cat(labels)


DEFENSES = ["plain", "paillier", "paillier-quantized", "keynet", "keynet-toeplitz", "qsgd", "keynet-quantized"]
COUNTS = (1, 3, 2)


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize(
    ("position", "others"), [(Position.AGGREGATE, (0, 1, 2)), (Position.CLIENT, (0, 2))], ids=["outsider", "client"]
)
def test_the_mean_of_the_others_is_their_step_on_all_their_images(
    *, play: Callable[..., Any], victim: Victim, pictures: Tensor, recorder: Recorder, defense: str, position: Position,
    others: tuple[int, ...],
) -> None:  # fmt: skip
    played = play(defense, counts=COUNTS)
    seen = from_outside(played) if position is Position.AGGREGATE else played.observed(position)
    found = reconstructed(seen, victim)
    client, observation = played.client, recorder.seen[0]
    expected = client.trained(played.before, [batch(pictures, client.network.class_count, COUNTS, others)])
    assert isinstance(observation.view, PlainModel)
    assert set(observation.view.after) == {victim.sender}
    wrong = largest_difference(observation.view.after[victim.sender], expected)
    quantised = "qsgd" in defense or "quantized" in defense
    assert wrong < (0.1 * largest_difference(expected, played.before) if quantised else 1e-6)
    images = sum(COUNTS[index] for index in others)
    assert observation.facts.sample_counts == {victim.sender: images}
    assert recorder.victims[0].image_count == images
    assert found.images.shape == (1, *client.network.image_shape)
    assert found.findings == {"parties in the mean": len(others), "images in the mean": images}
    assert found.recovered_weights is None
    assert f"the mean of {len(others)} parties" in found.note


@pytest.mark.parametrize("defense", ["plain", "paillier", "keynet", "qsgd"])
def test_with_two_parties_a_client_reads_the_other(play: Callable[..., Any], victim: Victim, defense: str) -> None:
    played = play(defense)
    found = reconstructed(played.observed(Position.CLIENT), victim)
    assert found.recovered_weights is not None
    assert largest_difference(found.recovered_weights, played.trained["client-0"]) < (
        2e-3 if defense == "qsgd" else 1e-6
    )
    undefended = reconstructed(played.in_clear(), victim, Cosine())
    assert float((found.images - undefended.images).abs().mean()) < 0.02
    assert not found.findings


def test_all_but_one_read_the_last(play: Callable[..., Any], victim: Victim) -> None:
    """K - 1 parties that work together read each other's uploads; the harness lends such views to no position yet."""
    played = play("paillier", counts=COUNTS)
    seen = played.observed(Position.COLLUSION)
    assert isinstance(seen.view, PlainModel)
    after = {name: weights for name, weights in seen.view.after.items() if name != victim.sender}
    found = reconstructed(replace(seen, view=replace(seen.view, after=after)), victim)
    assert found.recovered_weights is not None
    assert largest_difference(found.recovered_weights, played.trained[victim.sender]) < 2e-6


@pytest.mark.parametrize("options", [{"form": "two-party", "cloud_half": True}, {"form": "six-party"}], ids=str)
def test_the_pride_protocols_mean(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, recorder: Recorder, options: dict[str, Any]
) -> None:
    """Parties weigh alike where the cloud has its half, else by their images; a party does not read its own upload."""
    played = play(pride(**options))
    reconstructed(played.observed(Position.CLIENT), victim)
    view = recorder.seen[0].view
    assert isinstance(view, PlainModel)
    shares = (1 / 2, 1 / 2) if options.get("cloud_half") else (1 / 4, 3 / 4)
    expected = {
        name: sum(share * weights[name] for share, weights in zip(shares, played.trained.values(), strict=True))
        for name in played.before
    }
    assert largest_difference(view.after[victim.sender], expected) < 1e-6


def test_what_is_read_in_clear_is_inverted_itself(play: Callable[..., Any], victim: Victim) -> None:
    played = play("plain", counts=COUNTS)
    found = reconstructed(played.observed(Position.SERVER), victim)
    assert torch.equal(found.images, reconstructed(played.in_clear(), victim, Cosine()).images)


def test_labels_that_are_the_victims_alone_are_not_taken_for_the_means(
    play: Callable[..., Any], victim: Victim, recorder: Recorder
) -> None:
    for counts, granted in ((COUNTS, set()), ((1, 3), {Oracle.LABELS})):
        observation = replace(
            play("plain", counts=counts).observed(Position.CLIENT), oracles={Oracle.LABELS: torch.tensor([2])}
        )
        reconstructed(observation, victim)
        assert recorder.seen[-1].oracles.keys() == granted


def test_an_image_comes_out_of_a_mean_of_two(play: Callable[..., Any], victim: Victim, pictures: Tensor) -> None:
    played = play("paillier", counts=(1, 1))
    found = Aggregate(inner="dlg").reconstruct(
        [from_outside(played)],
        [victim],
        generator=torch.Generator().manual_seed(3),
        budget=Budget(evaluations=300, restarts=2),
    )[0]
    errors = (found.images - pictures[:2]).square().mean((1, 2, 3))
    assert float(errors.min()) < 1e-4, "grey is 38 times as far from either"
    assert found.labels is not None
    assert found.labels.tolist() == [2 + int(errors.argmin())]


def test_where_nothing_is_released_it_says_so(play: Callable[..., Any], victim: Victim) -> None:
    observation = play("plain").observed(Position.CLIENT)
    assert isinstance(observation.view, PlainModel)
    own = {"client-1": observation.view.after["client-1"]}
    found = reconstructed(replace(observation, view=replace(observation.view, after=own)), victim)
    assert "no released model" in found.note
    assert torch.equal(found.images, torch.full_like(found.images, 0.5))
