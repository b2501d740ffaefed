"""The paper's protocol, played with real `phe` objects between the cloud and five parties.

The cloud encrypts two rows of its weights under its own key and sends them out. With one party: the party adds its own
rows to the ciphertexts, divides by 2 and returns them. With all: each returns the sum, and the cloud adds the sums up,
divides by their number and by 2. The cloud decrypts with the private key that it holds. A sum holds the cloud's rows
once for each party, so that the cloud's weight in the six-party average is 1/2 and each party's 1/10.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from phe.paillier import EncryptedNumber, PaillierPrivateKey, PaillierPublicKey

from benchmark.reproduce.pride import wire
from benchmark.reproduce.pride.models import LinearModel
from defenses.paillier.pride import arithmetic

ROWS = (0, 1)
"""The paper encrypts `coef_[0]` and `coef_[1]`, which are the rows of the classes 0 and 1."""

PRECISION_AS_CODED = 7.0
"""`encrypt(value, precision=7)`: for `phe` a step of 16^0 = 1, so that weights are rounded to integers."""

PRECISION_MEANT = 1e-7
"""Seven digits after the point: a step of 16^-6."""


@dataclass(frozen=True)
class Upload:
    """What one party returns: its rows added to the cloud's ciphertexts, and half of that.

    Attributes:
        total: the message of sums, as for six parties.
        half: the message of sums divided by 2, as for two parties.
        seconds_total, seconds_half: what the party took to make them.
    """

    total: bytes
    half: bytes
    seconds_total: float
    seconds_half: float


@dataclass(frozen=True, eq=False)
class Average:
    """Rows that the cloud decrypted: [2 * pixels]."""

    values: NDArray[np.float64]
    seconds_aggregate: float
    seconds_decrypt: float


@dataclass(frozen=True, eq=False)
class Exchange:
    """Everything that was sent and everything that the cloud decrypted.

    Attributes:
        precision: `phe`'s absolute precision of the cloud's encryption.
        broadcast: the cloud's encrypted rows.
        uploads: of party 1 to 5.
        pairs: the averages of the cloud with party 1 to 5.
        six: the average of all.
    """

    precision: float
    broadcast: bytes
    seconds_encrypt: float
    uploads: tuple[Upload, ...]
    pairs: tuple[Average, ...]
    six: Average


class Cloud:
    """Party 0: it alone encrypts and decrypts."""

    def __init__(self, model: LinearModel, private_key: PaillierPrivateKey, precision: float) -> None:
        self._rows = model.rows(ROWS)
        self._key = private_key
        self._precision = precision

    def broadcast(self) -> tuple[bytes, float]:
        """Its encrypted rows, and the seconds that encrypting took."""
        start = time.perf_counter()
        encrypted = arithmetic.encrypt(self._rows, self._key.public_key, absolute_precision=self._precision)
        seconds = time.perf_counter() - start
        return wire.written(encrypted, randomised=False), seconds

    def pair(self, upload: Upload) -> Average:
        """Decrypt what one party returned."""
        return self._decrypted(wire.opened(upload.half, self._key.public_key), 0.0)

    def six(self, uploads: Sequence[Upload]) -> Average:
        """Add up what all returned, divide by their number and by 2, decrypt."""
        columns = [wire.opened(upload.total, self._key.public_key) for upload in uploads]
        start = time.perf_counter()
        mean = arithmetic.divide(arithmetic.divide(arithmetic.add(columns), len(columns)), 2)
        return self._decrypted(mean, time.perf_counter() - start)

    def _decrypted(self, encrypted: Sequence[EncryptedNumber], seconds_aggregate: float) -> Average:
        start = time.perf_counter()
        values = arithmetic.decrypt(self._key, encrypted)
        return Average(values, seconds_aggregate, time.perf_counter() - start)


def returned(model: LinearModel, broadcast: bytes, public_key: PaillierPublicKey) -> Upload:
    """A party's part: messages as pickling writes them, with the ciphertexts' randomness as it was."""
    received = wire.opened(broadcast, public_key)
    start = time.perf_counter()
    sums = arithmetic.add_plain(received, model.rows(ROWS))
    added = time.perf_counter()
    halves = arithmetic.divide(sums, 2)
    done = time.perf_counter()
    return Upload(
        total=wire.written(sums, randomised=False),
        half=wire.written(halves, randomised=False),
        seconds_total=added - start,
        seconds_half=done - start,
    )
