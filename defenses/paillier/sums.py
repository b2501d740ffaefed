"""Sums that clients alone can open: numbers packed, tagged and encrypted, and what the product of ciphertexts holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from defenses.paillier import arithmetic, keys, tags
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.message import Occasion
from defenses.paillier.packing import PackedIntegers
from defenses.paillier.threads import Progress
from federation.weights import Layout, floating

Packing: TypeAlias = Callable[[int, int], PackedIntegers]
"""From the bits of the modulus and the size of the cohort, how numbers are packed."""


def ciphertexts_of(packing: PackedIntegers, layout: Layout) -> int:
    """How many ciphertexts a contribution or a sum has."""
    size = sum(spec.size for spec in floating(layout))
    digits = tags.TagDigits.within(packing.largest_value).count
    return tags.ciphertexts_for(size, packing.values_per_ciphertext, digits)


class EncryptedSums:
    """One client's means to take part in sums and to open them.

    Args:
        name: its wire name.
        client_keys: private key and tag secret.
        layout: the tensors of the model; a contribution holds one number for each value that is averaged.
        packing: how numbers become plaintexts.
        threads: cores to encrypt and decrypt on; see `threads.default_threads`.
        progress: called with how many ciphertexts of a message are done, and of how many.
    """

    def __init__(
        self,
        name: str,
        client_keys: ClientKeys,
        layout: Layout,
        packing: Packing,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._name = name
        self._private_key, self._tag_secret = client_keys.private_key, client_keys.tag_secret
        self._layout = layout
        self._packing_of = packing
        self._threads, self._progress = threads, progress

    def encrypt(self, values: NDArray[np.float64], occasion: Occasion, generator: torch.Generator) -> bytes:
        """Fresh ciphertexts of the values, [values], under the occasion's bounds, tagged as this client's.

        Raises:
            TrainingError: for a value that is not finite or beyond its bound.
        """
        packing, digits = self._packing(occasion), self._digits(occasion)
        integers = packing.quantise(values, self._per_value(occasion), generator)
        count = ciphertexts_of(packing, self._layout)
        own_tags = self._tags(occasion).of(self._name, occasion, count)
        laid_out = tags.with_tags(integers, own_tags, packing.values_per_ciphertext, digits.count)
        encryptor = _owner_encryptor(self._private_key)
        encrypted = encryptor.encrypt(packing.pack(laid_out), threads=self._threads, progress=self._progress)
        return arithmetic.ciphertexts_to_bytes(self._private_key.public_key, encrypted)

    def decrypt(self, content: bytes, occasion: Occasion) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The summed values, [values], and the digits of the tags; raises MalformedMessage for what is no such sum."""
        packing, digits = self._packing(occasion), self._digits(occasion)
        count, slots = ciphertexts_of(packing, self._layout), packing.values_per_ciphertext
        ciphertexts = arithmetic.ciphertexts_from_bytes(self._private_key.public_key, content, count)
        plaintexts = self._decryptor.decrypt(ciphertexts, threads=self._threads, progress=self._progress)
        size = sum(spec.size for spec in floating(self._layout))
        integers, found = tags.without_tags(packing.unpack(plaintexts, count * slots), size, slots, digits.count)
        return packing.dequantise(integers, self._per_value(occasion)), found

    def check(self, found: NDArray[np.int64], occasion: Occasion, where: str) -> None:
        """Raise MalformedMessage unless these are the tags of the whole cohort's sum."""
        self._tags(occasion).check(found, occasion, where)

    def _packing(self, occasion: Occasion) -> PackedIntegers:
        return self._packing_of(self._private_key.public_key.n.bit_length(), len(occasion.cohort))

    def _digits(self, occasion: Occasion) -> tags.TagDigits:
        return tags.TagDigits.within(self._packing(occasion).largest_value)

    def _tags(self, occasion: Occasion) -> tags.ContributionTags:
        return tags.ContributionTags(self._tag_secret, self._digits(occasion))

    def _per_value(self, occasion: Occasion) -> NDArray[np.int64]:
        """Each tensor's exponent, once for each of its values."""
        exponents = np.array(occasion.exponents, np.int64)
        return np.repeat(exponents, [spec.size for spec in floating(self._layout)])

    @cached_property
    def _decryptor(self) -> arithmetic.Decryptor:
        return arithmetic.Decryptor(self._private_key)


@lru_cache(maxsize=2)
def _owner_encryptor(private_key: keys.PaillierPrivateKey) -> arithmetic.OwnerEncryptor:
    """The tables of a key, which all clients of this process have in common; their randomness is fresh each time."""
    return arithmetic.OwnerEncryptor(private_key)
