"""A cache of decoded images, for sets whose decoding takes seconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import PIL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from federation.datasets.base import LabelledImages
from federation.errors import DataError
from federation.files import atomic_write


def cache_directory() -> Path:
    """`keyhole/datasets` under XDG_CACHE_HOME, or under ~/.cache where that is unset or relative."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "keyhole" / "datasets"


def decoded_once(source: Path, form: str, decode: Callable[[], LabelledImages]) -> LabelledImages:
    """What `decode()` makes of the file `source`, from the cache where it was decoded to the same `form` before.

    The entry is keyed by the source's SHA-256, by `form` (such as "RGB-32") and by Pillow's version, whose decoders may
    differ in the last bit. Where an entry does not read well the source is decoded anew; where the cache cannot be
    written nothing is kept.

    Raises:
        DataError: where `source` cannot be read, and what `decode` raises.
    """
    try:
        with source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    entry = cache_directory() / f"{digest}-{form}-pillow-{PIL.__version__}.safetensors"
    kept = _read(entry)
    if kept is not None:
        return kept
    decoded = decode()
    with contextlib.suppress(OSError, SafetensorError), atomic_write(entry) as temporary:
        save_file({"images": decoded.images, "labels": decoded.labels}, temporary)
    return decoded


def _read(entry: Path) -> LabelledImages | None:
    if not entry.is_file():
        return None
    try:
        tensors = load_file(entry)
        return LabelledImages(tensors["images"], tensors["labels"])
    except (OSError, SafetensorError, KeyError, DataError):
        return None
