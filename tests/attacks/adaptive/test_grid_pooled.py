"""Convolutions and a fully connected layer joined across average pooling, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.adaptive.grid.network import open_network
from attacks.adaptive.grid.pooled import FEWEST, JoinedNetwork, dense_after, joined
from attacks.adaptive.keynet_grid import KeyNetGrid
from attacks.adaptive.statistics.public import PublicImages
from attacks.base import Budget, prior_guess
from benchmark.audit.chosen import CLIENTS, ChosenFederation
from defenses.keynet.pixel_claims import PIXELS_PLACED, score_pixel_claims
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys
from defenses.keynet.pixel_transform import PixelTransform
from defenses.stack import Stack
from federation.datasets import load_dataset
from federation.models import build_model
from federation.models.base import seeded_initialisation
from federation.network import Network
from federation.normalisation import Normalisation
from federation.secret_root import SecretRoot
from federation.threat import Auxiliary, Observation, Position, TrainingFacts, Victim
from federation.toeplitz import toeplitz_of
from federation.training import cross_entropy_gradients
from federation.weights import weights_of

ROOT = SecretRoot(b"keys on either side of pooling.." * 2)
RATE, UPDATES = 0.1, 40


def network(build: Callable[[], nn.Module], side: int) -> Network:
    def seeded() -> nn.Module:
        with seeded_initialisation(0):
            return build()

    return Network(seeded, (1, side, side), 10)


def small_lenet(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    features = [nn.Conv2d(1, 4, 3, padding=1), activation(), nn.AvgPool2d(2)]
    features += [nn.Conv2d(4, 6, 3), activation(), nn.AvgPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(6 * 9, 24), activation(), nn.Linear(24, 10))


class Digits:
    """Digits of so many pixels, with their normalisation."""

    def __init__(self, side: int) -> None:
        dataset = load_dataset("mnist5k")

        def sized(pixels: Tensor) -> Tensor:
            return F.interpolate(pixels, (side, side), mode="area").mul(255).round().div(255)

        public = dataset.auxiliary
        self.private, self.labels = sized(dataset.victims.pixels()[:UPDATES]), dataset.victims.labels[:UPDATES]
        self.auxiliary = Auxiliary(sized(public.pixels()), public.labels)
        self.mean, self.deviation = float(self.auxiliary.pixels.mean()), float(self.auxiliary.pixels.std())
        self.normalisation = Normalisation([self.mean], [self.deviation])

    def step(self, net: Network, index: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        model = net.build()
        model.load_state_dict(weights)
        inputs = self.normalisation.apply(self.private[index : index + 1])
        gradients = cross_entropy_gradients(model, inputs, self.labels[index : index + 1])
        return {name: tensor - RATE * gradients[name] for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(16)


@pytest.mark.parametrize(("gains", "likeness"), [(1.0, 0.95), (2.0, 0.9)])  # gains are estimates, from 40 leaks
def test_features_are_placed_and_images_decoded_upright(digits: Digits, gains: float, likeness: float) -> None:
    net = network(small_lenet, 16)
    form, policy = PixelForm.of(net), PixelKeyPolicy(gain_range=gains)
    keys = draw_pixel_keys(form, ROOT, policy)
    transform, start = PixelTransform(form, keys), weights_of(net.build())
    before = transform.protect(start).matrices
    updates = [transform.protect(digits.step(net, index, start)).matrices for index in range(UPDATES)]
    frames = open_network(net, before, unit_gains=gains == 1)
    public = PublicImages.of(digits.auxiliary, digits.normalisation, torch.Generator().manual_seed(0))
    found = joined(net, frames, before, updates, public, gain_range=gains, seed=0)
    assert isinstance(found, JoinedNetwork)
    scaled = [space.index for space in form.network.spaces if policy.gains_of(space) > 1]
    assert score_pixel_claims(found.frame.claims(), keys.spaces, form.network, scaled)[PIXELS_PLACED] > 0.95
    # the order of channels is open; each one's features are those of the plain network in their places
    with torch.no_grad():
        true = net.build()[:7](digits.normalisation.apply(digits.private)).double().numpy()  # type: ignore[index]
    ours = found.features.reshape(UPDATES, 6, 9)
    theirs = true.reshape(UPDATES, 6, 9)
    products = np.einsum("ncp,ndp->cd", ours, theirs)
    cosines = products / np.sqrt(np.outer(np.square(ours).sum((0, 2)), np.square(theirs).sum((0, 2))) + 1e-30)
    assert np.sum(cosines.max(0) > likeness) >= 5  # a channel that hardly any image lights tells less
    images = digits.normalisation.invert(torch.from_numpy(found.decoded(public)).view(-1, 1, 16, 16))
    floor = -10 * (digits.auxiliary.pixels.mean(0) - digits.private).square().mean((1, 2, 3)).log10()
    seen = -10 * (images - digits.private).square().mean((1, 2, 3)).log10()
    assert (seen - floor).mean() > 3
    assert joined(net, frames, before, updates[: FEWEST - 1], public, gain_range=gains, seed=0) is None
    assert joined(net, frames, before, [*updates, before], public, gain_range=gains, seed=0) is None


@pytest.mark.parametrize(
    ("build", "side", "name"),
    [
        (small_lenet, 16, "7"),
        (partial(small_lenet, nn.Sigmoid), 16, None),
        (lambda: build_model("lenet-zhu", (1, 20, 20), 10, seed=0), 20, None),
    ],
    ids=["relu", "sigmoid passes no scale", "nothing is pooled"],
)
def test_which_networks_are_joined(build: Callable[[], nn.Module], side: int, name: str | None) -> None:
    net = network(build, side)
    form = PixelForm.of(net)
    transform = PixelTransform(form, draw_pixel_keys(form, ROOT, PixelKeyPolicy()))
    frame = open_network(net, transform.protect(weights_of(net.build())).matrices, unit_gains=False)[0]
    dense = dense_after(net, frame)
    assert (None if dense is None else dense.layer) == name


@pytest.mark.slow
@pytest.mark.parametrize("gains", [1.0, 2.0])
def test_lenet5_end_to_end(gains: float) -> None:
    digits, defense = Digits(28), Stack("keyed", [KeyNetToeplitz(gain_range=gains)])
    net = Network(lambda: build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28), 10)
    federation = ChosenFederation(defense, net, ROOT, counts=dict.fromkeys(CLIENTS, 1))

    def observed(number: int) -> Observation:
        federation.start(weights_of(net.build()))
        steps = {client: partial(digits.step, net, 2 * number + k) for k, client in enumerate(CLIENTS)}
        record = federation.play(0, steps)
        return Observation(
            round=0,
            transcript=record.transcript,
            held={},
            view=federation.view(record, Position.SERVER),
            scheme=defense.scheme(),
            facts=TrainingFacts(RATE, batch_size=1, epochs=1, steps=1, sample_counts=federation.counts),
            network=net,
            mean=(digits.mean,),
            deviation=(digits.deviation,),
            auxiliary=digits.auxiliary,
        )

    history = [observed(number) for number in range(UPDATES // 2)]
    victims = [Victim(f"v{number}", number, CLIENTS[0], 1) for number in range(len(history))]
    found = KeyNetGrid().reconstruct(history, victims, generator=torch.Generator().manual_seed(0), budget=Budget(1))
    errors = (torch.cat([item.images for item in found]) - digits.private[::2]).square().mean((1, 2, 3))
    assert (-10 * errors.log10()).mean() > 18
    assert found[0].findings["leaks used"] == UPDATES
    image = next(space for space in toeplitz_of(net).spaces if space.role == "input")
    assert len(found[0].key_claims[f"places.{image.index}"]) == 784
    assert not torch.equal(found[0].images, prior_guess(history[0], victims[0]).images)
