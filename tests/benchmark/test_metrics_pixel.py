"""MSE, PSNR and SSIM against scikit-image, the formulas written out, and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import skimage.metrics
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.metrics.pixel import (
    PSNR_CAP,
    mse,
    pairwise_squared_distances,
    psnr,
    ssim,
    to_eight_bit,
)
from federation.errors import DataError


def random_images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def blurred_pair(seed: int, channels: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images and noisy copies, where SSIM is neither 0 nor 1."""
    smooth = F.avg_pool2d(random_images(seed, 3, channels, side + 4, side + 4).float(), 5, stride=1)
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(seed + 1))
    return to_eight_bit(smooth / 255), to_eight_bit(smooth / 255 + 0.05 * noise)


class TestToEightBit:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_stored_images_come_back_unchanged(self, dtype: torch.dtype) -> None:
        stored = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
        assert torch.equal(to_eight_bit(stored.to(dtype) / 255), stored)

    @given(st.floats(0, 1, width=32))
    def test_rounds_to_the_nearest_step(self, value: float) -> None:
        step = int(to_eight_bit(torch.tensor(value).reshape(1, 1, 1, 1)))
        assert abs(step - 255 * value) <= 0.5 + 1e-9

    def test_values_outside_the_range_are_clamped(self) -> None:
        wild = torch.tensor([-3.0, -math.inf, 1.5, math.inf]).reshape(4, 1, 1, 1)
        assert to_eight_bit(wild).flatten().tolist() == [0, 0, 255, 255]

    def test_nan_is_refused_and_located(self) -> None:
        images = torch.zeros(3, 1, 2, 2)
        images[1, 0, 1, 1] = math.nan
        with pytest.raises(DataError, match="image 1 has 1 NaN pixels"):
            to_eight_bit(images)

    @pytest.mark.parametrize("images", [torch.zeros(3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)])
    def test_other_shapes_and_types_are_refused(self, images: torch.Tensor) -> None:
        with pytest.raises(DataError, match="floating point"):
            to_eight_bit(images)


class TestErrors:
    def test_mse_and_psnr_agree_with_scikit_image(self) -> None:
        a, b = random_images(0, 5, 3, 12, 9), random_images(1, 5, 3, 12, 9)
        for i in range(5):
            x, y = a[i].numpy() / 255, b[i].numpy() / 255
            assert mse(a, b)[i].item() == pytest.approx(skimage.metrics.mean_squared_error(x, y), rel=1e-12)
            expected = skimage.metrics.peak_signal_noise_ratio(x, y, data_range=1)
            assert psnr(a, b)[i].item() == pytest.approx(expected, rel=1e-12)

    def test_the_ends_of_the_scale(self) -> None:
        black = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
        white = torch.full_like(black, 255)
        assert (mse(black, white).item(), psnr(black, white).item()) == (1.0, 0.0)
        assert (mse(white, white).item(), psnr(white, white).item()) == (0.0, PSNR_CAP)

    def test_psnr_is_capped_for_nearly_identical_images(self) -> None:
        image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        almost = image.clone()
        almost[0, 0, 0, 0] = 1
        assert 10 * math.log10(1 / mse(image, almost).item()) > PSNR_CAP
        assert psnr(image, almost).item() == PSNR_CAP

    def test_no_images_give_no_values(self) -> None:
        none = torch.empty(0, 1, 28, 28, dtype=torch.uint8)
        assert [metric(none, none).shape for metric in (mse, psnr, ssim)] == [(0,)] * 3


class TestSsim:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_agrees_with_the_formula_written_out(self, channels: int) -> None:
        a, b = blurred_pair(3, channels, 28)
        offsets = torch.arange(-5, 6, dtype=torch.float64)
        window = torch.exp(-(offsets**2) / (2 * 1.5**2))
        window = torch.outer(window, window) / window.sum() ** 2

        def average(images: torch.Tensor) -> torch.Tensor:
            return F.conv2d(images.flatten(0, 1)[:, None], window[None, None])

        x, y = a.double(), b.double()
        mean_x, mean_y = average(x), average(y)
        var_x, var_y = average(x * x) - mean_x**2, average(y * y) - mean_y**2
        covariance = average(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        field = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        field = field / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        expected = field.reshape(len(a), -1).mean(1)
        assert ssim(a, b).tolist() == pytest.approx(expected.tolist(), abs=1e-9)
        assert 0.2 < expected.min() < expected.max() < 0.99

    def test_identical_images_score_one_and_the_order_does_not_matter(self) -> None:
        a, b = blurred_pair(7, 1, 11)
        assert ssim(a, a).tolist() == pytest.approx([1.0] * 3)
        assert ssim(a, b).tolist() == pytest.approx(ssim(b, a).tolist(), abs=1e-12)

    def test_images_smaller_than_the_window_are_refused(self) -> None:
        small = random_images(0, 1, 1, 10, 28)
        with pytest.raises(DataError, match="at least 11x11 pixels; these images have 10x28"):
            ssim(small, small)


class TestPairwise:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 3), st.integers(0, 2**31))
    def test_agrees_with_brute_force_exactly(self, rows: int, columns: int, channels: int, seed: int) -> None:
        a, b = random_images(seed, rows, channels, 5, 4), random_images(seed + 1, columns, channels, 5, 4)
        found = pairwise_squared_distances(a, b)
        assert found.shape == (rows, columns)
        for i in range(rows):
            for j in range(columns):
                difference = a[i].numpy().astype(np.int64) - b[j].numpy().astype(np.int64)
                assert found[i, j].item() == int((difference**2).sum())


@pytest.mark.parametrize("metric", [mse, psnr, ssim, pairwise_squared_distances])
def test_images_that_cannot_be_compared_are_refused(metric: Callable) -> None:
    images = random_images(0, 2, 1, 12, 12)
    with pytest.raises(DataError, match="equal"):
        metric(images, images[..., :11])
    with pytest.raises(DataError, match=r"must be uint8 \[N, C, H, W\]; it is torch.float32"):
        metric(images, images.float())
    with pytest.raises(DataError, match="must be uint8"):
        metric(images[0], images[0])
