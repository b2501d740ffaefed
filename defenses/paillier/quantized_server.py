"""The server's part of quantised updates under Paillier: it adds levels and hands on what clients sealed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from defenses.paillier import keys
from defenses.paillier.levels import PackedLevels
from defenses.paillier.message import PaillierMessage
from defenses.paillier.quantized_client import BASE
from defenses.paillier.quantized_message import (
    QuantisedMessage,
    bounds_from_bytes,
    offers_to_bytes,
    sealed_base_from_bytes,
)
from defenses.paillier.server import PaillierServer
from defenses.stages import Admit, ServerCodec
from federation.errors import MalformedMessage, UsageError
from federation.messages import SERVER, Envelope
from federation.protocol import RoundContext
from federation.weights import Layout, Weights


class QuantisedPaillierServer(ServerCodec):
    """The server, with the modulus alone.

    Args:
        public_key: None before it has arrived; until then the server can add nothing.
        layout: the tensors of the model.
        levels: s, the quantiser's positive levels.
    """

    def __init__(self, public_key: keys.PaillierPublicKey | None, layout: Layout, levels: int) -> None:
        self._layout = layout
        self._base: tuple[int, bytes] | None = None  # of which round, and sealed
        self._adder = PaillierServer(public_key, layout, partial(PackedLevels, levels=levels))

    def answer(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> list[Envelope]:
        """The cohort's sealed bounds, to each of it; the base is kept until the sum is there.

        Raises:
            MalformedMessage: where a client's bounds are missing, or the base is not from the first one.
        """
        if phase == BASE:
            if [envelope.sender for envelope in inbox] != [context.cohort[0]]:
                raise MalformedMessage(f"round {context.round}: {len(inbox)} bases, one of {context.cohort[0]} is due")
            sealed = sealed_base_from_bytes(inbox[0].payload, self._layout, f"base of {inbox[0].sender}")
            self._base = context.round, sealed
            return []
        if sorted(envelope.sender for envelope in inbox) != sorted(context.cohort):
            raise MalformedMessage(
                f"round {context.round}: {len(inbox)} bounds, one of each of {context.cohort} is due"
            )
        offers = offers_to_bytes(
            {
                envelope.sender: bounds_from_bytes(envelope.payload, self._layout, f"bounds of {envelope.sender}")
                for envelope in inbox
            }
        )
        return [Envelope(context.round, phase, SERVER, name, offers) for name in context.cohort]

    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        """The product of the cohort's ciphertexts, on the base that its first client sealed."""
        if self._base is None or self._base[0] != context.round:
            raise MalformedMessage(f"round {context.round}: the weights that the sum adds to did not arrive")
        messages = {
            sender: QuantisedMessage.from_bytes(payload, self._layout, f"contribution of {sender}")
            for sender, payload in uploads.items()
        }
        totals: dict[str, PaillierMessage] = {}
        for sender, message in messages.items():
            if message.total is None or message.base:
                raise MalformedMessage(f"contribution of {sender}: it must hold a sum, and no base")
            totals[sender] = message.total
        bounds = next(iter(messages.values())).bounds
        return QuantisedMessage(self._base[1], bounds, self._adder.added(totals)).to_bytes()

    def remap(self, payload: bytes, change: Callable[[Weights], Weights]) -> bytes:
        """Refused: the server cannot change what it cannot open."""
        raise UsageError("paillier: the server cannot re-key weights that it cannot open; use one key for all clients")
