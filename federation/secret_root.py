"""Secret roots: where keys come from. A root is secret bytes of its own, never the run's seed, and is stored apart.

From one root every key is derived by labels (HMAC-SHA256 in the role of HKDF-Expand, RFC 5869, over an injective
encoding of the labels) and drawn from an expandable stream (SHAKE256, FIPS 202, over root and block number).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stat
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from federation.errors import DataError, UsageError
from federation.files import write_bytes

SMALLEST_ROOT = 32
"""Bytes that a root has at least: 256 bits."""

_DERIVE = b"keyhole secret root: derive\x00"
_STREAM = b"keyhole secret root: stream\x00"
_BLOCK = 1 << 14


class SecretRoot:
    """Secret bytes from which keys derive.

    Two roots compare equal where their bytes do; a root cannot be pickled, hashed or printed, so that it reaches no
    log, result or content address by accident.

    Args:
        secret: at least 32 uniform secret bytes.

    Raises:
        UsageError: for anything but that many bytes.
    """

    __slots__ = ("_secret",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, secret: bytes) -> None:
        if not isinstance(secret, bytes) or len(secret) < SMALLEST_ROOT:
            found = f"{len(secret)} bytes" if isinstance(secret, bytes) else type(secret).__name__
            raise UsageError(f"a secret root is at least {SMALLEST_ROOT} bytes, not {found}")
        self._secret = secret

    @classmethod
    def fresh(cls) -> SecretRoot:
        """A new root from the operating system's randomness."""
        return cls(secrets.token_bytes(SMALLEST_ROOT))

    def derive(self, *labels: str | int) -> SecretRoot:
        """The root of a purpose, such as `derive("channel keys", 3)`; different labels give independent roots.

        Raises:
            UsageError: without labels, or for a label that is neither text nor an integer.
        """
        if not labels:
            raise UsageError("a derived root needs at least one label that says what it is for")
        message = _DERIVE + b"".join(map(_encode_label, labels))
        return SecretRoot(hmac.digest(self._secret, message, "sha256"))

    def reader(self) -> SecretStream:
        """The root's stream from its beginning; every reader of a root yields the same bytes."""
        return SecretStream(_STREAM + self._secret)

    def stream(self, size: int) -> bytes:
        """The first `size` bytes of the root's stream."""
        return self.reader()(size)

    def save(self, path: Path | str) -> None:
        """Write the root to a file that its owner alone can read."""
        write_bytes(path, self._secret.hex().encode("ascii") + b"\n", private=True)

    @classmethod
    def load(cls, path: Path | str) -> SecretRoot:
        """Read what `save` wrote.

        Raises:
            DataError: for a file that is missing, not a root, or open to other users.
        """
        try:
            mode = Path(path).stat().st_mode
            text = Path(path).read_text(encoding="ascii")
            root = cls(bytes.fromhex(text.strip()))
        except (OSError, ValueError, UsageError) as error:
            raise DataError(f"{path}: not a readable secret root ({error})") from error
        if stat.S_IMODE(mode) & (stat.S_IRWXG | stat.S_IRWXO):
            raise DataError(f"{path}: other users have access to this secret root; run chmod 600 on it")
        return root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretRoot) and hmac.compare_digest(self._secret, other._secret)

    def __repr__(self) -> str:
        return "SecretRoot(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a secret root is not pickled or copied; save it to a private file of its own")


class SecretStream:
    """Uniform secret bytes in sequence: call it with a number of bytes, or draw values of a distribution.

    It is its own source of randomness rather than a `numpy.random.BitGenerator`, whose states are not cryptographic.
    What has been read depends on the total number of bytes asked for, not on how the requests were cut.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._block_number = 0
        self._buffer = b""

    def __call__(self, size: int) -> bytes:
        """The next `size` bytes."""
        parts, missing = [self._buffer], size - len(self._buffer)
        while missing > 0:
            block = hashlib.shake_256(self._seed + self._block_number.to_bytes(8, "big"))
            parts.append(block.digest(_BLOCK))
            self._block_number += 1
            missing -= _BLOCK
        available = b"".join(parts)
        self._buffer = available[size:]
        return available[:size]

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """`count` uniform 64-bit words."""
        return np.frombuffer(self(8 * count), dtype="<u8").astype(np.uint64)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """`count` uniform values in [0, 1), multiples of 2^-53."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def permutation(self, size: int) -> npt.NDArray[np.int64]:
        """A uniform permutation of 0 .. size - 1: the order of as many distinct random words, redrawn on a tie."""
        while True:
            words = self.words(size)
            order = np.argsort(words, kind="stable").astype(np.int64)
            ordered = words[order]
            if not np.any(ordered[1:] == ordered[:-1]):
                return order


def _encode_label(label: str | int) -> bytes:
    """An injective, prefix-free encoding: type, length, content."""
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise UsageError(f"a label of a derived root is text or an integer, not {label!r}")
    content = label.encode() if isinstance(label, str) else str(label).encode("ascii")
    return (b"s" if isinstance(label, str) else b"i") + len(content).to_bytes(8, "big") + content
