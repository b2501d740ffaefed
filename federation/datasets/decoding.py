"""Decoding of image files that come from outside."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import Image

from federation.errors import DataError

# What Pillow's decoders raise on malformed input.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def decode_image(source: Path | bytes, origin: str) -> Image.Image:
    """The decoded image in a file or in `source` bytes; `origin` names it in the error.

    Raises:
        DataError: where it is not an image that Pillow reads, is cut short, or is larger than Pillow's safe limit.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
    except _DECODING_ERRORS as error:
        raise DataError(f"{origin} cannot be decoded as an image: {error}") from error
    return image


def describe_encoding(image: Image.Image) -> str:
    """The lossy encoding of a decoded image as a phrase, or "" where its format is another than JPEG.

    The quality is found by comparing the image's quantisation tables with those that libjpeg uses at each quality.
    """
    if image.format != "JPEG":
        return ""
    tables = getattr(image, "quantization", None)
    for quality in range(100, 0, -1):
        buffer = io.BytesIO()
        Image.new(image.mode, (8, 8)).save(buffer, "JPEG", quality=quality)
        if getattr(Image.open(buffer), "quantization", None) == tables:
            return f"re-encoded as JPEG quality {quality}"
    return "re-encoded as JPEG of a non-standard quality"
