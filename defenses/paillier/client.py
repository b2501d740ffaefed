"""The client's part of the Paillier protocol: it alone encrypts, decrypts, and checks whose sum it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from defenses.paillier import arithmetic, keys, tags
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.codec import DEFAULT_FRACTION_BITS, PackedFixedPoint, power_of_two_exponent
from defenses.paillier.message import Occasion, PaillierMessage, exponents_from_bytes, exponents_to_bytes
from defenses.paillier.threads import Progress
from defenses.stages import ClientCodec
from federation.errors import MalformedMessage, UsageError
from federation.messages import SERVER, Envelope
from federation.protocol import RoundContext
from federation.weights import Layout, Weights, counters, flatten, floating, unflatten


class PaillierClient(ClientCodec):
    """A client of the protocol, with the keys that all clients share.

    Args:
        name: its wire name.
        client_keys: private key and tag secret.
        layout: the tensors of the model.
        minimum_parties: it sends nothing to a cohort of fewer.
        threads: cores to encrypt and decrypt on; see `threads.default_threads`.
        progress: called with how many ciphertexts of a message are done, and of how many.
    """

    def __init__(
        self,
        name: str,
        client_keys: ClientKeys,
        layout: Layout,
        minimum_parties: int,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._name = name
        self._private_key = client_keys.private_key
        self._tags = tags.ContributionTags(client_keys.tag_secret, DEFAULT_FRACTION_BITS)
        self._layout = layout
        self._minimum_parties = minimum_parties
        self._threads, self._progress = threads, progress
        self._offered: tuple[int, ...] | None = None
        self._agreed: tuple[int, ...] | None = None

    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        """The whole model as the sum of one contribution, under its own bounds."""
        return self._encrypt(weights, Occasion(context.round, (self._name,), self._own_exponents(weights)))

    def offer(self, phase: str, weights: Weights, context: RoundContext) -> list[Envelope]:
        """The exponents of this client's bounds; raises UsageError in a cohort that is too small to hide in."""
        if len(context.cohort) < self._minimum_parties:
            raise UsageError(
                f"{self._name} takes part in no round of {len(context.cohort)} (minimum_parties is "
                f"{self._minimum_parties}): the sum would be its own update"
            )
        self._offered = self._own_exponents(_scaled(weights, context.share(self._name)))
        return [Envelope(context.round, phase, self._name, SERVER, exponents_to_bytes(self._offered))]

    def take(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> None:
        """The agreed exponents; raises MalformedMessage for none, or where they leave out what this client offered."""
        assert self._offered is not None, "the client offered its own bounds first"
        if len(inbox) != 1:
            raise MalformedMessage(f"{self._name} got {len(inbox)} agreed bounds; there must be one")
        agreed = exponents_from_bytes(inbox[0].payload, self._layout, "agreed bounds")
        if any(bound < own for bound, own in zip(agreed, self._offered, strict=True)):
            raise MalformedMessage(f"{self._name} got agreed bounds below those that it offered")
        self._agreed = agreed

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        """Fresh encryptions of the weights times n_k / n, under the agreed bounds, tagged as this client's."""
        assert self._agreed is not None, "the bounds were agreed before the upload"
        occasion = Occasion(context.round, context.cohort, self._agreed)
        return self._encrypt(_scaled(weights, context.share(self._name)), occasion)

    def decode(self, payload: bytes) -> Weights:
        """Decrypt a global message; raises MalformedMessage where it is not its cohort's sum under these keys."""
        message = PaillierMessage.from_bytes(payload, self._layout, "global message")
        values, found = self._decrypt(message)
        self._tags.check(found, message.occasion, "global message")
        return self._weights(values, message)

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """Decrypt one client's contribution, as whoever has the keys and taps the wire can; its tags do not matter."""
        message = PaillierMessage.from_bytes(payload, self._layout, "contribution")
        values, _ = self._decrypt(message)
        return self._weights(values / share, message)

    def _own_exponents(self, weights: Weights) -> tuple[int, ...]:
        largest = [float(weights[spec.name].abs().amax()) if spec.size else 0.0 for spec in floating(self._layout)]
        return tuple(power_of_two_exponent(value) for value in largest)

    def _encrypt(self, weights: Weights, occasion: Occasion) -> bytes:
        packing = self._packing(occasion)
        integers = packing.quantise(flatten(weights, floating(self._layout)).numpy(), self._per_value(occasion))
        slots = packing.values_per_ciphertext
        own_tags = self._tags.of(self._name, occasion, tags.ciphertexts_for(len(integers), slots))
        plaintexts = packing.pack(tags.with_tags(integers, own_tags, slots))
        encryptor = _owner_encryptor(self._private_key)
        encrypted = encryptor.encrypt(plaintexts, threads=self._threads, progress=self._progress)
        content = arithmetic.ciphertexts_to_bytes(self._private_key.public_key, encrypted)
        exact = {spec.name: weights[spec.name] for spec in counters(self._layout)}
        return PaillierMessage(content, occasion, exact).to_bytes()

    def _decrypt(self, message: PaillierMessage) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The summed values of all averaged tensors, [values], and the sum of the tags in each ciphertext."""
        packing = self._packing(message.occasion)
        size, slots = sum(spec.size for spec in floating(self._layout)), packing.values_per_ciphertext
        count = tags.ciphertexts_for(size, slots)
        ciphertexts = arithmetic.ciphertexts_from_bytes(self._private_key.public_key, message.ciphertexts, count)
        plaintexts = self._decryptor.decrypt(ciphertexts, threads=self._threads, progress=self._progress)
        integers, found = tags.without_tags(packing.unpack(plaintexts, count * slots), size, slots)
        return packing.dequantise(integers, self._per_value(message.occasion)), found

    def _weights(self, values: NDArray[np.float64], message: PaillierMessage) -> Weights:
        weights = unflatten(torch.from_numpy(values), floating(self._layout)) | message.counters
        return {spec.name: weights[spec.name] for spec in self._layout}

    def _packing(self, occasion: Occasion) -> PackedFixedPoint:
        return PackedFixedPoint(self._private_key.public_key.n.bit_length(), len(occasion.cohort))

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


def _scaled(weights: Weights, share: float) -> Weights:
    """The floating-point tensors times `share`, in float64; counters as they are."""
    return {name: tensor.double() * share if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
