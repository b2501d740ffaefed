"""Tags in every ciphertext by which clients notice that a sum is not that of their cohort.

The last slots of each ciphertext are its tag, of 28 bits at least: one slot where values are fixed point, several where
they are a quantiser's few levels (`TagDigits`). Client k fills them pseudo-randomly, from a secret that the clients hold
and the server does not. Tags add up like values, so the tag of an honest sum is the sum of the clients' tags, which
every client can compute. The occasion (round, cohort, bounds) is what the tags are derived from, so a sum that is passed
off as one of another round or of a smaller cohort has wrong tags.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defenses.paillier.message import Occasion
from federation.errors import MalformedMessage
from federation.secret_root import SecretRoot

TAG_BITS = 28
"""Of a tag, at least: what passes for a contribution by chance does so with a probability of 2^-28 a ciphertext."""

_MOST_NAMED = 12
"""Clients in a cohort of whose subsets all are tried, to name those that are missing from a sum."""

_SAMPLE = 64
"""Ciphertexts that are looked at for it, the first whose tags are wrong."""


@dataclass(frozen=True)
class TagDigits:
    """How a tag is written into slots.

    Attributes:
        bits: F; a digit is in [-2^F, 2^F), which a slot holds as it holds a value.
        count: digits of a tag, one a slot.
    """

    bits: int
    count: int = 1

    @classmethod
    def within(cls, largest_value: int) -> TagDigits:
        """As few digits as make a tag of `TAG_BITS`, where a slot takes magnitudes up to `largest_value`."""
        bits = largest_value.bit_length() - 1
        return cls(bits, -(-TAG_BITS // (bits + 1)))


def ciphertexts_for(values: int, slots: int, digits: int = 1) -> int:
    """Ciphertexts that `values` values take where `digits` of `slots` slots are the tag; at least one."""
    return max(1, -(-values // (slots - digits)))


def with_tags(values: NDArray[np.int64], tags: NDArray[np.int64], slots: int, digits: int = 1) -> NDArray[np.int64]:
    """Every slot of every ciphertext, [ciphertexts * slots]: values in the order given, then zeros; the tag last.

    Args:
        values: [values].
        tags: [ciphertexts_for(values, slots, digits) * digits], ciphertext by ciphertext.
        slots: slots of a ciphertext, more than `digits`.
        digits: slots of a tag.
    """
    by_ciphertext = tags.reshape(-1, digits)
    laid_out = np.zeros((len(by_ciphertext), slots), np.int64)
    laid_out[:, -digits:] = by_ciphertext
    padded = np.zeros(len(by_ciphertext) * (slots - digits), np.int64)
    padded[: len(values)] = values
    laid_out[:, :-digits] = padded.reshape(-1, slots - digits)
    return laid_out.reshape(-1)


def without_tags(
    laid_out: NDArray[np.int64], values: int, slots: int, digits: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The inverse of `with_tags`: values and tags; raises MalformedMessage where padding is not zero."""
    table = laid_out.reshape(-1, slots)
    padded = table[:, :-digits].reshape(-1)
    if padded[values:].any():
        raise MalformedMessage(f"padding after the {values} packed values is not zero")
    return padded[:values], table[:, -digits:].reshape(-1)


class ContributionTags:
    """The clients' side of the tags.

    Args:
        secret: at least 32 bytes that all clients hold and the server does not.
        digits: how a tag is written; one contribution passes for another with probability 2^-((F + 1) * digits) a
            ciphertext.
    """

    def __init__(self, secret: bytes, digits: TagDigits) -> None:
        self._root = SecretRoot(secret)
        self._bits, self._digits = digits.bits, digits.count

    def of(self, client: str, occasion: Occasion, ciphertexts: int) -> NDArray[np.int64]:
        """t_k: the digits of the tags of one client's contribution, [ciphertexts * digits] uniform in [-2^F, 2^F)."""
        bounds = " ".join(map(str, occasion.exponents))
        root = self._root.derive(occasion.round, *occasion.cohort, bounds, client)
        words = root.reader().words(ciphertexts * self._digits)
        return (words >> np.uint64(63 - self._bits)).astype(np.int64) - (1 << self._bits)

    def check(self, found: NDArray[np.int64], occasion: Occasion, where: str) -> None:
        """Raise MalformedMessage unless `found`, [ciphertexts * digits], are the sums of the whole cohort's tags.

        The message names the clients whose contributions are missing or were replaced, where it can be told.
        """
        by_ciphertext = found.reshape(-1, self._digits)
        due = np.stack([self.of(client, occasion, len(by_ciphertext)) for client in occasion.cohort])
        due = due.reshape(len(due), *by_ciphertext.shape)
        wrong = np.flatnonzero((by_ciphertext != due.sum(axis=0)).any(axis=1))
        if wrong.size:
            sample = wrong[:_SAMPLE]
            blamed = _blamed(by_ciphertext[sample].ravel(), due[:, sample].reshape(len(due), -1), occasion.cohort)
            raise MalformedMessage(
                f"{where}: not the sum of round {occasion.round}'s contributions "
                f"({len(wrong)} of {len(by_ciphertext)} ciphertexts have a wrong tag): {blamed}"
            )


def _blamed(found: NDArray[np.int64], due: NDArray[np.int64], cohort: tuple[str, ...]) -> str:
    """Which contributions are missing, from sums of digits [digits] and each client's digits [clients, digits]."""
    subsets = _likely_subsets(len(cohort))
    fitting = subsets[(subsets @ due == found).all(axis=1)]
    if len(fitting) != 1:
        return "some are missing, replaced or counted twice; which cannot be told, or differs between ciphertexts"
    missing = [client for client, present in zip(cohort, fitting[0], strict=True) if not present]
    return f"missing or replaced: {', '.join(missing)}"


def _likely_subsets(clients: int) -> NDArray[np.int64]:
    """[subsets, clients] of zeros and ones: all subsets of a small cohort; of others all but one, one, none."""
    if clients <= _MOST_NAMED:
        return (np.arange(1 << clients)[:, None] >> np.arange(clients)) & 1
    one = np.eye(clients, dtype=np.int64)
    return np.concatenate([1 - one, one, np.zeros((1, clients), np.int64)])
