"""The case of attacks on Key-Net: its figures, its referees, and that a wrong key is not called right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks.adaptive.grid.mixed import block_entries
from attacks.adaptive.keynet_image import recover_images
from benchmark.speed.attacks import keynet, keynet_pixels
from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.attacks.keynet import Effort, measure
from benchmark.speed.attacks.keynet_blocks import BlockKey
from benchmark.speed.attacks.keynet_leaks import keyed_images, leak_figures
from benchmark.speed.attacks.keynet_pixels import KeyedLayer, as_pictures, best_psnr, keyed_layers, lenet5
from defenses.keynet.pixel_defense import KeyNetToeplitz
from federation.datasets import Dataset, load_dataset
from federation.secret_root import SecretRoot

SMALL = Effort(updates=4, victims=1, evaluations=2, images=2, leaks=4, repeats=1)


def leak_figures_asked_for(digits: Dataset, leaks: int) -> list[Figure]:
    return [Figure(f"{leaks} leaks of {digits.name}", 0.0, "dB")]


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def measured(told: list[tuple[str, int, int]]) -> CaseResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keynet, "_digits", lambda: load_dataset("mnist5k"))
        patch.setattr(keynet, "leak_figures", leak_figures_asked_for)  # the matching takes a minute
        return measure(lambda *stage: told.append(stage), effort=SMALL)


def test_every_figure_is_there_with_what_it_has_to_reach(measured: CaseResult) -> None:
    due = {
        "keynet-gauge against channel gains, LeNet-5, 4 updates: PSNR lost to plain": ("dB", 0.5, None),
        "keynet-gauge: median error of the gains": ("%", None, None),
        "keynet-grid, LeNet-5 conv1: pixels placed rightly": ("%", 100, 100),
        "keynet-grid, LeNet-5 conv1: seconds a layer": ("s", 10, 1),
        "keynet-grid, LeNet-5 conv2: pixels placed rightly": ("%", 100, 100),
        "keynet-grid, LeNet-5 conv2: seconds a layer": ("s", 10, 1),
        "keynet-image, permutation and gains up to 101x, 8-bit: PSNR": ("dB", 38, 41),
        "keynet-image, permutation and gains up to 101x: seconds for 2 images": ("s", 5, 1),
        "keynet-image, pixels mixed in 4x4 blocks, 8-bit: PSNR": ("dB", 30, 35),
        "keynet-image, pixels mixed in 4x4 blocks: seconds for 2 images": ("s", 5, 1),
        "4 leaks of mnist5k": ("dB", None, None),
    }
    found = {figure.name: (figure.unit, figure.required, figure.aim) for figure in measured.figures}
    assert found == due
    assert all(figure.lower_is_better == (figure.unit == "s") for figure in measured.figures if figure.aim is not None)
    assert any("mnist5k" in note for note in measured.notes)


def test_pixel_keys_fall_whatever_the_effort(measured: CaseResult) -> None:
    for figure in measured.figures:
        if "keynet-grid" in figure.name or "keynet-image" in figure.name:
            assert figure.reached, figure


def test_gains_are_right_even_where_images_have_no_budget(measured: CaseResult) -> None:
    (error,) = (figure for figure in measured.figures if figure.name == "keynet-gauge: median error of the gains")
    assert 0 < error.measured < 0.1


def test_progress_ends_where_it_says(measured: CaseResult, told: list[tuple[str, int, int]]) -> None:
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert told[-1][1:] == (len(told) - 1,) * 2


@pytest.fixture(scope="module")
def first_layer() -> KeyedLayer:
    return keyed_layers(lenet5(), KeyNetToeplitz())["conv1"]


def test_the_referee_of_places_knows_another_key(first_layer: KeyedLayer) -> None:
    found = first_layer.recovered()
    assert first_layer.placed(found) == 1.0
    assert first_layer.gain_error(found) < 1e-6
    order = np.random.default_rng(0).permutation(first_layer.source.size)
    other = replace(first_layer.source, permutations=order[None], gains=first_layer.source.gains[order])
    wrong = replace(first_layer, source=other)
    assert wrong.placed(found) < 0.05
    assert wrong.gain_error(found) > 0.1


def test_images_need_the_key_of_their_own_layer(first_layer: KeyedLayer) -> None:
    images = load_dataset("mnist5k").victims.images[:2]
    key = keynet_pixels.permutation_with_gains(784, 101.0, SecretRoot(bytes(32)))
    pictures = as_pictures(keynet_pixels.encrypt_images(images.double() / 255, key)[:, :-1])
    found = recover_images(first_layer.matrix, pictures, first_layer.template, grey_levels=True)
    assert best_psnr(found.images[:, 0], images[:, 0].numpy(), found.poses).max() < 20


def test_a_block_key_mixes_and_is_undone() -> None:
    images = load_dataset("mnist5k").victims.images[:2].flatten(1).numpy()
    key = BlockKey.draw(block_entries((1, 28, 28), (4, 4), "tiles"), SecretRoot(bytes(32)).reader())
    gains = key.inside.sum(1)
    assert 1 <= gains.min() < gains.max() <= 2
    np.testing.assert_allclose((key.inside / gains[:, None]).sum(0), 1.0, atol=1e-9)
    assert np.count_nonzero(key.inside) > key.inside.shape[0]
    keyed = key.encrypted(images)
    assert np.corrcoef(keyed.ravel(), images.ravel())[0, 1] < 0.9
    opened = key.inverse @ np.vstack([keyed.T, np.ones((1, 2))])
    np.testing.assert_allclose(opened[:-1].T, images, atol=1e-9)


@pytest.mark.parametrize("gain_range", [1.0, 2.0])
def test_leaks_are_the_images_under_one_permutation_and_gains(gain_range: float) -> None:
    digits, count = load_dataset("mnist5k"), 12
    keyed, labels = keyed_images(digits, count, KeyNetToeplitz(gain_range=gain_range))
    keyed = keyed.double()
    images = ((digits.victims.pixels()[:count] - digits.mean[0]) / digits.deviation[0]).flatten(1).double()
    if gain_range == 1:
        torch.testing.assert_close(keyed.sort(1).values, images.sort(1).values, atol=1e-3, rtol=1e-3)
    # a pixel that is black in every image tells its gain, on [1/s, s] around the black level
    gains = (keyed / images.min()).amin(0)[(keyed.amax(0) - keyed.amin(0)).abs() < 1e-4]
    assert len(gains) > 100
    assert float(gains.log().abs().max()) <= np.log(gain_range) + 1e-3
    assert (float(gains.log().std()) > 0.2) == (gain_range > 1)
    same = digits.victims.labels[:count, None] == digits.victims.labels[:count]
    assert torch.equal(labels[:, None] == labels, same)


@pytest.mark.slow
def test_a_hundred_leaks_reach_what_they_have_to() -> None:
    plain, scaled = leak_figures(load_dataset("mnist5k"), 100)
    assert (plain.required, scaled.required) == (38.0, 26.0)
    assert plain.reached, plain
    assert scaled.reached, scaled


def test_the_best_pose_and_contrast_are_found() -> None:
    truth = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    turned = np.rot90(truth, 1, axes=(1, 2)) / 510 + 0.3
    assert best_psnr(turned, truth, range(8)) == pytest.approx([60.0])
    assert best_psnr(turned, truth, [0])[0] < 15
    noise = np.random.default_rng(0).normal(0, 10, truth.shape)
    exact = 10 * np.log10(255**2 / np.mean((np.clip(np.round(truth + noise), 0, 255) - truth) ** 2))
    assert best_psnr(truth + noise, truth, [0])[0] == pytest.approx(exact, abs=1.0)


def test_pictures_are_eight_bit() -> None:
    pictures = as_pictures(np.random.default_rng(0).normal(size=(3, 50)))
    assert np.array_equal(pictures, pictures.astype(np.uint8))
    assert pictures.min(1).tolist() == [0] * 3
    assert pictures.max(1).tolist() == [255] * 3
