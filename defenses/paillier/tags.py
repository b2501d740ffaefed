"""Tags in every ciphertext by which clients notice that a sum is not that of their cohort.

One slot of each ciphertext is a tag. Client k puts t_k(occasion, i) into the tag slot of its ciphertext i: pseudo-random
in [-2^F, 2^F), from a secret that the clients hold and the server does not. Tags add up like values, so the tag of an
honest sum is sum_k t_k, which every client can compute. The occasion (round, cohort, bounds) is what the tags are
derived from, so a sum that is passed off as one of another round or of a smaller cohort has wrong tags.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defenses.paillier.message import Occasion
from federation.errors import MalformedMessage
from federation.secret_root import SecretRoot

_MOST_NAMED = 12
"""Clients in a cohort of whose subsets all are tried, to name those that are missing from a sum."""

_SAMPLE = 64
"""Ciphertexts that are looked at for it, the first whose tags are wrong."""


def ciphertexts_for(values: int, slots: int) -> int:
    """Ciphertexts that `values` values take where one of `slots` slots is the tag; at least one."""
    return max(1, -(-values // (slots - 1)))


def with_tags(values: NDArray[np.int64], tags: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """Every slot of every ciphertext, [ciphertexts * slots]: values in the order given, then zeros; the tag last.

    Args:
        values: [values].
        tags: [ciphertexts_for(values, slots)].
        slots: slots of a ciphertext, 2 at least.
    """
    laid_out = np.zeros((len(tags), slots), np.int64)
    laid_out[:, -1] = tags
    padded = np.zeros(len(tags) * (slots - 1), np.int64)
    padded[: len(values)] = values
    laid_out[:, :-1] = padded.reshape(len(tags), slots - 1)
    return laid_out.reshape(-1)


def without_tags(laid_out: NDArray[np.int64], values: int, slots: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The inverse of `with_tags`: values and tags; raises MalformedMessage where padding is not zero."""
    table = laid_out.reshape(-1, slots)
    padded = table[:, :-1].reshape(-1)
    if padded[values:].any():
        raise MalformedMessage(f"padding after the {values} packed values is not zero")
    return padded[:values], table[:, -1]


class ContributionTags:
    """The clients' side of the tags.

    Args:
        secret: at least 32 bytes that all clients hold and the server does not.
        bits: F; a contribution passes for another with probability 2^-(F + 1) a ciphertext.
    """

    def __init__(self, secret: bytes, bits: int) -> None:
        self._root = SecretRoot(secret)
        self._bits = bits

    def of(self, client: str, occasion: Occasion, count: int) -> NDArray[np.int64]:
        """t_k: the tags of one client's contribution, [count] uniform in [-2^F, 2^F)."""
        bounds = " ".join(map(str, occasion.exponents))
        root = self._root.derive(occasion.round, *occasion.cohort, bounds, client)
        words = root.reader().words(count)
        return (words >> np.uint64(63 - self._bits)).astype(np.int64) - (1 << self._bits)

    def check(self, found: NDArray[np.int64], occasion: Occasion, where: str) -> None:
        """Raise MalformedMessage unless `found`, [ciphertexts], are the sums of the whole cohort's tags.

        The message names the clients whose contributions are missing or were replaced, where it can be told.
        """
        due = np.stack([self.of(client, occasion, len(found)) for client in occasion.cohort])
        wrong = np.flatnonzero(found != due.sum(axis=0))
        if wrong.size:
            sample = wrong[:_SAMPLE]
            raise MalformedMessage(
                f"{where}: not the sum of round {occasion.round}'s contributions "
                f"({len(wrong)} of {len(found)} ciphertexts have a wrong tag): "
                f"{_blamed(found[sample], due[:, sample], occasion.cohort)}"
            )


def _blamed(found: NDArray[np.int64], due: NDArray[np.int64], cohort: tuple[str, ...]) -> str:
    """Which contributions are missing, from sums of tags [ciphertexts] and each client's tags [clients, ciphertexts]."""
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
