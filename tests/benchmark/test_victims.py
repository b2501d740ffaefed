"""The secret jitter of private images, and the secret choice of victims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from benchmark.experiment import Experiment
from benchmark.harness import training_plans
from benchmark.training_plan import TrainingPlan
from benchmark.victims import BRIGHTNESS, LARGEST_CROP, chosen_in_secret, secretly_jittered
from benchmark.workspace import Workspace
from federation.datasets import LabelledImages, load_dataset
from federation.secret_root import SecretRoot

ROOT = SecretRoot(b"a" * 32)
OTHER_ROOT = SecretRoot(b"b" * 32)


@pytest.fixture(scope="module")
def digits() -> LabelledImages:
    return load_dataset("mnist5k").victims.select(range(40))


def flat(level: int, count: int = 30) -> LabelledImages:
    return LabelledImages(torch.full((count, 3, 16, 12), level, dtype=torch.uint8), torch.arange(count))


def test_the_root_decides_the_jitter_and_nothing_else(digits: LabelledImages) -> None:
    first, again, other = (secretly_jittered(digits, root) for root in (ROOT, ROOT, OTHER_ROOT))
    torch.manual_seed(1)
    assert torch.equal(first.images, again.images)
    differs = (first.images != other.images).flatten(1).any(1)
    assert differs.all()
    assert torch.equal(first.labels, digits.labels)


def test_jittered_images_are_8_bit_images_of_the_same_shape(digits: LabelledImages) -> None:
    jittered = secretly_jittered(digits, ROOT)
    assert jittered.images.dtype == torch.uint8
    assert jittered.images.shape == digits.images.shape


def test_of_a_flat_image_only_the_brightness_changes() -> None:
    levels = secretly_jittered(flat(120), ROOT).images.flatten(1)
    assert (levels == levels[:, :1]).all()
    factors = levels[:, 0].double() / 120
    assert (factors >= (1 - BRIGHTNESS) - 0.005).all()
    assert (factors <= 1 + BRIGHTNESS + 0.005).all()
    assert factors.max() - factors.min() > BRIGHTNESS
    assert (secretly_jittered(flat(0), ROOT).images == 0).all()


def test_what_is_too_bright_is_clipped() -> None:
    levels = secretly_jittered(flat(255), ROOT).images
    assert levels.max() == 255


def resampled(image: np.ndarray, keep: float, across: float, down: float, light: float) -> np.ndarray:
    """The crop at float coordinates by scipy: [C, H, W] in 0..255, not rounded."""
    _, height, width = image.shape
    scale = 1 - LARGEST_CROP * keep

    def positions(size: int, shift: float) -> np.ndarray:
        window = scale * size
        start = (size - window) * shift
        return start + (np.arange(size) + 0.5) * window / size - 0.5

    grid = np.stack(np.meshgrid(positions(height, down), positions(width, across), indexing="ij"))
    cropped = [ndimage.map_coordinates(channel, grid, order=1, mode="nearest") for channel in image.astype(float)]
    return np.clip(np.stack(cropped) * (1 + BRIGHTNESS * (2 * light - 1)), 0, 255)


def test_the_jitter_is_a_bilinear_crop_inside_the_image(digits: LabelledImages) -> None:
    count = len(digits)
    draws = np.frombuffer(ROOT.stream(8 * 4 * count), dtype=">u8").reshape(4, count) / 2**64
    jittered = secretly_jittered(digits, ROOT).images.numpy().astype(float)
    for index in range(count):
        expected = resampled(digits.images[index].numpy(), *draws[:, index])
        assert np.abs(jittered[index] - expected).max() <= 0.51


def test_the_jitter_is_small_but_no_image_stays_what_it_was(digits: LabelledImages) -> None:
    jittered = secretly_jittered(digits, ROOT)
    errors = ((jittered.images.double() - digits.images.double()) / 255).square().flatten(1).mean(1)
    assert (errors > 0).all()
    to_others = ((jittered.images.double().roll(1, 0) - digits.images.double()) / 255).square().flatten(1).mean(1)
    assert errors.mean() < to_others.mean() / 3


@given(count=st.integers(0, 60), root=st.binary(min_size=32, max_size=32), data=st.data())
def test_chosen_are_distinct_candidates_that_the_root_decides(count: int, root: bytes, data: st.DataObject) -> None:
    candidates = torch.arange(100, 100 + data.draw(st.integers(count, 80)))
    chosen = chosen_in_secret(candidates, count, SecretRoot(root))
    assert len(set(chosen.tolist())) == len(chosen) == count
    assert set(chosen.tolist()) <= set(candidates.tolist())
    assert torch.equal(chosen, chosen_in_secret(candidates, count, SecretRoot(root)))


def test_every_candidate_is_as_likely() -> None:
    counts = torch.zeros(10)
    for index in range(2000):
        counts[chosen_in_secret(torch.arange(10), 3, ROOT.derive(index))] += 1
    # 2000 draws of 3 in 10: 600 each, standard deviation 20.5
    assert ((counts - 600).abs() < 100).all()


@pytest.fixture
def plan_of(tmp_path: Path, tiny_experiment: Callable[..., Experiment]) -> Callable[..., TrainingPlan]:
    """The plan of the first training under a root and a seed."""

    def plan(root: bytes, seed: int) -> TrainingPlan:
        workspace = Workspace(tmp_path, tmp_path / f"{root[:1].hex()}.root")
        SecretRoot(root).save(workspace.root_file)
        return training_plans(tiny_experiment({"seeds": [seed], "victims.probe.count": 40}), workspace)[0]

    return plan


def test_probes_follow_the_root_and_not_the_seed(plan_of: Callable[..., TrainingPlan]) -> None:
    def chosen(root: bytes, seed: int) -> torch.Tensor:
        plan = plan_of(root, seed)
        return plan.probe_indices(plan.victims.probes[0], 0)

    probes = chosen(b"a" * 32, 0)
    assert torch.equal(chosen(b"a" * 32, 1), probes)
    assert not torch.equal(chosen(b"b" * 32, 0), probes)
    # of 1,000 victims 40 are chosen; two independent choices share 1.6 on average
    shared = set(probes.flatten().tolist()) & set(chosen(b"b" * 32, 0).flatten().tolist())
    assert len(shared) < 10


def test_private_images_follow_the_root_and_not_the_seed(plan_of: Callable[..., TrainingPlan]) -> None:
    first, same_root, other = plan_of(b"a" * 32, 0), plan_of(b"a" * 32, 1), plan_of(b"b" * 32, 0)
    for split in ("training", "victims"):
        images = first.workspace.private(first.task, split, raw=False).images
        assert torch.equal(same_root.workspace.private(first.task, split, raw=False).images, images)
        assert not torch.equal(other.workspace.private(first.task, split, raw=False).images, images)
        raw = first.workspace.private(first.task, split, raw=True).images
        assert torch.equal(raw, getattr(first.workspace.dataset(first.task), split).images)
