"""`imagefolder:PATH`: a user's own images, one folder a class, brought to one square size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from federation.datasets.base import DataRequest, Dataset, LabelledImages, assemble_dataset, dataset
from federation.datasets.decoding import decode_image
from federation.datasets.splits import divide
from federation.errors import DataError, UsageError
from federation.vision import datasets

DEFAULT_SIZE = 32
_SIZE_MARK = "?size="


@dataset("imagefolder", argument=f"PATH or PATH{_SIZE_MARK}{DEFAULT_SIZE}")
def load_imagefolder(request: DataRequest) -> Dataset:
    """Load PATH/CLASS/IMAGE for every class; a relative PATH is relative to the working directory.

    Each image is turned upright by its EXIF tag, cropped to its central square, scaled to `size` pixels a side and made
    RGB. All of them are divided into the four splits.

    Raises:
        UsageError: for a size that is not a whole number of at least 1.
        DataError: where the folder or a class is empty, an image is corrupt, or there are fewer images than splits.
    """
    folder, size = parse_argument(request.argument)
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; imagefolder:PATH needs one that holds a folder of images for each class"
        )
    try:
        found = datasets.ImageFolder(folder)
    except FileNotFoundError as error:
        raise DataError(f"{folder} does not hold one folder of images for each class: {error}") from error
    images = np.stack([_square(Path(path), size) for path, _ in found.samples])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([label for _, label in found.samples], dtype=torch.int64)
    provenance = f"{len(labels)} images from the folder {folder.name}, cropped and scaled to {size}x{size} pixels."
    name = f"imagefolder:{request.argument}"
    return assemble_dataset(name, found.classes, divide(LabelledImages(pixels, labels)), provenance)


def parse_argument(argument: str) -> tuple[Path, int]:
    """The folder and the side length in pixels that `PATH` or `PATH?size=N` names."""
    path, mark, size = argument.rpartition(_SIZE_MARK)
    if not mark:
        return Path(argument).expanduser(), DEFAULT_SIZE
    if not size.isdecimal() or int(size) < 1:
        raise UsageError(
            f"{argument!r} has the size {size!r}; it needs a whole number of pixels, such as {DEFAULT_SIZE}"
        )
    return Path(path).expanduser(), int(size)


def _square(path: Path, size: int) -> np.ndarray:
    upright = ImageOps.exif_transpose(decode_image(path, str(path)))
    return np.asarray(ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.BILINEAR))
