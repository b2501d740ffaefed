"""The client's part of quantised updates under Paillier: it alone opens bounds, bases and sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from defenses.paillier.client import bounds_of, refuse_small_cohort
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.levels import PackedLevels
from defenses.paillier.message import Occasion, PaillierMessage, exponents_from_bytes, exponents_to_bytes
from defenses.paillier.quantized_message import (
    QuantisedMessage,
    base_from_bytes,
    base_to_bytes,
    offers_from_bytes,
    sealed_to_bytes,
)
from defenses.paillier.sealed import ClientsBox
from defenses.paillier.sums import EncryptedSums
from defenses.stages import ClientCodec
from federation.errors import MalformedMessage
from federation.messages import SERVER, Envelope
from federation.protocol import RoundContext
from federation.weights import Layout, Weights, counters, flatten, floating, unflatten

BOUNDS, BASE = "bounds", "base"
"""The exchanges: the cohort agrees on bounds, and its first client hands in what the sum will add to."""

_BASE, _OFFERED, _AGREED = "base", "bounds offered", "bounds agreed"
"""Purposes of what clients seal."""


class QuantisedPaillierClient(ClientCodec):
    """A client of the protocol of `quantized`, with the keys that all clients share.

    Args:
        name: its wire name.
        client_keys: private key, and the secret behind tags and seals.
        layout: the tensors of the model.
        levels: s, the quantiser's positive levels.
        minimum_parties: it sends nothing to a cohort of fewer.
    """

    def __init__(self, name: str, client_keys: ClientKeys, layout: Layout, levels: int, minimum_parties: int) -> None:
        self._name = name
        self._layout = layout
        self._minimum_parties = minimum_parties
        self._sums = EncryptedSums(name, client_keys, layout, partial(PackedLevels, levels=levels))
        self._box = ClientsBox(client_keys.tag_secret)
        self._global: Weights = {}  # as decoded last: what the bounds of the next difference refer to
        self._own_offer: bytes | None = None
        self._agreed: tuple[int, ...] | None = None

    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        """The model, sealed: a base to which nothing has been added."""
        return QuantisedMessage(self._sealed_base(weights, context)).to_bytes()

    def offer(self, phase: str, weights: Weights, context: RoundContext) -> list[Envelope]:
        """The sealed bounds of this client's difference, or what it is a difference to, from the cohort's first client.

        Raises:
            UsageError: in a cohort that is too small to hide in.
        """
        refuse_small_cohort(self._name, context, self._minimum_parties)
        if phase == BASE:
            first = [self._sealed_base(self._global, context)] if self._name == context.cohort[0] else []
            return [Envelope(context.round, phase, self._name, SERVER, sealed_to_bytes(sealed)) for sealed in first]
        bounds = exponents_to_bytes(bounds_of(self._moved(weights, self._global, context), self._layout))
        self._own_offer = self._box.seal(bounds, _OFFERED, self._name, context.round, *context.cohort)
        return [Envelope(context.round, phase, self._name, SERVER, sealed_to_bytes(self._own_offer))]

    def take(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> None:
        """The largest of all bounds, tensor by tensor; on the base there is no answer.

        Raises:
            MalformedMessage: unless each client of the cohort sealed its bounds for this round, this one the last that
                it offered.
        """
        if phase == BASE and not inbox:
            return
        if len(inbox) != 1:
            raise MalformedMessage(f"{self._name} got {len(inbox)} messages of bounds; there must be one")
        where = f"bounds for {self._name}"
        offers = offers_from_bytes(inbox[0].payload, self._layout, context.cohort, where)
        if offers[self._name] != self._own_offer:
            raise MalformedMessage(f"{where}: its own are not those that it offered")
        opened = [
            self._box.open(sealed, f"bounds of {client}", _OFFERED, client, context.round, *context.cohort)
            for client, sealed in offers.items()
        ]
        exponents = [exponents_from_bytes(content, self._layout, where) for content in opened]
        self._agreed = tuple(max(offered) for offered in zip(*exponents, strict=True))

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        """Fresh encryptions of the levels of the difference times n_k / n."""
        assert self._agreed is not None, "the bounds were agreed before the upload"
        occasion = Occasion(context.round, context.cohort, self._agreed)
        moved = flatten(self._moved(weights, base, context), floating(self._layout)).numpy()
        content = self._sums.encrypt(moved, occasion, context.generator)
        exact = {spec.name: weights[spec.name] for spec in counters(self._layout)}
        return QuantisedMessage(
            bounds=self._box.seal(exponents_to_bytes(self._agreed), _AGREED, context.round, *context.cohort),
            total=PaillierMessage(content, replace(occasion, exponents=(0,) * len(self._agreed)), exact),
        ).to_bytes()

    def decode(self, payload: bytes) -> Weights:
        """The base plus the sum; raises MalformedMessage where that is not its cohort's sum on the base of its round."""
        where = "global message"
        message = QuantisedMessage.from_bytes(payload, self._layout, where)
        content = self._box.open(message.base, where, _BASE)
        base, number = base_from_bytes(content, self._layout, where)
        if message.total is not None:
            if message.total.occasion.round != number:
                raise MalformedMessage(
                    f"{where}: the sum of round {message.total.occasion.round} on the weights of round {number}"
                )
            occasion = self._occasion(message.total, message.bounds, where)
            values, found = self._sums.decrypt(message.total.ciphertexts, occasion)
            self._sums.check(found, occasion, where)
            base = self._added(base, torch.from_numpy(values), message.total.counters)
        self._global = base
        return base

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """One client's weights, as whoever has the keys and taps the wire can; its tags do not matter."""
        where = "contribution"
        message = QuantisedMessage.from_bytes(payload, self._layout, where)
        if message.total is None:
            raise MalformedMessage(f"{where}: an initial model in its place")
        occasion = self._occasion(message.total, message.bounds, where)
        values, _ = self._sums.decrypt(message.total.ciphertexts, occasion)
        return self._added(base, torch.from_numpy(values / share), message.total.counters)

    def _moved(self, weights: Weights, base: Weights, context: RoundContext) -> Weights:
        """The difference of all averaged tensors times n_k / n, in float64."""
        share = context.share(self._name)
        return {
            spec.name: (weights[spec.name].double() - base[spec.name].double()) * share
            for spec in floating(self._layout)
        }

    def _added(self, base: Weights, values: torch.Tensor, exact: Weights) -> Weights:
        """The base plus what all tensors moved by, [values]; counters as given."""
        specs = floating(self._layout)
        weights = unflatten(flatten(base, specs) + values, specs) | exact
        return {spec.name: weights[spec.name] for spec in self._layout}

    def _sealed_base(self, weights: Weights, context: RoundContext) -> bytes:
        return self._box.seal(base_to_bytes(weights, context.round), _BASE)

    def _occasion(self, total: PaillierMessage, bounds: bytes, where: str) -> Occasion:
        """The total's occasion with the bounds that its cohort agreed on."""
        content = self._box.open(bounds, where, _AGREED, total.occasion.round, *total.occasion.cohort)
        return replace(total.occasion, exponents=exponents_from_bytes(content, self._layout, where))
