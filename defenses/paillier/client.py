"""The client's part of the Paillier protocol: it alone encrypts, decrypts, and checks whose sum it was sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.codec import PackedFixedPoint, power_of_two_exponent
from defenses.paillier.message import Occasion, PaillierMessage, exponents_from_bytes, exponents_to_bytes
from defenses.paillier.sums import EncryptedSums
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
        self._layout = layout
        self._minimum_parties = minimum_parties
        self._sums = EncryptedSums(name, client_keys, layout, PackedFixedPoint, threads=threads, progress=progress)
        self._offered: tuple[int, ...] | None = None
        self._agreed: tuple[int, ...] | None = None

    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        """The whole model as the sum of one contribution, under its own bounds."""
        occasion = Occasion(context.round, (self._name,), bounds_of(weights, self._layout))
        return self._encrypt(weights, occasion, context.generator)

    def offer(self, phase: str, weights: Weights, context: RoundContext) -> list[Envelope]:
        """The exponents of this client's bounds; raises UsageError in a cohort that is too small to hide in."""
        refuse_small_cohort(self._name, context, self._minimum_parties)
        self._offered = bounds_of(scaled(weights, context.share(self._name)), self._layout)
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
        return self._encrypt(scaled(weights, context.share(self._name)), occasion, context.generator)

    def decode(self, payload: bytes) -> Weights:
        """Decrypt a global message; raises MalformedMessage where it is not its cohort's sum under these keys."""
        message = PaillierMessage.from_bytes(payload, self._layout, "global message")
        values, found = self._sums.decrypt(message.ciphertexts, message.occasion)
        self._sums.check(found, message.occasion, "global message")
        return self._weights(values, message)

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """Decrypt one client's contribution, as whoever has the keys and taps the wire can; its tags do not matter."""
        message = PaillierMessage.from_bytes(payload, self._layout, "contribution")
        values, _ = self._sums.decrypt(message.ciphertexts, message.occasion)
        return self._weights(values / share, message)

    def _encrypt(self, weights: Weights, occasion: Occasion, generator: torch.Generator) -> bytes:
        content = self._sums.encrypt(flatten(weights, floating(self._layout)).numpy(), occasion, generator)
        exact = {spec.name: weights[spec.name] for spec in counters(self._layout)}
        return PaillierMessage(content, occasion, exact).to_bytes()

    def _weights(self, values: NDArray[np.float64], message: PaillierMessage) -> Weights:
        weights = unflatten(torch.from_numpy(values), floating(self._layout)) | message.counters
        return {spec.name: weights[spec.name] for spec in self._layout}


def refuse_small_cohort(name: str, context: RoundContext, minimum_parties: int) -> None:
    """Raise UsageError where a client would take part in a cohort that is too small to hide in."""
    if len(context.cohort) < minimum_parties:
        raise UsageError(
            f"{name} takes part in no round of {len(context.cohort)} (minimum_parties is {minimum_parties}): "
            "the sum would be its own update"
        )


def bounds_of(weights: Weights, layout: Layout) -> tuple[int, ...]:
    """The smallest power of two that bounds each averaged tensor, as its exponent."""
    largest = [float(weights[spec.name].abs().amax()) if spec.size else 0.0 for spec in floating(layout)]
    return tuple(power_of_two_exponent(value) for value in largest)


def scaled(weights: Weights, share: float) -> Weights:
    """The floating-point tensors times `share`, in float64; counters as they are."""
    return {name: tensor.double() * share if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
