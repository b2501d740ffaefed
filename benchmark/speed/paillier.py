"""Keyhole's Paillier against `phe`, which computes with gmpy2 too: value by value, and with the same packing.

"Per value" sets what a federated round costs in each: `phe` encrypts every weight on its own, Keyhole packs. "Per
ciphertext" leaves packing out: `phe` encrypts, adds and decrypts the same packed integers, with its own random r.
Both run on one thread and are measured in CPU seconds; one thread is set against two by the wall clock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gmpy2 import mpz
from phe import paillier as phe_paillier
from phe import util as phe_util

from benchmark.speed.measure import Stage, Work, interleaved_medians, quiet
from benchmark.speed.paillier_report import Operation, PaillierSpeed, Spread
from defenses.paillier import tags
from defenses.paillier.arithmetic import (
    Decryptor,
    OwnerEncryptor,
    PublicEncryptor,
    add,
    ciphertext_bytes,
)
from defenses.paillier.codec import PackedFixedPoint
from defenses.paillier.keys import SECURE_BITS, generate_keypair
from federation.errors import KeyholeError, UsageError

CLIENTS = 6
BOUND_EXPONENT = 3
"""Weights lie in [-8, 8]."""

REPEATS = 7
PHE_VALUES = 8
"""Values (and packed integers) that `phe` is timed on in every repeat; one takes it 10 to 40 ms."""


def measure_paillier(
    key_bits: int,
    values: int,
    *,
    repeats: int = REPEATS,
    phe_values: int = PHE_VALUES,
    allow_small: bool = False,
    progress: Stage = quiet,
) -> PaillierSpeed:
    """Time Keyhole's Paillier and `phe` on the same weights under the same fresh key.

    Args:
        key_bits: length of the modulus.
        values: weights to encrypt.
        repeats: turns of every case.
        phe_values: how many of the weights `phe` encrypts one by one, and packed integers at most.
        allow_small: accept keys that protect nothing (tests).
        progress: called with the stage, the steps done and all steps.

    Raises:
        UsageError: without values, or for a key that is too short.
        KeyholeError: where phe lacks gmpy2, so that the comparison were unfair, or a result is wrong.
    """
    if not phe_util.HAVE_GMP:
        raise KeyholeError("phe computes without gmpy2 here; the comparison would be unfair")
    if values < 1:
        raise UsageError(f"{values} values cannot be timed; there must be 1 or more")
    if key_bits < SECURE_BITS and not allow_small:
        raise UsageError(f"a key of {key_bits} bits is not worth timing; it must be {SECURE_BITS} or more")
    OwnerEncryptor(generate_keypair(512, secrets.token_bytes, allow_small=True))  # compiles what is compiled
    bench = _Bench(key_bits, values, phe_values, allow_small)
    bench.check()
    cases = bench.cases()
    total = repeats * len(cases)
    medians = interleaved_medians(cases, repeats, each=_counted("time one thread", total, progress))
    spread_cases = bench.spread_cases()
    spread = interleaved_medians(
        spread_cases,
        repeats,
        clock=time.perf_counter,
        each=_counted("time two threads", repeats * len(spread_cases), progress),
    )
    return bench.result(medians, spread, repeats)


class _Bench:
    """One key, the same weights, and every case on them."""

    def __init__(self, key_bits: int, values: int, phe_values: int, allow_small: bool) -> None:
        self.set_up: dict[str, float] = {}
        self.key = self._timed(
            "generate key", lambda: generate_keypair(key_bits, secrets.token_bytes, allow_small=allow_small)
        )
        self._timed("generate key (phe)", lambda: phe_paillier.generate_paillier_keypair(n_length=key_bits))
        self.public = self.key.public_key
        self.by_public = self._timed("comb, public key", lambda: PublicEncryptor(self.public))
        self.by_owner = self._timed("combs, key owner", lambda: OwnerEncryptor(self.key))
        self.decryptor = Decryptor(self.key)
        self.codec = PackedFixedPoint(key_bits, CLIENTS)
        self.slots = self.codec.values_per_ciphertext
        self.values = np.random.default_rng(0).normal(0, 0.05, values)
        self.tags = np.arange(tags.ciphertexts_for(values, self.slots), dtype=np.int64)
        self.plaintexts = self.pack()
        self.ciphertexts = self.by_owner.encrypt(self.plaintexts)
        self.sample = [float(value) for value in self.values[:phe_values]]
        self.packed = [int(plaintext) for plaintext in self.plaintexts[:phe_values]]
        self.phe_numbers = [self.public.encrypt(value, precision=1e-7) for value in self.sample]
        self.phe_packed = [int(self.public.raw_encrypt(integer % self.public.n)) for integer in self.packed]

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = work()
        self.set_up[name] = time.process_time() - start
        return made

    def pack(self) -> list[mpz]:
        """From weights to plaintexts, with a tag in each."""
        return self.codec.pack(tags.with_tags(self.codec.quantise(self.values, BOUND_EXPONENT), self.tags, self.slots))

    def unpack(self, plaintexts: Sequence[mpz]) -> np.ndarray:
        """From plaintexts to weights."""
        laid_out = self.codec.unpack(plaintexts, len(plaintexts) * self.slots)
        integers, _ = tags.without_tags(laid_out, len(self.values), self.slots)
        return self.codec.dequantise(integers, BOUND_EXPONENT)

    def check(self) -> None:
        """Raise KeyholeError unless both read each other's ciphertexts and sums are exact."""
        n = self.public.n
        for encryptor in (self.by_public, self.by_owner):
            ours = encryptor.encrypt(self.plaintexts[:3])
            if [self.key.raw_decrypt(int(number)) for number in ours] != [m % n for m in self.plaintexts[:3]]:
                raise KeyholeError("phe does not decrypt our ciphertexts to what was encrypted")
        if self.decryptor.decrypt([mpz(number) for number in self.phe_packed]) != self.packed:
            raise KeyholeError("we do not decrypt phe's ciphertexts to what was encrypted")
        summed = self.decryptor.decrypt(add(self.public, [self.ciphertexts, self.ciphertexts]))
        if summed != [2 * plaintext for plaintext in self.plaintexts]:
            raise KeyholeError("the product of ciphertexts is not the encrypted sum")
        error = np.abs(self.unpack(self.decryptor.decrypt(self.ciphertexts)) - self.values).max()
        if error > self.codec.stated_error(BOUND_EXPONENT):
            raise KeyholeError(f"decrypted weights are off by {error:.3g}")

    def cases(self) -> dict[str, Work]:
        """What runs on one thread, by name."""
        public, key = self.public, self.key
        numbers = [mpz(number) for number in self.ciphertexts]
        phe_wrapped = [phe_paillier.EncryptedNumber(public, number, 0) for number in self.phe_packed]
        return {
            "public, values": lambda: self.by_public.encrypt(self.pack(), threads=1),
            "owner, values": lambda: self.by_owner.encrypt(self.pack(), threads=1),
            "public, packed": lambda: self.by_public.encrypt(self.plaintexts, threads=1),
            "owner, packed": lambda: self.by_owner.encrypt(self.plaintexts, threads=1),
            "phe encrypt, values": lambda: [public.encrypt(value, precision=1e-7) for value in self.sample],
            "phe encrypt, packed": lambda: [public.raw_encrypt(integer % public.n) for integer in self.packed],
            "add": lambda: add(public, [numbers, numbers]),
            "phe add, values": lambda: [number + number for number in self.phe_numbers],
            "phe add, packed": lambda: [number + number for number in phe_wrapped],
            "decrypt, values": lambda: self.unpack(self.decryptor.decrypt(numbers, threads=1)),
            "decrypt, packed": lambda: self.decryptor.decrypt(numbers, threads=1),
            "phe decrypt, values": lambda: [key.decrypt(number) for number in self.phe_numbers],
            "phe decrypt, packed": lambda: [key.raw_decrypt(number) for number in self.phe_packed],
        }

    def spread_cases(self) -> dict[str, Work]:
        """The same work on one and on two threads."""
        works: dict[str, Callable[[int], object]] = {
            "encrypt, public key": lambda threads: self.by_public.encrypt(self.plaintexts, threads=threads),
            "encrypt, key owner": lambda threads: self.by_owner.encrypt(self.plaintexts, threads=threads),
            "decrypt": lambda threads: self.decryptor.decrypt(self.ciphertexts, threads=threads),
        }
        return {
            f"{name}/{threads}": lambda work=work, threads=threads: work(threads)  # type: ignore[misc]
            for name, work in works.items()
            for threads in (1, 2)
        }

    def result(self, medians: dict[str, float], spread: dict[str, float], repeats: int) -> PaillierSpeed:
        """Medians divided down to one value and one ciphertext."""
        values, count, sample, packed = len(self.values), len(self.plaintexts), len(self.sample), len(self.packed)
        rows = {
            "encrypt, public key": ("public, values", "public, packed", "phe encrypt"),
            "encrypt, key owner": ("owner, values", "owner, packed", "phe encrypt"),
            "add": ("add", "add", "phe add"),
            "decrypt": ("decrypt, values", "decrypt, packed", "phe decrypt"),
        }
        operations = tuple(
            Operation(
                name,
                medians[by_value] / values,
                medians[f"{phe}, values"] / sample,
                medians[by_ciphertext] / count,
                medians[f"{phe}, packed"] / packed,
            )
            for name, (by_value, by_ciphertext, phe) in rows.items()
        )
        spreads = tuple(
            Spread(name, spread[f"{name}/1"] / count, spread[f"{name}/2"] / count)
            for name in ("encrypt, public key", "encrypt, key owner", "decrypt")
        )
        return PaillierSpeed(
            key_bits=self.public.n.bit_length(),
            clients=CLIENTS,
            values=values,
            ciphertexts=count,
            phe_values=sample,
            repeats=repeats,
            # of a long message: the last ciphertext of a short one is hardly filled
            bytes_per_value=ciphertext_bytes(self.public) / (self.slots - 1),
            set_up=self.set_up,
            table_bytes={
                "comb, public key": self.by_public.table_bytes,
                "combs, key owner": self.by_owner.table_bytes,
            },
            operations=operations,
            spreads=spreads,
        )


def _counted(stage: str, total: int, progress: Stage) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(stage, done, total)

    return step
