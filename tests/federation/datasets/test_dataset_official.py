"""MNIST and CIFAR-10 in the layouts that they come in."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from federation.datasets import DATA_DIRECTORY_VARIABLE, SPLITS, cifar10, load_dataset, mnist
from federation.datasets.base import DataRequest
from federation.errors import DataError, UsageError
from federation.vision import datasets

REAL_DATA = os.environ.get(DATA_DIRECTORY_VARIABLE)


@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    if "real_data" not in request.keywords:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv(DATA_DIRECTORY_VARIABLE, raising=False)


def encode(pixels: np.ndarray, image_format: str = "PNG", **options: object) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def colour_images(count: int, seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_parquet(path: Path, images: list[object], labels: list[object], column: str = "img") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({column: images, "label": labels}), path)


def write_idx_files(folder: Path, counts: tuple[int, int] = mnist.COUNTS) -> None:
    folder.mkdir(parents=True)
    for prefix, count in zip(("train", "t10k"), counts, strict=True):
        header = struct.pack(">HBB3I", 0, 8, 3, count, 28, 28)
        image = np.arange(784, dtype=np.uint16).astype(np.uint8).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + image * count)
        labels = bytes(index % 10 for index in range(count))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels)


def download_mnist(directory: Path, *, download: bool) -> None:
    """Stands in for torchvision: puts files in its layout under `directory`."""
    assert download
    write_idx_files(directory / "MNIST" / "raw")


def test_a_missing_set_says_where_it_was_looked_for_and_what_helps(tmp_path):
    with pytest.raises(DataError, match=r"mnist is not in .*: looked for MNIST/raw.*--data-dir.*--download") as caught:
        load_dataset("mnist", data_directory=tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataError, match=r"cifar10 needs a data directory.*--data-dir or KEYHOLE_DATA_DIR.*--download"):
        load_dataset("cifar10")
    with pytest.raises(UsageError, match="--data-dir"):
        load_dataset("cifar10", download=True)


def test_a_missing_set_is_downloaded_when_asked_and_divided(tmp_path):
    source = dataclasses.replace(mnist.MNIST, torchvision_class=download_mnist)
    loaded = source.load(DataRequest("", tmp_path / "new", download=True))
    assert [len(getattr(loaded, split)) for split in SPLITS] == [50_000, 8_000, 2_000, 10_000]
    assert torch.bincount(loaded.victims.labels).tolist() == [200] * 10
    assert torch.equal(loaded.test.labels, torch.arange(10_000) % 10)
    assert "MNIST" in loaded.provenance


def test_a_download_that_fails_is_one_clear_line(tmp_path):
    def fail(directory: Path, *, download: bool) -> None:
        raise OSError("no route to host")

    source = dataclasses.replace(cifar10.CIFAR10, torchvision_class=fail)
    with pytest.raises(DataError, match=r"cifar10 could not be downloaded into .*: no route to host"):
        source.load(DataRequest("", tmp_path, download=True))


def test_a_truncated_mnist_is_refused_by_file_name(tmp_path):
    write_idx_files(tmp_path / "raw", counts=(100, 10))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is not an IDX file .* \[60000, 28, 28\]"):
        load_dataset("mnist", data_directory=tmp_path)


def test_sets_of_another_size_than_the_official_one_are_refused(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        rows = [encode(pixels) for pixels in colour_images(count, 0)]
        write_parquet(tmp_path / f"{split}.parquet", rows, list(range(count)))
    with pytest.raises(DataError, match="has 4 training and 2 test images; it should have 50000 and 10000"):
        load_dataset("cifar10", data_directory=tmp_path)


@pytest.mark.parametrize("folder", ["", "cifar10", "cifar10-jpeg", "CIFAR-10", "cifar10/plain_text"])
@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_files_hold_the_images_in_the_order_of_their_shards(tmp_path, folder, column):
    first, second, test = colour_images(3, 1), colour_images(2, 2), colour_images(2, 3)
    place = tmp_path / folder
    write_parquet(place / "train-00000-of-00002.parquet", [encode(image) for image in first], [5, 6, 7], column)
    write_parquet(place / "train-00001-of-00002.parquet", [encode(image) for image in second], [8, 9], column)
    write_parquet(place / "test-00000-of-00001.parquet", [encode(image) for image in test], [0, 1], column)
    sets = cifar10.read_parquet_layout(tmp_path)
    assert sets is not None
    assert np.array_equal(sets.training.images.permute(0, 2, 3, 1), np.concatenate([first, second]))
    assert sets.training.labels.tolist() == [5, 6, 7, 8, 9]
    assert np.array_equal(sets.test.images.permute(0, 2, 3, 1), test)
    assert sets.treatment == ""
    again = cifar10.read_parquet_layout(tmp_path)
    assert torch.equal(again.training.images, sets.training.images)


def test_another_set_beside_it_is_not_taken_for_cifar10(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "cifar100" / f"{split}.parquet", [encode(colour_images(1, 0)[0])], [0])
    assert cifar10.read_parquet_layout(tmp_path) is None


def test_a_jpeg_treatment_is_named(tmp_path):
    for split in ("train", "test"):
        rows = [encode(image, "JPEG", quality=60) for image in colour_images(2, 4)]
        write_parquet(tmp_path / "cifar10" / f"{split}.parquet", rows, [0, 1])
    assert cifar10.read_parquet_layout(tmp_path).treatment == "re-encoded as JPEG quality 60"


def test_grey_digits_are_read_from_parquet(tmp_path):
    digits = np.random.default_rng(5).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for split in ("train", "test"):
        write_parquet(tmp_path / "mnist" / f"{split}.parquet", [encode(digit) for digit in digits], [1, 2, 3], "image")
    sets = mnist.read_parquet_layout(tmp_path)
    assert np.array_equal(sets.training.images[:, 0], digits)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        ([encode(colour_images(1, 0, size=31)[0])], [0], "row 0 of .*train.parquet is 31 x 31 pixels, not 32 x 32"),
        ([encode(colour_images(1, 0)[0]), {"bytes": b"?", "path": None}], [0, 1], "row 1 of .*cannot be decoded"),
        ([encode(colour_images(1, 0)[0])], ["cat"], "not Parquet in the Hugging Face image layout"),
        ([encode(colour_images(1, 0)[0]), None], [0, 1], "without an image or a label"),
        ([encode(colour_images(1, 0)[0])], [None], "without an image or a label"),
        ([{"bytes": 1.5, "path": None}], [0], "images as double"),
        (["a.png"], [0], "not Parquet in the Hugging Face image layout"),
        ([encode(colour_images(1, 0)[0])], [-3], "labels must be at least 0"),
    ],
)
def test_malformed_parquet_rows_are_one_clear_line(tmp_path, images, labels, reason):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", images, labels)
    with pytest.raises(DataError, match=reason) as caught:
        cifar10.read_parquet_layout(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_parquet_or_have_other_columns(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encode(colour_images(1, 0)[0])], [0], column="photo")
    with pytest.raises(DataError, match="has the columns label, photo; it needs img or image, and label"):
        cifar10.read_parquet_layout(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"train\.parquet is not Parquet"):
        cifar10.read_parquet_layout(tmp_path)


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)


def batch_files() -> list[str]:
    lists = datasets.CIFAR10.train_list + datasets.CIFAR10.test_list
    return [name for name, _ in lists]


def test_a_pickled_batch_of_another_origin_is_never_opened(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*batch_files(), "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    with pytest.raises(DataError, match="differs from the published files"):
        load_dataset("cifar10", data_directory=tmp_path)
    assert not (tmp_path / "mark").exists()


def test_batches_with_the_published_digests_are_read(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = {name: colour_images(2, seed) for seed, name in enumerate(batch_files())}
    digests = {}
    contents = {
        name: {"data": batch.transpose(0, 3, 1, 2).reshape(2, 3072), "labels": [3, 4]} for name, batch in images.items()
    }
    for name, content in {**contents, "batches.meta": {"label_names": list(cifar10.CLASSES)}}.items():
        written = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(written)
        digests[name] = hashlib.md5(written).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, digests[name]] for name in batch_files()[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": digests["batches.meta"]})
    sets = cifar10.read_torchvision_layout(tmp_path)
    assert np.array_equal(sets.test.images.permute(0, 2, 3, 1), images["test_batch"])
    assert np.array_equal(sets.training.images[:2].permute(0, 2, 3, 1), images["data_batch_1"])
    assert sets.training.labels.tolist() == [3, 4] * 5


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA, reason=f"{DATA_DIRECTORY_VARIABLE} is not set")
@pytest.mark.parametrize(("name", "training"), [("mnist", 50_000), ("cifar10", 40_000)])
def test_the_real_sets_load(name, training):
    loaded = load_dataset(name)
    assert [len(getattr(loaded, split)) for split in SPLITS] == [training, 8_000, 2_000, 10_000]
    assert loaded.class_count == 10
    images = {image.numpy().tobytes() for split in SPLITS for image in getattr(loaded, split).images[:2000]}
    assert len(images) >= 7990
    assert torch.bincount(loaded.victims.labels).min() >= 150
    if "cifar10-jpeg" in {path.name for path in Path(REAL_DATA).iterdir()} and name == "cifar10":
        assert "re-encoded as JPEG quality 75" in loaded.provenance


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA, reason=f"{DATA_DIRECTORY_VARIABLE} is not set")
def test_real_mnist_has_the_published_channel_statistics():
    # 0.1307 and 0.3081: the figures in PyTorch's MNIST example, over all 60,000 training images.
    sets = mnist.read_idx_layout(Path(REAL_DATA))
    pixels = sets.training.images.double() / 255
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=5e-5)
    assert float(pixels.std()) == pytest.approx(0.3081, abs=5e-5)
