"""`keynet-statistics`: rounds of a logistic regression and of a perceptron under real keys, and what does not open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.adaptive.keynet_statistics import KeyNetStatistics
from attacks.base import Budget, Reconstruction, missing_need, prior_guess
from benchmark.audit.chosen import CLIENTS, ChosenFederation
from benchmark.victims import secretly_jittered
from defenses.keynet.defense import KeyNet
from defenses.keynet.key_claims import GAINS_CLAIMED, LARGEST_GAIN_ERROR
from defenses.keynet.pixel_claims import PIXELS_PLACED
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.plain import Plain
from defenses.stack import Stack
from defenses.stages import KeysInForce
from federation.datasets import load_dataset
from federation.models import build_model
from federation.models.base import seeded_initialisation
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import Auxiliary, Ciphertext, Observation, Position, TrainingFacts, Victim
from federation.training import cross_entropy_gradients
from federation.weights import Weights, weights_of

ROOT = SecretRoot(b"keys that statistics undo ......" * 2)
RATE = 0.1


def logistic(side: int) -> Network:
    return Network(lambda: build_model("logistic", (1, side, side), 10, seed=0), (1, side, side), 10)


def perceptron(side: int) -> Network:
    def build() -> nn.Module:
        with seeded_initialisation(0):
            return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 24), nn.ReLU(), nn.Linear(24, 10))

    return Network(build, (1, side, side), 10)


class Played:
    """Rounds in which both clients take a step on one image each, from one model, under the keys of one round."""

    def __init__(
        self, network: Network, stage: Any, rounds: int, spoil: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        self.network, self.stage = network, stage
        stages = [stage, Plain()] if isinstance(stage, KeyNet) else [stage]
        dataset, side = load_dataset("mnist5k"), network.image_shape[1:]
        jittered = secretly_jittered(dataset.victims, ROOT)

        def sized(pixels: Tensor) -> Tensor:
            return F.interpolate(pixels, side, mode="area").mul(255).round().div(255)

        self.private = spoil(sized(jittered.pixels()[: 2 * rounds]))
        self.labels = dataset.victims.labels[: 2 * rounds]
        public = dataset.auxiliary
        self.auxiliary = Auxiliary(sized(public.pixels()), public.labels)
        self.mean, self.deviation = float(self.auxiliary.pixels.mean()), float(self.auxiliary.pixels.std())
        federation = ChosenFederation(Stack("keyed", stages), network, ROOT, counts=dict.fromkeys(CLIENTS, 1))
        self.history = [self._observed(federation, number) for number in range(rounds)]
        self.victims = [Victim(f"v{number}", number, CLIENTS[0], 1) for number in range(rounds)]

    def _observed(self, federation: ChosenFederation, number: int) -> Observation:
        federation.start(weights_of(self.network.build()))
        record = federation.play(0, {name: partial(self._step, 2 * number + k) for k, name in enumerate(CLIENTS)})
        return Observation(
            round=0,
            transcript=record.transcript,
            held={},
            view=federation.view(record, Position.SERVER),
            scheme=federation.defense.scheme(),
            facts=TrainingFacts(RATE, batch_size=1, epochs=1, steps=1, sample_counts=federation.counts),
            network=self.network,
            mean=(self.mean,),
            deviation=(self.deviation,),
            auxiliary=self.auxiliary,
        )

    def _step(self, index: int, weights: Weights) -> Weights:
        model = self.network.build()
        model.load_state_dict(weights)
        inputs = (self.private[index : index + 1] - self.mean) / self.deviation
        gradients = cross_entropy_gradients(model, inputs, self.labels[index : index + 1])
        return {name: tensor - RATE * gradients[name] for name, tensor in weights.items()}

    def attacked(self, history: Sequence[Observation] | None = None) -> list[Reconstruction]:
        seen = self.history if history is None else history
        return KeyNetStatistics().reconstruct(
            seen, self.victims[: len(seen)], generator=torch.Generator().manual_seed(0), budget=Budget(1)
        )

    def psnr(self, found: list[Reconstruction]) -> Tensor:
        errors = (torch.cat([item.images for item in found]) - self.private[::2]).square().mean((1, 2, 3))
        return -10 * errors.clamp(min=1e-6).log10()

    def score(self, item: Reconstruction) -> dict[str, float]:
        material = self.stage.draw_keys(self.network, CLIENTS[0], ROOT.derive("stage", self.stage.name, 0))
        return dict(self.stage.score_key_claims(item.key_claims, self.network, KeysInForce(CLIENTS[0], material)))


@pytest.mark.parametrize(
    ("network", "gains"), [(logistic, 1.0), (logistic, 2.0), (perceptron, 2.0)], ids=["1", "2", "perceptron"]
)
def test_pixels_are_placed_from_a_hundred_leaks(network: Callable[[int], Network], gains: float) -> None:
    played = Played(network(12), KeyNetToeplitz(gain_range=gains), rounds=50)
    found = played.attacked()
    assert played.psnr(found).mean() > 38
    scores = played.score(found[0])
    assert scores[PIXELS_PLACED] > 0.8  # corners are black in nearly all images, and one like another
    if gains > 1:
        assert scores[GAINS_CLAIMED] == 1
        assert scores[LARGEST_GAIN_ERROR] < 1e-3
    assert all(item.findings["leaks used"] == 100 and item.findings["rounds used"] == 50 for item in found)
    assert torch.equal(torch.cat([item.labels for item in found if item.labels is not None]), played.labels[::2])


@pytest.fixture(scope="module")
def few() -> Played:
    return Played(logistic(12), KeyNetToeplitz(), rounds=10)


def told_nothing(played: Played, found: list[Reconstruction], reason: str) -> None:
    for item, victim in zip(found, played.victims, strict=False):
        assert torch.equal(item.images, prior_guess(played.history[victim.observation], victim).images)
        assert item.note.startswith("no signal")
        assert reason in item.note
        assert not item.key_claims


def test_too_few_leaks_are_no_signal(few: Played) -> None:
    told_nothing(few, few.attacked(few.history[:3]), "6 leaks under this key")


def test_pixels_that_nothing_relates_are_no_signal() -> None:
    def unrelated(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        columns = [column[torch.randperm(len(column), generator=generator)] for column in images.flatten(1).T]
        return torch.stack(columns, 1).view_as(images)

    played = Played(logistic(12), KeyNetToeplitz(), rounds=30, spoil=unrelated)
    found = played.attacked()
    told_nothing(played, found, "do not foretell")
    assert found[0].findings["predictability of placed pixels"] < 0.4


def test_leaks_of_keys_that_rotate_are_not_joined(few: Played) -> None:
    options = {"keynet-toeplitz": {**few.history[0].scheme["keynet-toeplitz"], "rotation": 2}}
    rotating = [replace(seen, round=number, scheme=options) for number, seen in enumerate(few.history)]
    told_nothing(few, few.attacked(rotating), "4 leaks under this key")


def test_an_update_that_moves_nothing_is_no_signal(few: Played) -> None:
    view: Any = few.history[0].view
    still = replace(few.history[0], view=replace(view, after=dict.fromkeys(view.after, view.before)))
    told_nothing(few, few.attacked([still]), "0 leaks")


@pytest.mark.parametrize("kind", ["monomial", "orthogonal"])
def test_channel_keys_leave_the_image_to_a_single_update(kind: Any) -> None:
    played = Played(perceptron(12), KeyNet(kind=kind), rounds=1)
    assert played.psnr(played.attacked()).min() > 45


def test_what_is_beyond_it_is_said(few: Played) -> None:
    seen, attack = few.history[0], KeyNetStatistics()
    assert missing_need(attack, seen) is None
    soft = replace(seen, scheme=Stack("soft", [KeyNetToeplitz(alpha=4)]).scheme())
    assert missing_need(attack, soft) == "needs keys of one permutation (these mix 4: alpha)"
    convolution = Network(lambda: build_model("lenet-zhu", (1, 14, 14), 10, seed=0), (1, 14, 14), 10)
    other = replace(seen, network=convolution)
    assert missing_need(attack, other) == "needs a network that begins with a fully connected layer"
    sealed = replace(seen, scheme={"paillier": {}}, view=Ciphertext("paillier", 10))
    assert missing_need(attack, sealed) == "needs updates that can be read (it reads ciphertext)"
    batch = replace(seen, facts=replace(seen.facts, batch_size=8))
    assert missing_need(attack, batch) == "needs updates made from a single image"


@pytest.mark.slow
@pytest.mark.parametrize(("gains", "due"), [(1.0, 38.0), (2.0, 26.0)])
def test_a_hundred_digits_of_full_size(gains: float, due: float) -> None:
    played = Played(logistic(28), KeyNetToeplitz(gain_range=gains), rounds=50)
    assert played.psnr(played.attacked()).mean() > due
