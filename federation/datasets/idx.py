"""The IDX format of the MNIST files, plain or gzipped, read in place so that the data directory may be read-only.

Header: two zero bytes, the type (0x08: unsigned byte), the number of dimensions, then each dimension as a big-endian
32-bit integer; the values follow in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from federation.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The uint8 tensor of the given `shape` in `path` (gzipped where it ends in .gz).

    Raises:
        DataError: where the file cannot be read, has another type or shape, or is not as long as its header says.
    """
    header = struct.pack(">HBB", 0, _UNSIGNED_BYTE, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    expected = len(header) + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            # One byte more than there may be: enough to notice a longer file, however far it would inflate.
            content = stream.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if content[: len(header)] != header:
        raise DataError(f"{path} is not an IDX file of unsigned bytes in the shape {list(shape)}")
    if len(content) != expected:
        length = f"{len(content)} bytes" if len(content) < expected else "more"
        raise DataError(f"{path} should hold {expected} bytes but holds {length}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=len(header)).reshape(shape)
