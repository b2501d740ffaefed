"""A user's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from federation.datasets import SPLITS, load_dataset
from federation.datasets.imagefolder import parse_argument
from federation.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        for number in range(10):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    return tmp_path


def test_images_are_brought_to_one_square_and_divided(folder):
    loaded = load_dataset(f"imagefolder:{folder}?size=16")
    assert loaded.image_shape == (3, 16, 16)
    assert loaded.classes == ("cats", "dogs")
    assert sum(len(getattr(loaded, split)) for split in SPLITS) == 20
    assert folder.name in loaded.provenance
    assert str(folder.parent) not in loaded.provenance
    assert load_dataset(f"imagefolder:{folder}").image_shape == (3, 32, 32)


def test_an_image_of_the_right_size_is_left_as_it_is(folder):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for file in folder.glob("*/*.png"):
        Image.fromarray(pixels).save(file)
    loaded = load_dataset(f"imagefolder:{folder}?size=8")
    assert np.array_equal(loaded.test.images[0].permute(1, 2, 0), pixels)


def test_grey_and_turned_images_become_upright_colour(folder):
    upright = np.zeros((8, 8), dtype=np.uint8)
    upright[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 8  # stored a quarter turn clockwise
    for file in folder.glob("*/*.png"):
        file.unlink()
    for number in range(4):
        for label in ("cats", "dogs"):
            Image.fromarray(np.rot90(upright, -1)).save(folder / label / f"{number}.png", exif=exif)
    loaded = load_dataset(f"imagefolder:{folder}?size=8")
    assert np.array_equal(loaded.test.images[0], np.repeat(upright[None], 3, axis=0))


def test_a_corrupt_image_is_named(folder):
    (folder / "dogs" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dogs/3\.png cannot be decoded") as caught:
        load_dataset(f"imagefolder:{folder}")
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_classes(folder, tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset(f"imagefolder:{folder}/nowhere")
    with pytest.raises(DataError, match="one folder of images for each class"):
        load_dataset(f"imagefolder:{folder}/cats")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        load_dataset(f"imagefolder:{folder}")


def test_too_few_images(tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "one" / "a.png")
    with pytest.raises(DataError, match="at least 4"):
        load_dataset(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("size", ["0", "-4", "big", "3.5", ""])
def test_sizes_that_are_none(size):
    with pytest.raises(UsageError, match="whole number of pixels"):
        parse_argument(f"somewhere?size={size}")


def test_a_question_mark_may_be_part_of_the_path():
    assert parse_argument("who?/pictures?size=8") == (Path("who?/pictures"), 8)
    assert parse_argument("who?") == (Path("who?"), 32)
