"""QSGD's entropy coding of levels: Elias omega codes of the non-zero ones and of the gaps between them.

Alistarh et al. (2017, section 3.2, Code_s) write a quantised vector as, for each value that is not zero: the Elias code of
its distance to the one before, a bit for its sign, and the Elias code of its level. Elias's omega code, which the paper
calls recursive, takes 1, 3, 3, 6 bits for 1, 2, 3, 4: the fewer and the rarer the levels, the shorter the stream. Here
one stream runs over all buckets, positions count from 1, and a last gap to one past the end says that no value follows.
Bits are written from the most significant one, and the last byte is filled with zeros.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from federation.errors import MalformedMessage

_FINE, _CUT_SHORT, _TOO_LARGE, _BEYOND, _LEFT = range(5)
_REASONS = {
    _CUT_SHORT: "the stream of codes ends within a code",
    _TOO_LARGE: "a level is beyond the largest, {largest}",
    _BEYOND: "a gap leads beyond the {size} values",
    _LEFT: "the stream goes on behind its end, or is not filled with zeros",
}
_LONGEST_GROUP = 40
"""Bits of the longest group that a code may announce: what it stands for is far beyond any level and any gap."""


def encode(levels: npt.NDArray[np.int32], largest: int) -> bytes:
    """The stream of signed levels, [values]; the largest takes no part in it."""
    levels = np.ascontiguousarray(levels, np.int32)
    stream = np.zeros(-(-_bits_of(levels) // 8), np.uint8)
    _write(levels, stream)
    return stream.tobytes()


def decode(content: bytes, size: int, largest: int) -> npt.NDArray[np.int32]:
    """The `size` signed levels of a stream, each within +-`largest`.

    Raises:
        MalformedMessage: for anything but what `encode` writes for such levels.
    """
    levels = np.zeros(size, np.int32)
    outcome = _read(np.frombuffer(content, np.uint8), levels, largest)
    if outcome != _FINE:
        raise MalformedMessage(f"QSGD: {_REASONS[outcome].format(largest=largest, size=size)}")
    return levels


@njit(nogil=True, cache=True)
def _length(number):  # type: ignore[no-untyped-def]
    """Binary digits of a positive number."""
    digits = 0
    while number > 0:
        number >>= 1
        digits += 1
    return digits


@njit(nogil=True, cache=True)
def _omega(number):  # type: ignore[no-untyped-def]
    """The omega code of a number from 1 to 2^31, as an integer, and its length in bits, 43 at most."""
    code, length = np.int64(0), 1
    while number > 1:
        digits = _length(number)
        code |= np.int64(number) << length
        length += digits
        number = digits - 1
    return code, length


@njit(nogil=True, cache=True)
def _bits_of(levels):  # type: ignore[no-untyped-def]
    bits, last = 0, -1
    for place in range(levels.size):
        if levels[place] != 0:
            bits += _omega(place - last)[1] + 1 + _omega(abs(levels[place]))[1]
            last = place
    return bits + _omega(levels.size - last)[1]


@njit(nogil=True, cache=True)
def _append(stream, position, code, length):  # type: ignore[no-untyped-def]
    """Write the `length` low bits of `code` from bit `position` on; returns the position behind them."""
    while length > 0:
        room = 8 - position % 8
        taken = min(room, length)
        length -= taken
        stream[position // 8] |= ((code >> length) & ((1 << taken) - 1)) << (room - taken)
        position += taken
    return position


@njit(nogil=True, cache=True)
def _write(levels, stream):  # type: ignore[no-untyped-def]
    position, last = 0, -1
    for place in range(levels.size):
        level = levels[place]
        if level != 0:
            code, length = _omega(place - last)
            position = _append(stream, position, code, length)
            position = _append(stream, position, np.int64(level < 0), 1)
            code, length = _omega(abs(level))
            position = _append(stream, position, code, length)
            last = place
    code, length = _omega(levels.size - last)
    _append(stream, position, code, length)


@njit(nogil=True, cache=True)
def _next(stream, position):  # type: ignore[no-untyped-def]
    """The number whose omega code begins at `position`, and the position behind it; 0 where there is none."""
    end, number = 8 * stream.size, np.int64(1)
    while position < end:
        if (stream[position // 8] >> (7 - position % 8)) & 1 == 0:
            return number, position + 1
        digits = number + 1
        if digits > _LONGEST_GROUP or position + digits > end:
            break
        number = np.int64(0)
        for _ in range(digits):
            number = (number << 1) | ((stream[position // 8] >> (7 - position % 8)) & 1)
            position += 1
    return np.int64(0), position


@njit(nogil=True, cache=True)
def _read(stream, levels, largest):  # type: ignore[no-untyped-def]
    """Fill `levels`, zeros so far, from a stream; returns whether it is one, or why not."""
    end, position, place = 8 * stream.size, 0, -1
    while True:
        gap, position = _next(stream, position)
        if gap == 0:
            return _CUT_SHORT
        if gap > levels.size - place:
            return _BEYOND
        place += gap
        if place == levels.size:
            break
        if position >= end:
            return _CUT_SHORT
        negative = (stream[position // 8] >> (7 - position % 8)) & 1
        level, position = _next(stream, position + 1)
        if level == 0:
            return _CUT_SHORT
        if level > largest:
            return _TOO_LARGE
        levels[place] = -level if negative else level
    if end - position >= 8:
        return _LEFT
    while position < end:
        if (stream[position // 8] >> (7 - position % 8)) & 1:
            return _LEFT
        position += 1
    return _FINE
