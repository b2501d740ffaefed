"""Reading data files from outside: IDX, encoded images, and the cache of decoded ones."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from federation.datasets.base import LabelledImages
from federation.datasets.cache import cache_directory, decoded_once
from federation.datasets.decoding import decode_image, describe_encoding
from federation.datasets.idx import read_idx
from federation.errors import DataError
from federation.vision import datasets


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def encoded(image_format: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_idx_files_read_as_torchvision_reads_them(tmp_path, seed, shape):
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    plain, packed = tmp_path / "images", tmp_path / "images.gz"
    plain.write_bytes(idx_bytes(values))
    packed.write_bytes(gzip.compress(idx_bytes(values), mtime=0))
    expected = datasets.mnist.read_image_file(str(plain))
    assert torch.equal(read_idx(plain, shape), expected)
    assert torch.equal(read_idx(packed, shape), expected)


VALUES = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a", idx_bytes(VALUES)[:-1], "should hold 24 bytes but holds 23 bytes"),
        ("a", idx_bytes(VALUES) + b"x", "holds more"),
        ("a", idx_bytes(VALUES.reshape(2, 4)), "not an IDX file"),
        ("a", b"", "not an IDX file"),
        ("a", b"\0\0\x0b\x03" + idx_bytes(VALUES)[4:], "not an IDX file"),
        ("a.gz", idx_bytes(VALUES), "cannot be read"),
        ("a.gz", gzip.compress(idx_bytes(VALUES), mtime=0)[:-9], "cannot be read"),
        ("a.gz", gzip.compress(idx_bytes(VALUES), mtime=0)[:14] + b"\xff" * 20, "cannot be read"),
        ("a.gz", gzip.compress(idx_bytes(VALUES) + bytes(10_000_000), mtime=0), "holds more"),
    ],
)
def test_malformed_idx_files_are_one_clear_line(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(path, (2, 2, 2))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", encoded("PNG")[:-40], encoded("JPEG")[:200], encoded("PNG")[:30] + b"\0" * 60],
    ids=["empty", "text", "cut PNG", "cut JPEG", "zeroed PNG"],
)
def test_corrupt_images_are_one_clear_line(content):
    with pytest.raises(DataError, match="row 7 of x") as caught:
        decode_image(content, "row 7 of x")
    assert "\n" not in str(caught.value)


def test_an_image_beyond_the_safe_size_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="decompression bomb"):
        decode_image(encoded("PNG"), "x")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("quality", [10, 75, 95])
def test_the_jpeg_quality_is_found(mode, quality):
    image = decode_image(encoded("JPEG", mode, quality=quality), "x")
    assert describe_encoding(image) == f"re-encoded as JPEG quality {quality}"


def test_lossless_and_unusual_encodings_are_told_apart():
    assert describe_encoding(decode_image(encoded("PNG"), "x")) == ""
    odd = encoded("JPEG", qtables=[list(range(1, 65)), list(range(2, 66))])
    assert describe_encoding(decode_image(odd, "x")) == "re-encoded as JPEG of a non-standard quality"


class Decoder:
    """Counts how often it was asked."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.calls = 0

    def __call__(self) -> LabelledImages:
        self.calls += 1
        return LabelledImages(torch.full((1, 1, 2, 2), self.value, dtype=torch.uint8), torch.tensor([self.value]))


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "source"
    path.write_bytes(b"one")
    return path


def test_a_source_is_decoded_once(source):
    decoder = Decoder(3)
    first, second = decoded_once(source, "L-2", decoder), decoded_once(source, "L-2", decoder)
    assert decoder.calls == 1
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_another_source_or_form_is_decoded_anew(source):
    decoded_once(source, "L-2", Decoder(3))
    assert decoded_once(source, "L-4", Decoder(4)).labels.item() == 4
    source.write_bytes(b"two")
    assert decoded_once(source, "L-2", Decoder(5)).labels.item() == 5


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, None])
def test_a_damaged_entry_is_decoded_anew_and_mended(source, content):
    decoded_once(source, "L-2", Decoder(3))
    (entry,) = cache_directory().iterdir()
    entry.write_bytes(entry.read_bytes()[:-1] if content is None else content)
    again, third = Decoder(3), Decoder(3)
    decoded_once(source, "L-2", again)
    decoded_once(source, "L-2", third)
    assert (again.calls, third.calls) == (1, 0)


def test_a_cache_that_cannot_be_written_is_gone_without(source, monkeypatch):
    # A file where the folder should be: not writable, whoever runs this.
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))
    assert decoded_once(source, "L-2", Decoder(3)).labels.item() == 3


def test_a_relative_cache_home_is_ignored(monkeypatch):
    # The XDG base directory specification: relative paths are invalid and to be ignored.
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_directory().is_absolute()
    assert "here" not in cache_directory().parts


def test_a_source_that_is_not_there(source):
    with pytest.raises(DataError, match="nowhere"):
        decoded_once(source.parent / "nowhere", "L-2", Decoder(3))
