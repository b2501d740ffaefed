"""`keynet-image` on images as they are served: what opens, what does not, and what it says of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Budget, Reconstruction, build_attack
from benchmark.metrics import pixel
from defenses.inference import Inference
from defenses.keynet.image_key import ImageKeyPolicy
from defenses.keynet.inference import KeyedNetwork
from defenses.keynet.inference_keys import draw_inference_keys
from defenses.keynet.pixel_keys import PixelKeyPolicy
from defenses.keynet.served import KeyedImageOwner
from defenses.registry import build_defense
from federation.datasets import Dataset, load_dataset
from federation.messages import Transcript
from federation.models import build_model
from federation.network import Network
from federation.normalisation import Normalisation
from federation.secret_root import SecretRoot
from federation.threat import Auxiliary, KeyedImage, Observation, TrainingFacts, Victim
from federation.toeplitz import toeplitz_of
from federation.weights import weights_of

ROOT = SecretRoot(b"keys of images that are attacked" * 2)
DIGITS, PHOTOS = load_dataset("mnist5k"), load_dataset("photos32")
COUNT = 8


def network(dataset: Dataset, model: str) -> Network:
    shape, classes = dataset.image_shape, dataset.class_count
    return Network(lambda: build_model(model, shape, classes, seed=0), shape, classes)


LENET5, COLOURS = network(DIGITS, "lenet5"), network(PHOTOS, "lenet-zhu")


def inference_of(**options: Any) -> Inference:
    found = build_defense("keyed", [{"keynet-toeplitz": options}]).inference
    assert found is not None
    return found


def seen(
    served: Network,
    inference: Inference,
    dataset: Dataset = DIGITS,
    *,
    owner: Any = None,
    eight_bit: bool = False,
    root: SecretRoot = ROOT,
) -> list[Observation]:
    """One observation for each of the first victims of a data set."""
    owner = owner or inference.owner(served, weights_of(served.build()), root)
    layers = inference.read_network(owner.network(), served)
    inputs = Normalisation(dataset.mean, dataset.deviation).apply(dataset.victims.pixels()[:COUNT])
    return [
        Observation(
            round=0,
            transcript=Transcript(),
            held={},
            view=KeyedImage(
                layers, inference.read_image(owner.image(image, eight_bit=eight_bit), served), inference.hidden_by
            ),
            scheme={},
            facts=TrainingFacts(0.1, 1, 1, 1, {"client-0": 1}),
            network=served,
            mean=dataset.mean,
            deviation=dataset.deviation,
            auxiliary=Auxiliary(dataset.auxiliary.pixels(), dataset.auxiliary.labels),
        )
        for image in inputs
    ]


def opened(history: Sequence[Observation]) -> list[Reconstruction]:
    victims = [Victim(f"image {index}", index, "client-0", 1) for index in range(len(history))]
    generator = torch.Generator().manual_seed(0)
    return build_attack("keynet-image").reconstruct(history, victims, generator=generator, budget=Budget(1))


def psnr(found: Sequence[Reconstruction], truth: Tensor) -> Tensor:
    return pixel.psnr(truth, pixel.to_eight_bit(torch.cat([item.images for item in found])))


@pytest.mark.parametrize("gain_range", [1.0, 2.0, 10.0])
def test_digits_open_upright_and_as_bright_as_they_are(gain_range: float) -> None:
    inference = inference_of(gain_range=gain_range)
    found = opened(seen(LENET5, inference))
    assert psnr(found, DIGITS.victims.images[:COUNT]).min() > 50
    for item in found:
        assert item.findings["share of pixels placed"] == 1
        assert item.findings["largest ratio of gains"] == pytest.approx(gain_range**2, rel=0.05)
        assert item.findings["key residual"] < 1e-5
        assert item.findings["poses left open"] == 8
        assert (item.evaluations, item.note, item.labels) == (0, "", None)
    scores = inference.score_key_claims(found[0].key_claims, LENET5, ROOT)
    assert scores["share of pixels placed rightly"] == 1


def test_another_networks_layer_opens_nothing() -> None:
    inference = inference_of()
    others = seen(LENET5, inference, root=ROOT.derive("another"))
    mixed = [
        replace(one, view=replace(view(one), layers=view(other).layers))
        for one, other in zip(seen(LENET5, inference), others, strict=True)
    ]
    truth = DIGITS.victims.images[:COUNT]
    assert psnr(opened(mixed), truth).max() < 15 < psnr(opened(others), truth).min()


def view(observation: Observation) -> KeyedImage:
    assert isinstance(observation.view, KeyedImage)
    return observation.view


def test_images_under_several_keys_open_in_one_call() -> None:
    inference = inference_of()
    histories = [seen(LENET5, inference, root=ROOT.derive(label)) for label in "ab"]
    found = opened([item for pair in zip(*histories, strict=True) for item in pair])
    truth = DIGITS.victims.images[:COUNT].repeat_interleave(2, dim=0)
    assert psnr(found, truth).min() > 50


def test_offsets_cost_brightness_alone() -> None:
    inference, traced = inference_of(), toeplitz_of(LENET5)
    policies = ImageKeyPolicy(gain_range=2, offset_range=1.0), PixelKeyPolicy(gain_range=2)
    keys = draw_inference_keys(traced, ROOT, *policies)
    owner = KeyedImageOwner(KeyedNetwork.of(traced, weights_of(LENET5.build()), keys.spaces), keys)
    found = opened(seen(LENET5, inference, owner=owner))
    assert psnr(found, DIGITS.victims.images[:COUNT]).mean() > 35


@pytest.mark.parametrize("gain_range", [1.0, 2.0])
def test_pictures_of_eight_bits_open(gain_range: float) -> None:
    found = opened(seen(LENET5, inference_of(gain_range=gain_range), eight_bit=True))
    assert psnr(found, DIGITS.victims.images[:COUNT]).mean() > 30


@pytest.mark.parametrize("gain_range", [1.0, 2.0])
def test_photographs_open_up_to_the_pose_and_colours_that_stay_open(gain_range: float) -> None:
    """Under a stride of 2, which keeps sets of pixels apart; pose and colours are another module's affair."""
    inference = inference_of(gain_range=gain_range)
    found = opened(seen(COLOURS, inference, PHOTOS))
    images, truth = torch.cat([item.images for item in found]), PHOTOS.victims.pixels()[:COUNT]
    errors = [
        float((turned[:, list(order)] - truth).abs().mean())
        for turned in (images, images.mT)
        for order in itertools.permutations(range(3))
    ]
    # another order of colours has other means and deviations, which shift its colours a little
    assert min(errors) < 0.02
    scores = inference.score_key_claims(found[0].key_claims, COLOURS, ROOT)
    assert scores["share of pixels placed rightly, best pose and colours (oracle)"] == 1


def test_of_coloured_pictures_nothing_is_claimed_that_was_not_found() -> None:
    found = opened(seen(COLOURS, inference_of(), PHOTOS, eight_bit=True))
    assert {len(item.key_claims) for item in found} == {0}
    assert all(item.images.shape == (1, 3, 32, 32) for item in found)


def test_what_is_read_in_clear_is_returned() -> None:
    for inference in (build_defense("plain").inference, build_defense("keynet-toeplitz").leaky_twin().inference):
        assert inference is not None
        found = opened(seen(LENET5, inference))
        assert torch.equal(psnr(found, DIGITS.victims.images[:COUNT]), torch.full((COUNT,), 60.0, dtype=torch.float64))


def test_a_picture_in_clear_is_returned_as_bright_as_public_ones() -> None:
    twin = build_defense("keynet-toeplitz").leaky_twin().inference
    assert twin is not None
    found = opened(seen(LENET5, twin, eight_bit=True))
    assert psnr(found, DIGITS.victims.images[:COUNT]).mean() > 30


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


@pytest.mark.parametrize(
    ("served", "options", "words"),
    [
        (LENET5, {"alpha": 2}, "no key was found: the entries do not stand where"),
        (Network(dense, (1, 28, 28), 10), {}, "no key was found: no ungrouped convolution reads the images"),
    ],
    ids=["soft keys", "fully connected"],
)
def test_without_a_key_it_guesses_and_says_so(served: Network, options: dict[str, Any], words: str) -> None:
    found = opened(seen(served, inference_of(**options)))
    mean = pixel.to_eight_bit(DIGITS.auxiliary.pixels().double().mean(0, keepdim=True))
    for item in found:
        assert item.note.startswith(words)
        assert item.objective is None
        assert not item.key_claims
        assert (pixel.to_eight_bit(item.images).int() - mean.int()).abs().max() <= 1
