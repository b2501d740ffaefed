"""Images as files: writing and reading them, and pairing two folders of them by file name."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from federation.errors import DataError
from federation.files import atomic_write

SUFFIXES = frozenset({".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
GREY_MODES = frozenset({"1", "L"})
COLOUR_MODES = frozenset({"RGB", "P", "RGBA", "LA"})
NAMES_IN_A_MESSAGE = 5


class ImagePair(NamedTuple):
    """Two files of the same name."""

    name: str
    original: Path
    reconstruction: Path


def write_image(path: Path, image: Tensor) -> None:
    """Write an image, uint8 [C, H, W] with one channel or three, as PNG: to a temporary name, and renamed."""
    array = image.permute(1, 2, 0).numpy()
    with atomic_write(path) as temporary:
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(temporary, format="PNG")


def read_image(path: Path) -> Tensor:
    """Read an 8-bit image as uint8 [C, H, W]: one channel where it is stored as grey, else three.

    Raises:
        DataError: where the file is missing or corrupt, has more than 8 bits a channel, or is partly transparent.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in GREY_MODES | COLOUR_MODES:
                raise DataError(f"{path} has pixels of mode {image.mode}; save it as 8-bit grey or RGB")
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                raise DataError(f"{path} is partly transparent; save it without an alpha channel")
            pixels = np.array(image.convert("L" if image.mode in GREY_MODES else "RGB"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def read_pair(pair: ImagePair) -> tuple[Tensor, Tensor]:
    """Read both images of a pair; where only one is grey, it is repeated to three channels.

    Raises:
        DataError: as `read_image`, and where the two differ in size.
    """
    original, reconstruction = read_image(pair.original), read_image(pair.reconstruction)
    if original.shape[1:] != reconstruction.shape[1:]:
        sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (original, reconstruction)]
        raise DataError(
            f"{pair.name}: the original has {sizes[0]} pixels, the reconstruction {sizes[1]}; sizes must agree"
        )
    channels = max(len(original), len(reconstruction))
    return original.expand(channels, -1, -1), reconstruction.expand(channels, -1, -1)


def pair_folders(originals: Path, reconstructions: Path) -> list[ImagePair]:
    """Pair the images that lie directly in two folders by file name, sorted by name.

    Raises:
        DataError: where a folder is missing or has no images, or an image has no counterpart in the other folder.
    """
    left, right = _images_in(originals), _images_in(reconstructions)
    for present, absent, folder in ((left, right, reconstructions), (right, left, originals)):
        missing = sorted(present.keys() - absent.keys())
        if missing:
            raise DataError(
                f"{folder} lacks a counterpart of {_listed(missing)}; "
                "each original needs a reconstruction of the same file name"
            )
    return [ImagePair(name, left[name], right[name]) for name in sorted(left)]


def _images_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    images = {path.name: path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES}
    if not images:
        raise DataError(f"{folder} has no images; files that end in {', '.join(sorted(SUFFIXES))} count as images")
    return images


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_IN_A_MESSAGE])
    further = len(names) - NAMES_IN_A_MESSAGE
    return f"{shown} and {further} more" if further > 0 else shown
