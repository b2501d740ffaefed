"""What adversaries recover from the protocol as coded, against the truth that the tests know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from phe.paillier import PaillierPrivateKey
from scipy.stats import entropy

from benchmark.reproduce.pride import adversaries, wire
from benchmark.reproduce.pride.exchange import PRECISION_MEANT, Cloud, Exchange, returned
from benchmark.reproduce.pride.models import LinearModel
from benchmark.reproduce.pride.parties import Party, Points
from benchmark.reproduce.pride.pictures import RATE, OneImageUpdates, first_of_each_class, nearest_images, weight_images
from benchmark.store.pride import AdversaryResult
from defenses.paillier.keys import generate_keypair
from federation.secret_root import SecretRoot

PIXELS, CLASSES = 16, 3


@pytest.fixture(scope="module")
def private_key() -> PaillierPrivateKey:
    return generate_keypair(512, SecretRoot(b"a" * 32).reader(), allow_small=True)


@pytest.fixture(scope="module")
def models() -> list[LinearModel]:
    generator = np.random.default_rng(2)
    found = []
    for _ in range(6):
        weights = generator.normal(0, 1, (CLASSES, PIXELS)) * 10.0 ** generator.integers(-5, 1, (CLASSES, PIXELS))
        weights[:, :3] = 0
        found.append(LinearModel(weights, generator.normal(0, 1, CLASSES)))
    return found


@pytest.fixture(scope="module")
def exchange(models: list[LinearModel], private_key: PaillierPrivateKey) -> Exchange:
    cloud = Cloud(models[0], private_key, PRECISION_MEANT)
    broadcast, seconds = cloud.broadcast()
    uploads = tuple(returned(model, broadcast, private_key.public_key) for model in models[1:])
    pairs = tuple(cloud.pair(upload) for upload in uploads)
    return Exchange(PRECISION_MEANT, broadcast, seconds, uploads, pairs, cloud.six(uploads))


@pytest.fixture(scope="module")
def found(exchange: Exchange, models: list[LinearModel], private_key: PaillierPrivateKey) -> list[AdversaryResult]:
    stages = list(adversaries.measured(exchange, models, private_key))
    assert len(stages) == adversaries.COUNT
    return [row for _, rows in stages for row in rows]


def value(found: list[AdversaryResult], target: str) -> float:
    (row,) = (row for row in found if target in row.target)
    return row.value


def test_anyone_on_the_wire_reads_every_weight_bit_by_bit_without_a_key(found: list[AdversaryResult]) -> None:
    for target in ("from (E(w_0) + w_k) / 2", "from E(w_0) + w_k and"):
        assert value(found, target) == 1
    assert found[0].cases == 5 * 2 * PIXELS


def test_nothing_is_read_from_re_randomised_messages(found: list[AdversaryResult]) -> None:
    assert value(found, "re-randomised") == 0


def test_the_control_fails_where_messages_are_of_other_weights(
    exchange: Exchange, models: list[LinearModel], private_key: PaillierPrivateKey
) -> None:
    """Against another truth the same measure falls: it compares what was read, it does not count what was tried."""
    shuffled = [models[0], *models[2:], models[1]]
    rows = dict(adversaries.measured(exchange, shuffled, private_key))["quotients"]
    zeros = 3 / PIXELS
    assert [row.value for row in rows] == [pytest.approx(zeros), pytest.approx(zeros)]


def test_the_cloud_reads_a_party_exactly(found: list[AdversaryResult]) -> None:
    assert value(found, "D(c_1) - w_0") == 1
    assert value(found, "2 * average - w_0") < 1e-15


def test_fellows_read_the_cloud_and_colluding_parties_the_last_one(found: list[AdversaryResult]) -> None:
    assert value(found, "the cloud, as 2 * average - w_k") <= 16.0**-6 / 2 + 1e-15
    assert value(found, "party 5, as what is left") < 1e-14


def test_selection_names_the_right_party(found: list[AdversaryResult]) -> None:
    assert value(found, "averaged in") == 1


def test_exponents_are_measured_as_scipy_does_and_mark_every_zero(
    found: list[AdversaryResult], exchange: Exchange, models: list[LinearModel]
) -> None:
    exponents = [wire.read(upload.total).exponents for upload in exchange.uploads]
    expected = np.mean([entropy(np.unique(each, return_counts=True)[1], base=2) for each in exponents])
    rows = {row.measure: row for row in found if "exponents" in row.target}
    assert rows["leaked a weight"].value == pytest.approx(expected)
    assert rows["leaked a weight"].value > 0.5
    assert rows["zero weights that are marked"].value == 1
    assert rows["zero weights that are marked"].cases == 5 * 2 * 3
    at_zeros = [
        each[np.append(model.weights[0], model.weights[1]) == 0]
        for each, model in zip(exponents, models[1:], strict=True)
    ]
    assert len(np.unique(np.concatenate(at_zeros))) == 1
    assert 0 < rows["marked weights that are zero"].value < 1


@pytest.fixture(scope="module")
def images() -> Points:
    generator = np.random.default_rng(3)
    pixels = generator.integers(0, 256, (30, PIXELS)).astype(np.uint8)
    pixels[:, 5] = 255  # every image reaches white, as digits do
    return Points(pixels, np.arange(30) % CLASSES)


def test_update_of_one_image_is_the_image(
    exchange: Exchange, models: list[LinearModel], private_key: PaillierPrivateKey, images: Points
) -> None:
    updates = OneImageUpdates(models[0], exchange.broadcast, PRECISION_MEANT, private_key.public_key)
    for image, label in first_of_each_class(images):
        for picture in updates.seen(image, label):
            assert np.array_equal(picture.shown.ravel(), image)
            assert picture.psnr == 60
            assert picture.label == label


def test_the_step_is_one_of_gradient_descent(
    exchange: Exchange, models: list[LinearModel], private_key: PaillierPrivateKey, images: Points
) -> None:
    updates = OneImageUpdates(models[0], exchange.broadcast, PRECISION_MEANT, private_key.public_key)
    after = updates._stepped(images.pixels[0], 0)
    weights = torch.tensor(models[0].weights, requires_grad=True)
    intercepts = torch.tensor(models[0].intercepts, requires_grad=True)
    scores = weights @ torch.from_numpy(images.pixels[0]) + intercepts
    truth = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    F.binary_cross_entropy_with_logits(scores, truth, reduction="sum").backward()
    assert np.allclose(after.weights, (weights - RATE * weights.grad).detach().numpy(), rtol=0, atol=1e-12)
    assert np.allclose(after.intercepts, (intercepts - RATE * intercepts.grad).detach().numpy(), rtol=0, atol=1e-12)


def test_first_of_each_class_is_the_first(images: Points) -> None:
    chosen = list(first_of_each_class(images))
    assert [label for _, label in chosen] == [0, 1, 2]
    assert all(np.array_equal(image, images.images[label]) for image, label in chosen)


def test_nearest_image_is_that_of_a_least_squares_fit(images: Points) -> None:
    templates = np.random.default_rng(4).normal(0, 1, (2, PIXELS))
    nearest, closeness = nearest_images(templates, images)
    for template, index, decibels in zip(templates, nearest, closeness, strict=True):
        design = np.column_stack([template, np.ones(PIXELS)])
        errors = [
            np.mean((design @ np.linalg.lstsq(design, image, rcond=None)[0] - image) ** 2) for image in images.pixels
        ]
        assert index == int(np.argmin(errors))
        assert decibels == pytest.approx(-10 * np.log10(min(errors)))


def test_a_row_that_is_a_training_image_would_be_found(images: Points) -> None:
    weights = np.random.default_rng(5).normal(0, 1, (CLASSES, PIXELS))
    weights[1] = 0.03 * images.images[7] - 2
    shown = weight_images(LinearModel(weights, np.zeros(CLASSES)), Party(0, images, images))
    assert shown[1].psnr == 60
    assert np.array_equal(shown[1].original.ravel(), images.images[7])
    assert shown[0].reference_psnr is not None
    assert shown[0].psnr < 60
