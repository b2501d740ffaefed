"""Writing files so that a reader sees the whole of one or none of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path | str, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it into place when the block ends without an error.

    Args:
        path: where the finished file shall stand; missing parent folders are made.
        private: make the file readable by its owner alone (for secret roots).

    On any error the temporary file is removed and an older file at `path` stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=f".tmp{target.suffix}", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o600 if private else 0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes, *, private: bool = False) -> None:
    """Write `content` to `path` atomically."""
    with atomic_write(path, private=private) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    write_bytes(path, content.encode())
