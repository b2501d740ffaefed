"""Total variation against numpy, the box against clipping pixels, normalisation there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.engine.candidates import Layout
from attacks.engine.priors import BoxConstraint, TotalVariation
from federation.errors import UsageError
from federation.normalisation import Normalisation

COLOUR = Normalisation((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def test_total_variation_equals_numpy() -> None:
    images = torch.randn(2, 3, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    array = images.numpy()
    expected = [np.abs(np.diff(one, axis=-1)).mean() + np.abs(np.diff(one, axis=-2)).mean() for one in array]
    np.testing.assert_allclose(TotalVariation(0.5)(images), 0.5 * np.array(expected))


def test_total_variation_of_a_flat_image_is_zero_with_zero_gradient() -> None:
    images = torch.full((1, 1, 1, 4, 4), 0.3, requires_grad=True)
    value = TotalVariation(1.0)(images)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value.sum(), images)
    assert not gradient.any()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_the_box_clips_pixels_and_nothing_else(seed: int, spread: float) -> None:
    pixels = 0.5 + spread * torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    projected = BoxConstraint(COLOUR)(COLOUR.apply(pixels))
    torch.testing.assert_close(COLOUR.invert(projected), pixels.clamp(0, 1))
    torch.testing.assert_close(projected, COLOUR.apply(pixels.clamp(0, 1)), atol=1e-5, rtol=1e-5)
    assert torch.equal(BoxConstraint(COLOUR)(projected), projected)


def test_normalisation_is_the_networks_input_space() -> None:
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(COLOUR.apply(pixels)[:, 1], (pixels[:, 1] - 0.48) / 0.24)
    torch.testing.assert_close(COLOUR.invert(COLOUR.apply(pixels)), pixels)


@pytest.mark.parametrize(("mean", "deviation"), [((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,))])
def test_unusable_normalisations_are_refused(mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="positive deviation"):
        Normalisation(mean, deviation)


def test_layout_takes_points_apart_and_starts_at_a_standard_normal() -> None:
    layout = Layout((2, 3, 8, 8), 10, joint_labels=True)
    point = layout.draw(50, torch.Generator().manual_seed(0))
    assert point.shape == (50, 2 * 3 * 64 + 20)
    assert layout.images(point).shape == (50, 2, 3, 8, 8)
    assert layout.labels(point).shape == (50, 2, 10)
    torch.testing.assert_close(layout.labels(point).sum(-1), torch.ones(50, 2))
    assert abs(point.mean().item()) < 0.03
    assert abs(point.std().item() - 1) < 0.03
    moved = layout.with_images(point, layout.images(point) + 1)
    torch.testing.assert_close(layout.images(moved), layout.images(point) + 1)
    assert torch.equal(layout.labels(moved), layout.labels(point))


def test_a_trials_draw_does_not_depend_on_those_after_it() -> None:
    layout = Layout((1, 1, 3, 3), 4, joint_labels=True)
    three = layout.draw(3, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(three, torch.cat([layout.draw(1, generator), layout.draw(2, generator)]))
