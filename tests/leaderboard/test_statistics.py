"""Intervals against brute force, scipy and simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leaderboard.statistics import (
    Interval,
    Scores,
    accuracy_difference,
    bootstrap_mean,
    clears_floor,
    minimum_detectable_effect,
    paired_difference,
)

IMAGES, SEEDS = 32, 3


def crossed(values: np.ndarray) -> Scores:
    """Scores of shape (images, seeds), every image under every seed."""
    images, seeds = np.indices(values.shape)
    return Scores.of(values.ravel(), images.ravel(), seeds.ravel())


def images_only(values: np.ndarray) -> Scores:
    """The same scores as if all came from one seed: what pairing by image alone would resample."""
    images, _ = np.indices(values.shape)
    return Scores.of(values.ravel(), images.ravel(), np.zeros(values.size))


def brute_force(values: np.ndarray, draws: int = 3000) -> tuple[float, float]:
    """Two-way bootstrap by its definition: draw rows, draw columns, average what stands there."""
    rng = np.random.default_rng(99)
    rows, columns = values.shape
    means = [
        values[np.ix_(rng.integers(rows, size=rows), rng.integers(columns, size=columns))].mean() for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_two_way_interval_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(20, 4, (24, 1)) + rng.normal(0, 1, (1, 5)) + rng.normal(0, 2, (24, 5))
    found = bootstrap_mean(crossed(values))
    low, high = brute_force(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.resampled == "images and seeds"
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15)


def test_one_way_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(20, 4, 40)
    found = bootstrap_mean(Scores.of(values, np.arange(40), np.zeros(40)))
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=1)
    assert found.resampled == "images only"
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.12)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.12)
    assert found.deviation == pytest.approx(expected.standard_error, rel=0.06)


def test_equal_images_are_drawn_as_often_as_separate_ones() -> None:
    """Zeros and ones fall into few distinct rows; the interval must be the binomial one all the same."""
    values = np.zeros((200, 1))
    values[:30] = 1
    found = bootstrap_mean(crossed(values))
    low, high = scipy.stats.binom.ppf([0.025, 0.975], 200, 0.15) / 200
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.011)


@pytest.mark.parametrize(
    ("images", "seeds", "resampled"),
    [(8, 3, "images and seeds"), (8, 2, "images only"), (1, 3, "seeds only"), (1, 2, "nothing")],
)
def test_the_label_says_what_was_resampled(images: int, seeds: int, resampled: str) -> None:
    values = np.random.default_rng(2).normal(5, 1, (images, seeds))
    found = bootstrap_mean(crossed(values))
    assert found.resampled == resampled
    assert (found.images, found.seeds) == (images, seeds)


def test_a_single_score_proves_nothing() -> None:
    found = bootstrap_mean(Scores.of([30.0], ["a"], [0]))
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert not clears_floor(found)


def test_images_of_different_seeds_need_not_be_the_same() -> None:
    """Nested images: the interval is about as wide as the one over all images, not one over a third of them."""
    rng = np.random.default_rng(3)
    values = rng.normal(0, 4, 96)
    found = bootstrap_mean(Scores.of(values, np.arange(96), np.repeat([0, 1, 2], 32)))
    assert 4 / np.sqrt(96) < found.deviation < 2 * 4 / np.sqrt(96)


def test_empty_and_uneven_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="no score"):
        bootstrap_mean(Scores.of([float("nan")], ["a"], [0]))
    with pytest.raises(ValueError, match="3 scores with 2 images"):
        Scores.of([1.0, 2.0, 3.0], ["a", "b"], [0, 0, 0])


finite = st.floats(-50, 50, width=32)


@settings(max_examples=25, deadline=None)
@given(arrays(float, (6, 3), elements=finite), arrays(float, (6, 3), elements=finite), st.floats(-10, 10, width=32))
def test_properties_of_the_difference(first: np.ndarray, second: np.ndarray, shift: float) -> None:
    a, b = crossed(first), crossed(second)
    there, back, moved = paired_difference(a, b), paired_difference(b, a), paired_difference(crossed(first + shift), b)
    assert there.mean == pytest.approx(-back.mean, abs=1e-9)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert (moved.low, moved.high) == pytest.approx((there.low + shift, there.high + shift), abs=1e-6)
    same = paired_difference(a, a)
    assert (same.low, same.mean, same.high) == (0.0, 0.0, 0.0)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(4)
    first = rng.normal(20, 4, (IMAGES, 1)) + rng.normal(0, 0.1, (IMAGES, SEEDS))
    second = first - 1 + rng.normal(0, 0.1, (IMAGES, SEEDS))
    paired = paired_difference(crossed(first), crossed(second))
    other = Scores.of(second.ravel(), 100 + np.indices(second.shape)[0].ravel(), np.indices(second.shape)[1].ravel())
    unpaired = paired_difference(crossed(first), other)
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.high - paired.low < 0.2
    assert unpaired.high - unpaired.low > 2


def test_accuracy_difference_pairs_test_images_and_seeds() -> None:
    rng = np.random.default_rng(5)
    plain = [rng.uniform(size=500) < 0.95 for _ in range(5)]
    shielded = [bits & (rng.uniform(size=500) < 0.99) for bits in plain]
    found = accuracy_difference(shielded, plain)
    differences = np.stack([a.astype(float) - b for a, b in zip(shielded, plain, strict=True)], axis=1)
    assert found.mean == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(brute_force(differences), abs=0.0012)
    assert -0.03 < found.low < found.high < 0


def test_accuracy_difference_over_unlike_test_splits_resamples_seeds() -> None:
    bits = [np.ones(count, dtype=bool) for count in (10, 12, 14)]
    assert accuracy_difference(bits, bits).resampled == "seeds only"
    assert accuracy_difference(bits[:2], bits[:2]).resampled == "nothing"
    with pytest.raises(ValueError, match="cannot be paired"):
        accuracy_difference(bits, bits[:2])


@dataclass
class Rates:
    """How often a regression was called at a nominal 2.5%."""

    by_image: float
    two_way: float
    with_margin: float
    power: float
    detectable: float


def simulate(
    trials: int, *, seed_effect: float, version_effect: float, margin: float = 0.5, loss: float = 2.0
) -> Rates:
    """Two versions of one attack, image SD 4 dB and image-by-seed SD 2 dB, 32 images under 3 seeds, compared in pairs.

    `seed_effect` and `version_effect` are standard deviations, in dB, of what else a new version changes by chance:
    every image of a seed alike, and an image under every seed alike.
    """
    rng = np.random.default_rng(6)

    def version(image: np.ndarray) -> np.ndarray:
        by_seed = rng.normal(0, 1, (1, SEEDS)) * seed_effect
        by_image = rng.normal(0, 1, (IMAGES, 1)) * version_effect
        return image + by_seed + by_image + rng.normal(0, 2, (IMAGES, SEEDS))

    def weaker(difference: Interval, margin: float) -> bool:
        return difference.high < -margin

    calls: dict[str, list[Any]] = {name: [] for name in Rates.__annotations__}
    for _ in range(trials):
        image = rng.normal(20, 4, (IMAGES, 1))
        before, after = version(image), version(image)
        two_way = paired_difference(crossed(after), crossed(before))
        calls["by_image"].append(weaker(paired_difference(images_only(after), images_only(before)), 0.0))
        calls["two_way"].append(weaker(two_way, 0.0))
        calls["with_margin"].append(weaker(two_way, margin))
        calls["power"].append(two_way.high - loss < -margin)
        calls["detectable"].append(minimum_detectable_effect(two_way, margin))
    return Rates(**{name: float(np.mean(found)) for name, found in calls.items()})


def test_false_alarms_and_power() -> None:
    """By image alone there are too many false alarms; two-way few, and with a margin fewer still."""
    rates = simulate(200, seed_effect=0.4, version_effect=0)
    assert rates.by_image > 2 * rates.two_way + 0.02
    assert rates.two_way <= 0.05
    assert rates.with_margin <= 0.015
    assert rates.power >= 0.75
    assert 1.5 < rates.detectable < 2.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed_effect", "version_effect", "most_alarms", "least_power"),
    [(0.0, 0.0, 0.01, 0.95), (0.4, 0.0, 0.03, 0.82), (0.0, 2.0, 0.03, 0.6), (0.3, 1.5, 0.03, 0.68)],
)
def test_false_alarms_and_power_over_many_trials(
    seed_effect: float, version_effect: float, most_alarms: float, least_power: float
) -> None:
    rates = simulate(1000, seed_effect=seed_effect, version_effect=version_effect)
    assert rates.two_way <= most_alarms
    assert rates.with_margin <= 0.005
    assert rates.power >= least_power


@pytest.mark.slow
def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    expected = simulate(500, seed_effect=0.4, version_effect=0).detectable
    assert simulate(500, seed_effect=0.4, version_effect=0, loss=expected).power == pytest.approx(0.8, abs=0.08)


@pytest.mark.slow
def test_coverage_of_the_mean() -> None:
    """The 95% interval holds the true mean about as often as it says, with seeds and images that vary."""
    rng = np.random.default_rng(8)
    held = [
        bootstrap_mean(
            crossed(
                20 + rng.normal(0, 4, (IMAGES, 1)) + rng.normal(0, 0.4, (1, SEEDS)) + rng.normal(0, 2, (IMAGES, SEEDS))
            )
        ).contains(20)
        for _ in range(1000)
    ]
    assert 0.93 <= np.mean(held) <= 0.99
