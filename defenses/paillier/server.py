"""The server's part of the Paillier protocol: it multiplies ciphertexts modulo n^2 and agrees bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from gmpy2 import mpz

from defenses.paillier import arithmetic, keys
from defenses.paillier.codec import PackedFixedPoint
from defenses.paillier.message import PaillierMessage, exponents_from_bytes, exponents_to_bytes
from defenses.paillier.sums import Packing, ciphertexts_of
from defenses.paillier.threads import Progress
from defenses.stages import Admit, ServerCodec
from federation.errors import MalformedMessage, UsageError
from federation.messages import SERVER, Envelope
from federation.protocol import RoundContext
from federation.weights import Layout, Weights, counters


class PaillierServer(ServerCodec):
    """The server, with the modulus alone.

    Args:
        public_key: None before it has arrived; until then the server can add nothing.
        layout: the tensors of the model.
        packing: how the clients pack numbers.
        progress: called with how many contributions are added up, and of how many.
    """

    def __init__(
        self,
        public_key: keys.PaillierPublicKey | None,
        layout: Layout,
        packing: Packing = PackedFixedPoint,
        *,
        progress: Progress | None = None,
    ) -> None:
        self._public_key = public_key
        self._layout = layout
        self._packing_of = packing
        self._progress = progress

    def answer(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> list[Envelope]:
        """The largest exponent per tensor, to every client; raises MalformedMessage where one of the cohort is missing."""
        if sorted(envelope.sender for envelope in inbox) != sorted(context.cohort):
            raise MalformedMessage(
                f"round {context.round}: {len(inbox)} bounds, one of each of {context.cohort} is due"
            )
        offers = [
            exponents_from_bytes(envelope.payload, self._layout, f"bounds of {envelope.sender}") for envelope in inbox
        ]
        agreed = exponents_to_bytes(tuple(max(offered) for offered in zip(*offers, strict=True)))
        return [Envelope(context.round, phase, SERVER, name, agreed) for name in context.cohort]

    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        """The product of the cohort's ciphertexts: the encrypted sum of what they scaled by n_k / n."""
        messages = {
            sender: PaillierMessage.from_bytes(payload, self._layout, f"contribution of {sender}")
            for sender, payload in uploads.items()
        }
        return self.added(messages).to_bytes()

    def added(self, messages: Mapping[str, PaillierMessage]) -> PaillierMessage:
        """The sum of contributions by client; raises MalformedMessage for contributions to different sums."""
        assert self._public_key is not None, "the modulus is handed out before the first round"
        occasion = next(iter(messages.values())).occasion
        for sender, message in messages.items():
            if message.occasion != occasion or set(occasion.cohort) != messages.keys():
                raise MalformedMessage(
                    f"contribution of {sender}: not at the agreed bounds, or for another round or cohort"
                )
        total = arithmetic.add(self._public_key, self._columns(list(messages.values())))
        content = arithmetic.ciphertexts_to_bytes(self._public_key, total)
        return PaillierMessage(content, occasion, self._largest_counters(list(messages.values())))

    def remap(self, payload: bytes, change: Callable[[Weights], Weights]) -> bytes:
        """Refused: the server cannot change what it cannot open."""
        raise UsageError("paillier: the server cannot re-key weights that it cannot open; use one key for all clients")

    def _columns(self, messages: Sequence[PaillierMessage]) -> Iterator[list[mpz]]:
        """One contribution's ciphertexts after the other, so that only one lies in memory as numbers."""
        assert self._public_key is not None, "see `added`"
        count = ciphertexts_of(self._packing_of(self._public_key.n.bit_length(), len(messages)), self._layout)
        for done, message in enumerate(messages, start=1):
            yield arithmetic.ciphertexts_from_bytes(self._public_key, message.ciphertexts, count)
            if self._progress is not None:
                self._progress(done, len(messages))

    def _largest_counters(self, messages: Sequence[PaillierMessage]) -> Weights:
        return {
            spec.name: torch.stack([message.counters[spec.name] for message in messages]).amax(dim=0)
            for spec in counters(self._layout)
        }
