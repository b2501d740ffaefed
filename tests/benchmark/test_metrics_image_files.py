"""Reading stored images back, and pairing folders by file name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmark.metrics.image_files import ImagePair, pair_folders, read_image, read_pair
from federation.errors import DataError


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_stored_pixels_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    for shape in [(9, 7), (9, 7, 3)]:
        stored = pixels(0, *shape)
        Image.fromarray(stored).save(tmp_path / f"image{suffix}")
        found = read_image(tmp_path / f"image{suffix}")
        assert found.dtype == torch.uint8
        assert np.array_equal(found.permute(1, 2, 0).numpy(), stored.reshape(9, 7, -1))


def test_palettes_black_and_white_and_opaque_alpha_are_understood(tmp_path: Path) -> None:
    stored = pixels(1, 6, 5, 3)
    opaque = np.dstack([stored, np.full((6, 5), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    assert np.array_equal(read_image(tmp_path / "opaque.png").permute(1, 2, 0).numpy(), stored)
    palette = Image.fromarray(stored).quantize(256)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(
        read_image(tmp_path / "palette.png").permute(1, 2, 0).numpy(), np.asarray(palette.convert("RGB"))
    )
    Image.fromarray(stored[..., 0] > 127).save(tmp_path / "binary.png")
    assert np.array_equal(read_image(tmp_path / "binary.png")[0].numpy(), np.where(stored[..., 0] > 127, 255, 0))


def test_pixels_that_eight_bits_cannot_tell_are_refused(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(deep)
    with pytest.raises(DataError, match=r"deep.png has pixels of mode I;16.*; save it as 8-bit grey or RGB"):
        read_image(deep)
    glass = tmp_path / "glass.png"
    Image.fromarray(pixels(2, 4, 4, 4)).save(glass)
    with pytest.raises(DataError, match=r"glass\.png is partly transparent"):
        read_image(glass)


def test_missing_and_cut_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.png does not exist"):
        read_image(tmp_path / "absent.png")
    whole = tmp_path / "whole.png"
    Image.fromarray(pixels(3, 40, 40, 3)).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png cannot be read as an image"):
        read_image(cut)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from([".png", ".bmp", ".jpg", ".tiff", ".webp", ".ppm"]), data=st.data())
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"damaged{suffix}"
    Image.fromarray(pixels(4, 12, 12, 3)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found: torch.Tensor | DataError
    try:
        found = read_image(path)
    except DataError as error:
        found = error
    if isinstance(found, DataError):
        assert str(path) in str(found)
    else:
        assert found.dtype == torch.uint8
        assert len(found) in (1, 3)


class TestPairs:
    def test_names_pair_in_order_and_other_files_are_left_out(self, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            for name in ("2.png", "1.PNG"):
                Image.fromarray(pixels(0, 4, 4)).save(tmp_path / folder / name)
        (tmp_path / "a" / "notes.txt").write_text("not an image")
        (tmp_path / "b" / "deeper.png").mkdir()
        pairs = pair_folders(tmp_path / "a", tmp_path / "b")
        assert pairs == [ImagePair(name, tmp_path / "a" / name, tmp_path / "b" / name) for name in ("1.PNG", "2.png")]

    def test_missing_counterparts_are_named_on_either_side(self, tmp_path: Path) -> None:
        full, part = tmp_path / "full", tmp_path / "part"
        for folder, count in ((full, 8), (part, 1)):
            folder.mkdir()
            for number in range(count):
                Image.fromarray(pixels(0, 4, 4)).save(folder / f"{number}.png")
        expected = "part lacks a counterpart of 1.png, 2.png, 3.png, 4.png, 5.png and 2 more"
        for folders in ((full, part), (part, full)):
            with pytest.raises(DataError, match=expected):
                pair_folders(*folders)

    def test_folders_without_images_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="absent is not a folder"):
            pair_folders(tmp_path / "absent", tmp_path)
        with pytest.raises(DataError, match="has no images; files that end in"):
            pair_folders(tmp_path, tmp_path)

    def test_a_grey_image_is_compared_with_a_coloured_one(self, tmp_path: Path) -> None:
        Image.fromarray(pixels(0, 4, 4)).save(tmp_path / "grey.png")
        Image.fromarray(pixels(1, 4, 4, 3)).save(tmp_path / "colour.png")
        grey, colour = read_pair(ImagePair("x", tmp_path / "grey.png", tmp_path / "colour.png"))
        assert grey.shape == colour.shape == (3, 4, 4)
        assert torch.equal(grey[0], grey[2])

    def test_other_sizes_are_refused_with_both_sizes(self, tmp_path: Path) -> None:
        Image.fromarray(pixels(0, 4, 6)).save(tmp_path / "wide.png")
        Image.fromarray(pixels(1, 6, 4)).save(tmp_path / "tall.png")
        with pytest.raises(DataError, match=r"x\.png: the original has 6x4 pixels, the reconstruction 4x6"):
            read_pair(ImagePair("x.png", tmp_path / "wide.png", tmp_path / "tall.png"))
