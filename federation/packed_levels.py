"""Levels of a quantiser written in as many bits each as the largest takes, one after the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from federation.errors import MalformedMessage

_CHUNK = 1 << 20  # values packed at a time, a multiple of 8: bounds the memory of one bit a byte


def code_bits(largest: int) -> int:
    """ceil(log2(2 largest + 1)), the bits of a code."""
    return (2 * largest).bit_length()


def encode(levels: npt.NDArray[np.int32], largest: int) -> bytes:
    """Signed levels, [values], plus the largest: most significant bit first, padded with zero bits."""
    codes, bits = levels + np.int32(largest), code_bits(largest)
    word = _word_type(bits)
    parts = []
    for start in range(0, len(codes), _CHUNK):
        words = codes[start : start + _CHUNK].astype(word)
        digits = np.unpackbits(words.view(np.uint8)).reshape(len(words), 8 * word.itemsize)
        parts.append(np.packbits(digits[:, -bits:]).tobytes())
    return b"".join(parts)


def decode(content: bytes, size: int, largest: int) -> npt.NDArray[np.int32]:
    """The `size` signed levels of what `encode` wrote.

    Raises:
        MalformedMessage: for another length, a code beyond 2 largest, or padding that is not zero.
    """
    bits = code_bits(largest)
    expected = -(-size * bits // 8)
    if len(content) != expected:
        raise MalformedMessage(f"QSGD: {len(content)} bytes, but {size} values at {bits} bits are {expected}")
    packed = np.frombuffer(content, dtype=np.uint8)
    if size and packed[-1] & ((1 << (-size * bits % 8)) - 1):
        raise MalformedMessage("QSGD: the bits after the last code are not zero")
    codes = _unpacked(packed, size, bits)
    if size and codes.max() > 2 * largest:
        raise MalformedMessage(f"QSGD: code {codes.max()} is beyond the largest, {2 * largest}")
    return codes - np.int32(largest)


def _unpacked(packed: npt.NDArray[np.uint8], size: int, bits: int) -> npt.NDArray[np.int32]:
    word = _word_type(bits)
    codes = np.empty(size, dtype=np.int32)
    for start in range(0, size, _CHUNK):
        count = min(_CHUNK, size - start)
        digits = np.zeros((count, 8 * word.itemsize), dtype=np.uint8)
        digits[:, -bits:] = np.unpackbits(packed[start * bits // 8 :], count=count * bits).reshape(count, bits)
        codes[start : start + count] = np.packbits(digits).view(word)
    return codes


def _word_type(bits: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest big-endian word that holds a code."""
    return np.dtype("u1" if bits <= 8 else ">u2" if bits <= 16 else ">u4")
