"""FedAvg under Paillier done soundly: every coefficient and intercept, weights n_k / n, packed, the server without a key.

The parties share the private key. They agree on one power-of-two bound per tensor in public, send fresh encryptions of
their scaled weights at one fixed exponent, and decrypt nothing but the sum.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray
from phe.paillier import PaillierPrivateKey, PaillierPublicKey

from benchmark.reproduce.pride.models import LinearModel
from defenses.paillier import arithmetic
from defenses.paillier.codec import PackedFixedPoint, power_of_two_exponent


@dataclass(frozen=True, eq=False)
class SoundAverage:
    """The average of some parties' models, and what it took.

    Attributes:
        model: what every party decrypts.
        stated_error: the largest difference from the exact average that the encoding allows.
        bytes_up: ciphertext bytes from one party.
        seconds_encrypt: of each party.
        seconds_aggregate: of the server.
        seconds_decrypt: of one party.
    """

    model: LinearModel
    stated_error: float
    bytes_up: int
    seconds_encrypt: tuple[float, ...]
    seconds_aggregate: float
    seconds_decrypt: float


class SoundParties:
    """Parties that share a private key; its combs are built once, as at the start of a training."""

    def __init__(self, private_key: PaillierPrivateKey) -> None:
        self._public_key: PaillierPublicKey = private_key.public_key
        self._encryptor = arithmetic.OwnerEncryptor(private_key)
        self._decryptor = arithmetic.Decryptor(private_key)

    def average(self, models: Sequence[LinearModel], sizes: Sequence[int]) -> SoundAverage:
        """FedAvg (McMahan 2016) of the models by their numbers of training points, through encryption."""
        packing = PackedFixedPoint(self._public_key.n.bit_length(), len(models))
        shares = np.asarray(sizes) / sum(sizes)
        scaled = [share * _flat(model) for model, share in zip(models, shares, strict=True)]
        exponents = _agreed_exponents(scaled, models[0])
        uploads, seconds_encrypt = [], []
        for values in scaled:
            start = time.perf_counter()
            plaintexts = packing.pack(packing.quantise(values, exponents))
            uploads.append(arithmetic.ciphertexts_to_bytes(self._public_key, self._encryptor.encrypt(plaintexts)))
            seconds_encrypt.append(time.perf_counter() - start)
        count = packing.ciphertexts_for(len(exponents))
        start = time.perf_counter()
        total = arithmetic.ciphertexts_to_bytes(self._public_key, self._sum(uploads, count))
        summed = time.perf_counter()
        integers = packing.unpack(self._decryptor.decrypt(self._read(total, count)), len(exponents))
        mean = packing.dequantise(integers, exponents)
        done = time.perf_counter()
        return SoundAverage(
            model=_shaped(mean, models[0]),
            stated_error=packing.stated_error(int(exponents.max())),
            bytes_up=len(uploads[0]),
            seconds_encrypt=tuple(seconds_encrypt),
            seconds_aggregate=summed - start,
            seconds_decrypt=done - summed,
        )

    def _sum(self, uploads: Sequence[bytes], count: int) -> list[mpz]:
        """The server's part; it uses the public key alone."""
        return arithmetic.add(self._public_key, [self._read(upload, count) for upload in uploads])

    def _read(self, payload: bytes, count: int) -> list[mpz]:
        return arithmetic.ciphertexts_from_bytes(self._public_key, payload, count)


def _flat(model: LinearModel) -> NDArray[np.float64]:
    return np.concatenate([model.weights.ravel(), model.intercepts])


def _shaped(values: NDArray[np.float64], like: LinearModel) -> LinearModel:
    count = like.weights.size
    return LinearModel(values[:count].reshape(like.weights.shape), values[count:])


def _agreed_exponents(scaled: Sequence[NDArray[np.float64]], like: LinearModel) -> NDArray[np.int64]:
    """The exponent of each value's bound: one for the weights, one for the intercepts, over all parties."""
    count = like.weights.size
    largest = np.abs(np.stack(scaled))
    exponents = [power_of_two_exponent(float(part.max())) for part in (largest[:, :count], largest[:, count:])]
    return np.repeat(exponents, [count, len(like.intercepts)])
