"""Parquet files in the Hugging Face layout: a column `img` or `image` of {bytes, path}, and a column `label`."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import torch

from federation.datasets.base import LabelledImages
from federation.datasets.cache import decoded_once
from federation.datasets.decoding import decode_image, describe_encoding
from federation.errors import DataError


@dataclass(frozen=True)
class ParquetFiles:
    """The files of the two official sets, each in the order of its shards."""

    training: tuple[Path, ...]
    test: tuple[Path, ...]


def find_parquet(directory: Path, folder: re.Pattern[str]) -> ParquetFiles | None:
    """`train*.parquet` and `test*.parquet` in `directory`, in a subfolder that `folder` matches, or one level below."""
    named = sorted(path for path in directory.iterdir() if path.is_dir() and folder.fullmatch(path.name))
    below = [path for parent in named for path in sorted(parent.iterdir()) if path.is_dir()]
    for place in (directory, *named, *below):
        training, test = sorted(place.glob("train*.parquet")), sorted(place.glob("test*.parquet"))
        if training and test:
            return ParquetFiles(tuple(training), tuple(test))
    return None


def read_parquet_images(files: Sequence[Path], mode: str, size: int) -> LabelledImages:
    """All images of `files`, decoded to Pillow's `mode` ("L" or "RGB"), each `size` x `size` pixels.

    Raises:
        DataError: where a file is not Parquet in this layout, or an image is malformed or of another size.
    """
    form = f"{mode}-{size}"
    parts = [decoded_once(file, form, functools.partial(_decode_file, file, mode, size)) for file in files]
    return LabelledImages(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def encoding_of(file: Path) -> str:
    """How the first image of `file` is encoded, as `describe_encoding` says it."""
    encoded, _ = _read_columns(file)
    return describe_encoding(decode_image(encoded[0], f"row 0 of {file}"))


def _decode_file(file: Path, mode: str, size: int) -> LabelledImages:
    encoded, labels = _read_columns(file)
    channels = len(mode)
    images = np.empty((len(encoded), size, size, channels), dtype=np.uint8)
    for row, content in enumerate(encoded):
        image = decode_image(content, f"row {row} of {file}")
        if image.size != (size, size):
            raise DataError(f"row {row} of {file} is {image.width} x {image.height} pixels, not {size} x {size}")
        images[row] = np.asarray(image.convert(mode)).reshape(size, size, channels)
    return LabelledImages(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _read_columns(file: Path) -> tuple[list[bytes], np.ndarray]:
    """The encoded images and the int64 labels of `file`."""
    try:
        names = set(pyarrow.parquet.read_schema(file).names)
        column = next((name for name in ("img", "image") if name in names), None)
        if column is None or "label" not in names:
            raise DataError(f"{file} has the columns {', '.join(sorted(names))}; it needs img or image, and label")
        table = pyarrow.parquet.read_table(file, columns=[column, "label"])
        encoded = pyarrow.compute.struct_field(table.column(column), "bytes")
        labels = table.column("label").cast(pyarrow.int64())
    except (OSError, pyarrow.ArrowException) as error:
        first_line = str(error).splitlines()[0]
        raise DataError(f"{file} is not Parquet in the Hugging Face image layout: {first_line}") from error
    if not table.num_rows:
        raise DataError(f"{file} has no rows")
    if encoded.null_count or labels.null_count:
        raise DataError(f"{file} has rows without an image or a label")
    if not pyarrow.types.is_binary(encoded.type):
        raise DataError(f"{file} holds images as {encoded.type}, not as encoded bytes")
    return encoded.to_pylist(), labels.to_numpy()
