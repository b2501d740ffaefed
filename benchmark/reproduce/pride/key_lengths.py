"""What one weight costs with `phe` under keys of several lengths, to set beside what the paper's times leave for it."""

from __future__ import annotations

import time

import numpy as np

from benchmark.store.pride import KeyLength
from defenses.paillier.keys import generate_keypair
from defenses.paillier.pride import arithmetic
from federation.secret_root import SecretRoot

BITS = (512, 1024, 2048)
WEIGHTS = 24
REPEATS = 3


def measured_key_lengths(generator: np.random.Generator) -> list[KeyLength]:
    """The best of a few repeats, in processor time, over random numbers.

    The keys are made for this and protect nothing.
    """
    values = generator.normal(0, 0.1, WEIGHTS)
    return [KeyLength(bits, _seconds(bits, values) / WEIGHTS) for bits in BITS]


def _seconds(bits: int, values: np.ndarray) -> float:
    private_key = generate_keypair(bits, SecretRoot.fresh().reader(), allow_small=True)
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        encrypted = arithmetic.encrypt(values, private_key.public_key, absolute_precision=7.0)
        arithmetic.decrypt(private_key, arithmetic.divide(arithmetic.add_plain(encrypted, values), 2))
        seconds.append(time.process_time() - start)
    return min(seconds)
