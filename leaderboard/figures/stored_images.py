"""Images that a run or a reproduction stored beside its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from federation.errors import DataError


def read_image(directory: Path, name: str) -> npt.NDArray[np.uint8]:
    """An image of the result: grey [H, W] or colour [H, W, 3], 8 bits.

    Raises:
        DataError: missing, unreadable, or outside `directory`.
    """
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise DataError(f"{directory}: image {name!r} lies outside the results' folder")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing, the results name it; run the command again") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: not a readable image: {error}") from error
