"""How far the attacks on Key-Net get, and how fast: against keys that its own key agent would draw, on real digits.

Every figure is of this run: fresh keys, messages as clients send them, and the attack's own guesses beside the truth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attacks.base import Attack, Budget, Reconstruction, build_attack
from benchmark.audit.chosen import CLIENTS, Choice, ChosenFederation
from benchmark.metrics.pixel import psnr, to_eight_bit
from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.attacks.keynet_blocks import block_figures
from benchmark.speed.attacks.keynet_leaks import leak_figures
from benchmark.speed.attacks.keynet_pixels import grid_figures, image_figures
from benchmark.speed.measure import Stage, quiet
from defenses.base import Defense
from defenses.registry import build_defense
from federation.datasets import Dataset, load_dataset
from federation.errors import DataError
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import Observation, Position, TrainingFacts, Victim
from federation.training import cross_entropy_gradients
from federation.weights import Weights, weights_of

INNER: Mapping[str, float] = {"rate": 0.03, "decay": 0.3}
"""Options of the gradient inversion, alike on both sides: as in the default experiment."""

GAUGE_LOSS = 0.5
"""Decibels that keynet-gauge may stay behind the inversion of the same updates in clear."""

RATE = 0.1
_GAIN_ERROR = "median error of log gains"


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        updates: keyed updates that the gains are found from, an even number.
        victims: how many of them are inverted; half of the updates at most.
        evaluations: gradient evaluations of each inversion.
        images: keyed images that are opened with the first layer.
        leaks: keyed images that are matched with public ones.
        repeats: how often what is timed is repeated.
    """

    updates: int = 40
    victims: int = 16
    evaluations: int = 800
    images: int = 8
    leaks: int = 100
    repeats: int = 3


def measure(progress: Stage = quiet, *, effort: Effort | None = None) -> CaseResult:
    """Play keyed rounds, key layers and images, and attack all of them.

    Args:
        progress: told of every part as it begins and ends.
        effort: how much is measured; the usual where None.
    """
    effort = effort or Effort()
    digits = _digits()
    figures: list[Figure] = []
    parts = {
        "keynet-gauge": lambda: gauge_figures(digits, effort),
        "keynet-grid": lambda: grid_figures(effort.repeats),
        "keynet-image": lambda: image_figures(digits.victims.images[: effort.images], effort.repeats),
        "keynet-image, blocks": lambda: block_figures(digits.victims.images[: effort.images], effort.repeats),
        "keynet-statistics": lambda: leak_figures(digits, effort.leaks),
    }
    for done, (name, part) in enumerate(parts.items()):
        progress(name, done, len(parts))
        figures += part()
    progress("Key-Net", len(parts), len(parts))
    return CaseResult(
        "keynet",
        tuple(figures),
        (
            f"Digits of {digits.name}: {digits.provenance.rstrip('.')}. Keys are fresh, so that figures differ a little from"
            " run to run.",
            "keynet-gauge: LeNet-5 before training, one image and one step an update, gains log-uniform on [1/2, 2].",
            "keynet-grid and keynet-image: in the best of the poses that a layer cannot tell apart, which the attacks leave"
            " open; images with contrast and brightness fitted, which it leaves open too. Seconds are of this process on"
            " the processor.",
            "keynet-statistics: the images of all leaks, one image and one step each, under one key; public images are the"
            f" auxiliary ones of {digits.name}.",
        ),
    )


def _digits() -> Dataset:
    """MNIST where it is at hand, else the embedded part of it."""
    try:
        return load_dataset("mnist")
    except DataError:
        return load_dataset("mnist5k")


def gauge_figures(digits: Dataset, effort: Effort) -> list[Figure]:
    """Channel gains: the inversion of keyed updates beside that of the same updates in clear."""
    network = Network(partial(build_model, "lenet5", digits.image_shape, digits.class_count, seed=0),
                      digits.image_shape, digits.class_count)  # fmt: skip
    victims = [Victim(str(index), index, CLIENTS[0], 1) for index in range(effort.victims)]
    true = digits.victims.images[: 2 * effort.victims : 2]
    budget = Budget(effort.evaluations)

    def reached(attack: Attack, rounds: KeyedRounds) -> tuple[float, list[Reconstruction]]:
        found = attack.reconstruct(rounds.seen, victims, generator=torch_generator("keynet-gauge"), budget=budget)
        return statistics.mean(psnr(true, to_eight_bit(torch.cat([item.images for item in found]))).tolist()), found

    clear, _ = reached(build_attack("cosine", INNER), KeyedRounds.play(build_defense("plain"), network, digits, effort))
    rounds = KeyedRounds.play(build_defense("keynet"), network, digits, effort)
    begun = time.perf_counter()
    keyed, found = reached(build_attack("keynet-gauge", {"inner_options": dict(INNER)}), rounds)
    seconds = time.perf_counter() - begun
    return [
        Figure(
            f"keynet-gauge against channel gains, LeNet-5, {effort.updates} updates: PSNR lost to plain",
            clear - keyed,
            "dB",
            required=GAUGE_LOSS,
            lower_is_better=True,
            detail=f"{keyed:.1f} dB, in clear {clear:.1f} dB; {effort.victims} digits, {effort.evaluations} evaluations each,"
            f" {seconds:.0f} s in all",
        ),
        Figure(
            "keynet-gauge: median error of the gains",
            100 * rounds.gain_error(found[0]),
            "%",
            lower_is_better=True,
            detail="of all channels, those that no update moves among them",
        ),
    ]


@dataclass(frozen=True)
class KeyedRounds:
    """Rounds of two clients, each from the same fresh model, as the server reads them.

    Attributes:
        federation: who played them.
        seen: the first client's update in round r is a step on image 2 r, the second's on image 2 r + 1.
    """

    federation: ChosenFederation
    seen: list[Observation]

    @classmethod
    def play(cls, defense: Defense, network: Network, digits: Dataset, effort: Effort) -> KeyedRounds:
        """Play half as many rounds as there are to be updates."""
        federation = ChosenFederation(defense, network, SecretRoot.fresh(), counts=dict.fromkeys(CLIENTS, 1))
        begin = weights_of(network.build())
        pixels = (digits.victims.pixels()[: effort.updates] - digits.mean[0]) / digits.deviation[0]

        def step_on(index: int) -> Choice:
            image, label = pixels[index : index + 1], digits.victims.labels[index : index + 1]
            return partial(_step, network, image, label)

        seen = []
        for number in range(effort.updates // 2):
            federation.start(begin)
            record = federation.play(0, {name: step_on(2 * number + client) for client, name in enumerate(CLIENTS)})
            seen.append(
                Observation(
                    round=0,
                    transcript=record.transcript,
                    held={},
                    view=federation.view(record, Position.SERVER),
                    scheme=defense.scheme(),
                    facts=TrainingFacts(RATE, batch_size=1, epochs=1, steps=1, sample_counts=federation.counts),
                    network=network,
                    mean=digits.mean,
                    deviation=digits.deviation,
                )
            )
        return cls(federation, seen)

    def gain_error(self, found: Reconstruction) -> float:
        """The referee's median error of the log gains that an attack claims."""
        scores = self.federation.defense.score_key_claims(
            found.key_claims,
            network=self.federation.network,
            victim=CLIENTS[0],
            held={},
            keys=self.federation.parties.held(CLIENTS[0]),
        )
        return scores[_GAIN_ERROR]


def _step(network: Network, image: Tensor, label: Tensor, weights: Weights) -> Weights:
    """The weights after one step of SGD on one image."""
    model = network.build()
    model.load_state_dict(weights)
    gradients = cross_entropy_gradients(model, image, label)
    return {name: tensor - RATE * gradients[name] for name, tensor in weights.items()}
