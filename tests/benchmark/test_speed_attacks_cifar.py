"""Cosine's quality figures: what they are made of, on few images and iterations. Never a figure's height."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import benchmark.speed.attacks.cifar as cifar
from benchmark.speed.attacks.figures import CaseResult
from federation.datasets import DATA_DIRECTORY_VARIABLE


@pytest.fixture(scope="module")
def seen() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def result(seen: list[tuple[str, int, int]]) -> CaseResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(DATA_DIRECTORY_VARIABLE, raising=False)
        return cifar.measure(lambda *step: seen.append(step), images=4, peer_images=3, iterations=12, peer_iterations=9)


def test_without_the_real_set_it_says_so_and_compares_nothing_with_the_paper(result: CaseResult) -> None:
    quality, paired, bound, labels = result.figures
    assert "photos32" in quality.detail
    assert quality.required is None
    assert "published" not in quality.detail
    assert any("no CIFAR-10" in note and "Not comparable" in note for note in result.notes)
    assert paired.required is None
    assert bound.required == 0
    assert labels.measured == 100


def test_the_notes_name_settings_and_what_they_were_tuned_on(result: CaseResult) -> None:
    notes = " ".join(result.notes)
    assert "auxiliary split" in notes
    assert f"12 iterations, rate {cifar.TUNED.rate}" in notes
    assert "9 iterations" in notes


def test_progress_goes_from_nothing_to_all(result: CaseResult, seen: list[tuple[str, int, int]]) -> None:
    assert [done for _, done, _ in seen] == [0, 1, 2, 3, 4]
    assert {total for *_, total in seen} == {4}


def test_the_paired_figure_is_the_t_interval_of_the_differences() -> None:
    ours, theirs = torch.tensor([20.0, 18.0, 25.0, 19.0]).double(), torch.tensor([19.0, 18.5, 22.0, 19.5]).double()
    figure, bound = cifar._against_published(ours, theirs)
    differences = (ours - theirs).numpy()
    assert figure.measured == pytest.approx(differences.mean())
    half = stats.t.ppf(0.975, 3) * differences.std(ddof=1) / np.sqrt(4)
    low, high = differences.mean() - half, differences.mean() + half
    assert f"[{low:+.2f}, {high:+.2f}] dB over 4 images" in figure.detail
    assert bound.measured == pytest.approx(high)
    assert bound.reached is True
    _, worse = cifar._against_published(theirs - 5, ours)
    assert worse.reached is False


def test_both_sides_start_at_the_same_points() -> None:
    work = cifar.single_images(cifar.EMBEDDED, cifar._untrained, 2)
    starts = cifar.generator_of(cifar.SEED)
    theirs = [cifar._published(work, place, 0, starts) for place in range(2)]
    from attacks.engine.candidates import Layout

    layout = Layout((1, *work.pixels.shape[1:]), work.network.class_count, joint_labels=False)
    drawn = layout.images(layout.draw(2, cifar.generator_of(cifar.SEED)))
    for one, other in zip(theirs, drawn, strict=True):
        torch.testing.assert_close(one, work.normalisation.invert(other))
