"""Likeness to public images against the formula in SciPy; how often it tells pose and colours of opened images."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.special import logsumexp
from torch import Tensor

from attacks.adaptive.grid.template import POSES, posed
from attacks.adaptive.upright import PublicLook
from benchmark.victims import secretly_jittered
from federation.datasets import load_dataset
from federation.secret_root import SecretRoot

COUNTS = (1, 2, 4, 8, 16)
DRAWS = 4000


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_formula(channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    public, images = (torch.rand(count, channels, 9, 7, generator=generator) for count in (6, 4))

    def blurred(pixels: Tensor) -> np.ndarray:
        return uniform_filter(pixels.double().numpy(), (0, 0, 3, 3), mode="nearest")

    def levels(pixels: np.ndarray) -> np.ndarray:
        pairs = itertools.permutations(range(channels), 2)
        maps = [*pixels.swapaxes(0, 1), *(pixels[:, one] - pixels[:, other] for one, other in pairs)]
        places = [int((step + 0.5) / 8 * 63) for step in range(8)]
        return np.stack([np.sort(part.reshape(len(pixels), -1))[:, places] for part in maps], 1).reshape(
            len(pixels), -1
        )

    ours, theirs = blurred(images), blurred(public)
    correlations = np.corrcoef(ours.reshape(4, -1), theirs.reshape(6, -1))[:4, 4:]
    exponents = 20 * correlations
    if channels > 1:
        known = levels(theirs)
        distances = np.square(levels(ours)[:, None] - known).mean(2)
        exponents -= 10 * distances / np.square(known - known.mean(0)).mean()
    assert PublicLook.of(public).likeness(images) == pytest.approx(logsumexp(exponents, axis=1).mean(), abs=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_know_no_pose_and_uniform_images_do_no_harm(channels: int) -> None:
    images = torch.rand(3, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    look = PublicLook.of(torch.full((2, channels, 8, 8), 0.5))
    assert np.isfinite(look.likeness(images))
    assert look.likeness(images) == pytest.approx(look.likeness(images.transpose(2, 3)), rel=1e-5)


@cache
def likeness_of_versions(name: str, noise: float = 0.0) -> np.ndarray:
    """[poses, orders, N]: of victims in each pose and order of colours; the true one stands first."""
    dataset = load_dataset(name)
    images = secretly_jittered(dataset.victims, SecretRoot(b"images to turn upright.........." * 2)).pixels()[:250]
    generator = torch.Generator().manual_seed(0)
    images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    look = PublicLook.of(dataset.auxiliary.pixels())

    def likeness(pose: int, order: tuple[int, ...]) -> list[float]:
        return look.of_each(torch.from_numpy(posed(images.numpy(), pose)[:, list(order)].copy())).tolist()

    orders = list(itertools.permutations(range(images.shape[1])))
    return np.array([[likeness(pose, order) for order in orders] for pose in POSES])


def shares_right(likeness: np.ndarray, count: int) -> tuple[float, float]:
    """How often that many images under one key are put in the right pose, and in the right order of colours."""
    generator = np.random.default_rng(count)
    poses, orders = [], []
    for _ in range(DRAWS):
        chosen = generator.choice(likeness.shape[2], count, replace=False)
        pose, order = np.unravel_index(likeness[:, :, chosen].sum(2).argmax(), likeness.shape[:2])
        poses.append(pose == 0)
        orders.append(order == 0)
    return float(np.mean(poses)), float(np.mean(orders))


def test_digits_are_put_upright() -> None:
    assert shares_right(likeness_of_versions("mnist5k"), 2)[0] > 0.88
    assert shares_right(likeness_of_versions("mnist5k"), 8)[0] > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist5k", "photos32"])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
def test_how_often_it_is_right(name: str, noise: float) -> None:
    """`pytest -s` prints it. The pose of photographs stays open: nothing is asked of it."""
    likeness = likeness_of_versions(name, noise)
    print()
    for count in COUNTS:
        (pose, colours), (transposed, _) = shares_right(likeness, count), shares_right(likeness[[0, 4]], count)
        told = f"pose {pose:.0%} (of two {transposed:.0%})" + (f", colours {colours:.0%}" if name == "photos32" else "")
        print(f"{name}, noise {noise:g}, {count} images under one key: {told}")
    assert shares_right(likeness, 8)[1 if name == "photos32" else 0] > 0.98
