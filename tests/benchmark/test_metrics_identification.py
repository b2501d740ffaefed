"""Identification against a plain loop, and the gallery's draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.metrics.identification import GALLERY_SIZE, Gallery, draw_gallery, identified
from federation.errors import UsageError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(seed: int, count: int, levels: int = 256) -> torch.Tensor:
    return torch.randint(0, levels, (count, 1, 3, 3), generator=seeded(seed), dtype=torch.uint8)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([2, 4, 256]))
def test_agrees_with_a_plain_loop(seed: int, size: int, levels: int) -> None:
    """Few grey levels make ties and copies common."""
    gallery, guesses = random_images(seed, size, levels), random_images(seed + 1, 6, levels)
    truths = torch.randint(size, (6,), generator=seeded(seed + 2))
    expected = []
    for guess, truth in zip(guesses, truths.tolist(), strict=True):
        errors = [((guess.numpy().astype(int) - other.numpy().astype(int)) ** 2).sum() for other in gallery]
        rivals = [error for error, other in zip(errors, gallery, strict=True) if not torch.equal(other, gallery[truth])]
        expected.append(not rivals or bool(errors[truth] < min(rivals)))
    assert identified(guesses, truths, gallery).tolist() == expected


def test_noisy_truths_are_identified_and_others_are_not() -> None:
    gallery = random_images(1, 200)
    truths = torch.arange(50)
    noise = torch.randint(-10, 11, (50, 1, 3, 3), generator=seeded(2))
    noisy = (gallery[:50].int() + noise).clamp(0, 255).to(torch.uint8)
    assert identified(noisy, truths, gallery).all()
    assert not identified(noisy, truths + 50, gallery).any()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_guess_that_ignores_the_victim_scores_at_most_chance(level: int) -> None:
    gallery = random_images(3, 500)
    constant = torch.full_like(gallery, level)
    rate = identified(constant, torch.arange(500), gallery).double().mean().item()
    assert rate <= Gallery(gallery, torch.arange(500)).chance == 1 / 500


def test_ties_between_different_images_count_against_the_attack() -> None:
    gallery = torch.tensor([100, 120, 240], dtype=torch.uint8).reshape(3, 1, 1, 1)
    halfway = torch.tensor([110], dtype=torch.uint8).reshape(1, 1, 1, 1)
    assert not identified(halfway, torch.tensor([0]), gallery).any()
    assert not identified(halfway, torch.tensor([1]), gallery).any()


def test_a_copy_of_the_truth_is_no_rival() -> None:
    gallery = torch.tensor([100, 100, 240], dtype=torch.uint8).reshape(3, 1, 1, 1)
    assert identified(gallery[:1], torch.tensor([1]), gallery).all()


def test_distances_that_float32_would_confuse_are_told_apart() -> None:
    gallery = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    gallery[1, 0, 0, 0] = 254
    black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert np.float32(255**2 * 3 * 64 * 64) == np.float32(255**2 * 3 * 64 * 64 - 8)
    assert identified(black, torch.tensor([1]), gallery).all()
    assert not identified(black, torch.tensor([0]), gallery).any()


class TestDraw:
    @settings(max_examples=50, deadline=None)
    @given(st.data())
    def test_victims_lead_and_no_image_repeats(self, data: st.DataObject) -> None:
        split = data.draw(st.integers(1, 60))
        size = data.draw(st.integers(1, 40))
        count = data.draw(st.integers(0, min(size, split)))
        victims = torch.randperm(split, generator=seeded(data.draw(st.integers(0, 99))))[:count]
        rows = draw_gallery(split, victims, seeded(1), size)
        assert torch.equal(rows[:count], victims)
        assert len(set(rows.tolist())) == len(rows) == min(size, split)
        assert set(rows.tolist()) <= set(range(split))

    def test_the_default_has_a_thousand_images_and_follows_the_seed(self) -> None:
        victims = torch.tensor([7, 2999])
        rows = draw_gallery(3000, victims, seeded(4))
        assert len(rows) == GALLERY_SIZE == 1000
        assert torch.equal(rows, draw_gallery(3000, victims, seeded(4)))
        assert not torch.equal(rows, draw_gallery(3000, victims, seeded(5)))

    def test_every_other_image_is_drawn_equally_often(self) -> None:
        generator = seeded(8)
        counts = torch.zeros(20)
        for _ in range(2000):
            counts[draw_gallery(20, torch.tensor([3]), generator, size=6)] += 1
        others = torch.cat([counts[:3], counts[4:]])
        expected = 2000 * 5 / 19
        spread = (2000 * 5 / 19 * 14 / 19) ** 0.5
        assert counts[3] == 2000
        assert (others - expected).abs().max() < 5 * spread

    @pytest.mark.parametrize(
        ("victims", "message"),
        [([0, 1, 2], "3 victims do not fit"), ([1, 1], "distinct"), ([10], "0 to 9"), ([-1], "0 to 9")],
    )
    def test_impossible_victims_are_refused(self, victims: list[int], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            draw_gallery(10, torch.tensor(victims), seeded(0), size=2)


@pytest.mark.parametrize(("truths", "message"), [([0, 1], "2 true images"), ([5], "0 to 4"), ([-1], "0 to 4")])
def test_indices_that_do_not_fit_are_refused(truths: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        identified(random_images(0, 1), torch.tensor(truths), random_images(1, 5))
