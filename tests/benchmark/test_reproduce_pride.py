"""The parts of the PriDe reproduction: printed figures, parties, models, both protocols, times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from phe.paillier import PaillierPrivateKey
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from benchmark.reproduce.pride import printed, scores, wire
from benchmark.reproduce.pride.exchange import PRECISION_AS_CODED, PRECISION_MEANT, Cloud, Exchange, returned
from benchmark.reproduce.pride.models import LinearModel, Trained, evaluate, train, trained_once, weighted_mean
from benchmark.reproduce.pride.parties import Division, Party, Points, divide
from benchmark.reproduce.pride.sound import SoundParties
from defenses.paillier.keys import generate_keypair
from defenses.paillier.pride.arithmetic import as_encoded
from federation.datasets import Dataset, load_dataset
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.secret_root import SecretRoot

PIXELS = 9
CLASSES = 3


@pytest.fixture(scope="module")
def private_key() -> PaillierPrivateKey:
    return generate_keypair(512, SecretRoot(b"t" * 32).reader(), allow_small=True)


@pytest.fixture(scope="module")
def models() -> list[LinearModel]:
    """Six models with weights of every magnitude, some exactly zero."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(6):
        weights = generator.normal(0, 1, (CLASSES, PIXELS)) * 10.0 ** generator.integers(-5, 1, (CLASSES, PIXELS))
        weights[:, 0] = 0
        found.append(LinearModel(weights, generator.normal(0, 1, CLASSES)))
    return found


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("mnist5k")


@pytest.fixture(scope="module")
def division(digits: Dataset) -> Division:
    return divide(digits, seed=0)


def play(models: list[LinearModel], key: PaillierPrivateKey, precision: float) -> Exchange:
    cloud = Cloud(models[0], key, precision)
    broadcast, seconds = cloud.broadcast()
    uploads = tuple(returned(model, broadcast, key.public_key) for model in models[1:])
    pairs = tuple(cloud.pair(upload) for upload in uploads)
    return Exchange(precision, broadcast, seconds, uploads, pairs, cloud.six(uploads))


def test_printed_accuracies_are_whole_counts_out_of_the_inferred_slices() -> None:
    assert printed.SLICES == (200, 5_000, 500, 200, 2_000, 50)
    rows = {row.model: row for row in printed.printed_results()}
    assert len(rows) == 13
    for row in rows.values():
        if row.tested_on is not None:
            count = row.accuracy * row.tested_on
            assert count == pytest.approx(round(count), abs=1e-6), row.model
    assert rows["six parties"].accuracy - rows["centralised"].accuracy == pytest.approx(0.0125)
    # Parties 2 and 5 are not counts out of slices of 500 and 50 in the ratio of all others.
    for party in (2, 5):
        count = printed.PARTY_ACCURACY[party] * printed.SLICES[party]
        assert abs(count - round(count)) > 0.05
        assert rows[f"party {party}"].note


def test_printed_times_leave_about_a_second_for_encryption() -> None:
    least, most = printed.cryptography_seconds_per_weight()
    assert (least * 1568, most * 1568) == (pytest.approx(0.97), pytest.approx(1.08))


def test_parties_get_a_fraction_of_the_papers_sizes_without_sharing_images(division: Division, digits: Dataset) -> None:
    assert division.scale == 14
    assert [len(party.training) for party in division.parties] == [85, 2142, 214, 85, 857, 21]
    assert [len(party.own_test) for party in division.parties] == [14, 357, 35, 14, 142, 3]
    assert len(division.centralised) == 60_000 // 14
    assert len(division.test) == len(digits.test)
    everyone = np.concatenate([party.training.images for party in division.parties])
    baseline = {image.tobytes() for image in division.centralised.images}
    assert {image.tobytes() for image in everyone} <= baseline
    assert not baseline & {image.tobytes() for image in division.test.images}
    for party in division.parties:
        assert set(party.training.labels) == set(range(10))
    # The parties together hold as many different images as they hold images, but for the set's own duplicates.
    assert len({image.tobytes() for image in everyone}) == len(np.unique(everyone, axis=0)) >= len(everyone) - 2


def test_slices_follow_one_another_in_the_test_sets_own_order(division: Division) -> None:
    joined = np.concatenate([party.own_test.images for party in division.parties])
    assert np.array_equal(joined, division.test.images[: len(joined)])


def test_seed_decides_the_division(division: Division, digits: Dataset) -> None:
    again, other = divide(digits, seed=0), divide(digits, seed=1)
    assert np.array_equal(again.parties[5].training.images, division.parties[5].training.images)
    assert not np.array_equal(other.parties[5].training.images, division.parties[5].training.images)


def test_model_is_scikit_learns_one_vs_rest(division: Division) -> None:
    party = division.parties[0]
    trained = train(party.training)
    reference = OneVsRestClassifier(LogisticRegression(solver="liblinear"))
    reference.fit(party.training.pixels, party.training.labels)
    assert np.array_equal(trained.model.predict(division.test.pixels), reference.predict(division.test.pixels))
    alone = LogisticRegression(solver="liblinear").fit(party.training.pixels, party.training.labels == 3)
    assert np.allclose(trained.model.weights[3], alone.coef_[0], atol=1e-9)
    assert trained.seconds > 0
    score = evaluate(trained.model, division.test)
    assert score.accuracy == pytest.approx(reference.score(division.test.pixels, division.test.labels))
    assert np.array_equal(score.confusion.sum(axis=1), np.bincount(division.test.labels, minlength=10))


def test_training_is_kept_and_a_damaged_file_is_made_anew(division: Division, tmp_path: Path) -> None:
    points = division.parties[5].training
    first = trained_once(points, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    again = trained_once(points, tmp_path)
    assert again.seconds == first.seconds
    assert np.array_equal(again.model.weights, first.model.weights)
    file.write_bytes(b"damaged")
    anew = trained_once(points, tmp_path)
    assert np.array_equal(anew.model.weights, first.model.weights)
    trained_once(points.part(0, 20), tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2, "other points are another model"


def test_weighted_mean_weighs_by_points(models: list[LinearModel]) -> None:
    mean = weighted_mean(models[:2], [1, 3])
    assert np.allclose(mean.weights, 0.25 * models[0].weights + 0.75 * models[1].weights)
    assert np.allclose(mean.intercepts, 0.25 * models[0].intercepts + 0.75 * models[1].intercepts)


@pytest.mark.parametrize("precision", [PRECISION_AS_CODED, PRECISION_MEANT])
def test_protocol_as_coded_gives_the_clouds_weights_half(
    models: list[LinearModel], private_key: PaillierPrivateKey, precision: float
) -> None:
    exchange = play(models, private_key, precision)
    rows = [model.weights[:2].ravel() for model in models]
    cloud = as_encoded(rows[0], precision)
    for average, own in zip(exchange.pairs, rows[1:], strict=True):
        assert np.allclose(average.values, (cloud + own) / 2, rtol=0, atol=1e-15)
    assert np.allclose(exchange.six.values, cloud / 2 + sum(rows[1:]) / 10, rtol=0, atol=1e-15)
    unit = 1.0 if precision == PRECISION_AS_CODED else 16.0**-6
    assert np.abs(cloud - rows[0]).max() <= unit / 2


def test_precision_seven_rounds_to_integers(models: list[LinearModel], private_key: PaillierPrivateKey) -> None:
    exchange = play(models, private_key, PRECISION_AS_CODED)
    numbers = wire.opened(exchange.broadcast, private_key.public_key)
    assert [private_key.decrypt(number) for number in numbers] == [round(value) for value in models[0].rows((0, 1))]


def test_messages_hold_encrypted_numbers_and_nothing_else(
    models: list[LinearModel], private_key: PaillierPrivateKey
) -> None:
    exchange = play(models, private_key, PRECISION_MEANT)
    tensors = raw_tensors_from_bytes(exchange.broadcast, "broadcast")
    with pytest.raises(MalformedMessage, match="besides: stowaway"):
        wire.read(tensors_to_bytes({**tensors, "stowaway": torch.zeros(1)}))


def test_sound_average_is_fedavg_within_the_stated_error(
    models: list[LinearModel], private_key: PaillierPrivateKey
) -> None:
    sizes = [1_200, 30_000, 3_000, 1_200, 12_000, 300]
    found = SoundParties(private_key).average(models, sizes)
    expected = weighted_mean(models, sizes)
    error = max(
        np.abs(found.model.weights - expected.weights).max(), np.abs(found.model.intercepts - expected.intercepts).max()
    )
    assert error <= found.stated_error < 1e-6
    assert len(found.seconds_encrypt) == 6
    # 30 values, 31 bits each in slots of a 512-bit modulus: two ciphertexts of 128 bytes.
    assert found.bytes_up == 256


def test_times_add_up_in_sequence_and_follow_the_longest_path_in_parallel(
    models: list[LinearModel], private_key: PaillierPrivateKey
) -> None:
    points = Points(np.zeros((6, PIXELS), np.uint8), np.arange(6) % CLASSES)
    parties = tuple(Party(number, points, points) for number in range(6))
    small = Division(1, parties, points, points)
    trained = [Trained(model, seconds) for model, seconds in zip(models, [1, 30, 50, 2, 10, 40], strict=True)]
    exchange = play(models, private_key, PRECISION_MEANT)
    rows = {row.model: row for row in scores.as_coded(exchange, "coded-1e-7", trained, small)}
    assert len(rows) == 6
    third, seconds = rows["cloud + party 3"].times, exchange.seconds_encrypt
    after = exchange.uploads[2].seconds_half + exchange.pairs[2].seconds_decrypt
    assert third.sequence == pytest.approx(1 + 2 + seconds + after)
    assert third.parallel == pytest.approx(max(1 + seconds, 2) + after)
    six = rows["six parties"].times
    assert six.train == 133
    assert six.sequence == pytest.approx(133 + seconds + six.aggregate + six.decrypt)
    slowest = 50 + exchange.uploads[1].seconds_total + exchange.six.seconds_aggregate + exchange.six.seconds_decrypt
    assert six.parallel == pytest.approx(slowest)


def test_only_the_rows_of_classes_0_and_1_change_as_coded(
    models: list[LinearModel], private_key: PaillierPrivateKey
) -> None:
    exchange = play(models, private_key, PRECISION_MEANT)
    changed = models[0].with_rows((0, 1), exchange.six.values)
    assert np.array_equal(changed.weights[2:], models[0].weights[2:])
    assert np.array_equal(changed.intercepts, models[0].intercepts)
    assert not np.isclose(changed.weights[:2, 1:], models[0].weights[:2, 1:]).all()


def test_slices_are_as_long_as_the_clouds_and_cover_the_test_set(division: Division) -> None:
    model = train(division.parties[0].training).model
    rows = scores.over_slices(model, division)
    assert [row.start for row in rows] == list(range(0, 600 - 13, 14))
    right = model.predict(division.test.pixels) == division.test.labels
    assert rows[3].accuracy == pytest.approx(right[42:56].mean())
