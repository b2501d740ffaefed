"""Tests that tell messages of chosen weights from ciphertext, each by one statistic on the bytes of the wire.

The audit has clients send *flat* weights (one tiny value everywhere) and *random* ones (of magnitude near one), with
the same largest magnitude in every tensor, since such bounds may be public. To whoever lacks the key, ciphertext of
the one kind looks like ciphertext of the other. Each test returns the reason why the messages are not ciphertext, or
None; what it says of its false alarms holds where messages are honest ciphertext: independent uniform bytes, but for
headers that do not depend on the weights, of at most 2^20 bytes a message.

Only places count where a sender's flat and random message differ: others say nothing of the weights (headers, bounds,
counters, long-term public keys).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

Bytes: TypeAlias = npt.NDArray[np.uint8]

RUN_BYTES = 8
"""Consecutive bytes that agree by chance once in 2^64."""

BLOCK_BYTES = 16

HISTOGRAM_BYTES = (4096, 1 << 18)
"""The fewest bytes that a histogram is taken of, and the most: a 2,048-bit Paillier ciphertext lies under n^2 and not
under 2^4096, which skews one byte in 512 too little to show in so many."""

FALSE_ALARM = 1e-9
"""Of one histogram."""


@dataclass(frozen=True)
class Sample:
    """One message of chosen weights: who sent it, which weights, and its bytes."""

    sender: str
    weights: Literal["flat", "random"]
    payload: bytes

    @property
    def values(self) -> Bytes:
        """The message as an array."""
        return np.frombuffer(self.payload, np.uint8)


Distinguisher: TypeAlias = Callable[[Sequence[Sample]], str | None]
"""Takes the messages of one phase, at least a flat and a random one of every sender."""


def unequal_lengths(samples: Sequence[Sample]) -> str | None:
    """The length depends on the weights or on chance. No false alarms."""
    lengths = sorted({len(sample.payload) for sample in samples})
    return None if len(lengths) == 1 else f"messages of one network have {lengths[0]} to {lengths[-1]} bytes"


def repeats_between_messages(samples: Sequence[Sample]) -> str | None:
    """Longest run of equal bytes at equal places of two messages of equal weights: no randomness, or a fixed pad.

    8 bytes refuse; false alarms: 2^20 * 256^-8 = 6e-14 a pair.
    """
    for one, other in combinations(samples, 2):
        if one.weights == other.weights:
            telling = _telling(one, samples) & _telling(other, samples)
            run = _longest_run((one.values == other.values) & telling)
            if run >= RUN_BYTES:
                return f"two encryptions of the same {one.weights} weights share a run of {run} bytes"
    return None


def repeats_within_message(samples: Sequence[Sample]) -> str | None:
    """Number of 16-byte blocks that a message of flat weights holds twice: one nonce, or a short pad, for all of them.

    One refuses; false alarms: (2^16)^2 / 2^129 = 6e-30 a message.
    """
    for sample in samples:
        if sample.weights == "flat":
            end = len(sample.payload) // BLOCK_BYTES * BLOCK_BYTES
            telling = _telling(sample, samples)[:end].reshape(-1, BLOCK_BYTES).all(axis=1)
            blocks = sample.values[:end].reshape(-1, BLOCK_BYTES)[telling]
            repeated = len(blocks) - len(np.unique(blocks, axis=0))
            if repeated:
                return f"a message of one value everywhere repeats {repeated} blocks of {BLOCK_BYTES} bytes"
    return None


def skewed_bytes(samples: Sequence[Sample]) -> str | None:
    """Pearson's chi-squared of the 256 byte values against the uniform distribution: plain numbers, base64.

    Refuses over the quantile of chi^2(255) at 1 - 1e-9: false alarms 1e-9 a message. Ciphertext in words that do not
    fill their bytes is refused as well; it has to be packed.
    """
    fewest, most = HISTOGRAM_BYTES
    limit = float(stats.chi2.isf(FALSE_ALARM, df=255))
    for sample in samples:
        telling = sample.values[_telling(sample, samples)][:most]
        if len(telling) >= fewest:
            found = float(stats.chisquare(np.bincount(telling, minlength=256)).statistic)
            if found > limit:
                return f"bytes are not uniform: chi-squared {found:.0f} where ciphertext stays under {limit:.0f}"
    return None


def equal_differences(samples: Sequence[Sample]) -> str | None:
    """Longest run of equal differences between flat and random messages of two senders: a fixed pad for each sender.

    Differences are taken by XOR and modulo 256 (which a pad added to longer words leaves alike between carries). 8
    bytes refuse; false alarms: 2 * 2^20 * 256^-8 = 1e-13 a pair of senders.
    """
    senders = sorted({sample.sender for sample in samples})
    for one, other in combinations(senders, 2):
        of_one, of_other = _differences(one, samples), _differences(other, samples)
        for kind, difference in of_one.items():
            run = _longest_run((difference == of_other[kind]) & (difference != 0))
            if run >= RUN_BYTES:
                return f"two senders' messages change by the same {run} bytes ({kind}) from flat to random weights"
    return None


BYTE_TESTS: tuple[Distinguisher, ...] = (
    unequal_lengths,
    repeats_between_messages,
    repeats_within_message,
    skewed_bytes,
    equal_differences,
)
"""In this order: the others need messages of one length."""


def telling_bytes(samples: Sequence[Sample]) -> int:
    """The fewest places, over all messages, at which a sender's flat and random message differ."""
    return min(int(np.count_nonzero(_telling(sample, samples))) for sample in samples)


def _telling(sample: Sample, samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """Where the message differs from its sender's message of the other weights."""
    other = next(item for item in samples if item.sender == sample.sender and item.weights != sample.weights)
    return sample.values != other.values


def _longest_run(mask: npt.NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _differences(sender: str, samples: Sequence[Sample]) -> dict[str, Bytes]:
    """By kind, the difference of a sender's first flat and first random message."""
    flat, random = (
        next(item.values for item in samples if item.sender == sender and item.weights == weights)
        for weights in ("flat", "random")
    )
    return {"XOR": flat ^ random, "modulo 256": flat - random}
