"""Quantised updates under Paillier, from end to end: rounds that add up, and what is sealed, refused and sent."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from defenses.keynet.defense import KeyNet
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.keys import generate_keypair
from defenses.paillier.levels import PackedLevels
from defenses.paillier.protocol import Paillier
from defenses.paillier.quantized import PaillierQuantized
from defenses.paillier.quantized_client import BASE, BOUNDS, QuantisedPaillierClient
from defenses.paillier.quantized_message import QuantisedMessage
from defenses.paillier.quantized_server import QuantisedPaillierServer
from defenses.paillier.sums import ciphertexts_of
from defenses.quantization import Quantization
from defenses.registry import build_defense
from defenses.stack import Stack
from federation.errors import MalformedMessage, UsageError
from federation.messages import Envelope, client_name
from federation.protocol import RoundContext
from federation.seeds import torch_generator
from federation.weights import Weights, floating, largest_difference, layout_of, weighted_mean

KEYS = ClientKeys(generate_keypair(512, random.Random(7).randbytes, allow_small=True), b"a secret of the clients " * 2)
LAYOUT = layout_of(nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7)))
SIZE = sum(spec.size for spec in floating(LAYOUT))


def weights_near(base: Weights | None, seed: int, magnitude: float) -> Weights:
    """Normal steps away from `base`, or from zero."""
    generator = torch_generator(seed)
    return {
        spec.name: (0 if base is None else base[spec.name]) + torch.randn(spec.shape, generator=generator) * magnitude
        if spec.dtype.is_floating_point
        else torch.tensor(seed)
        for spec in LAYOUT
    }


class Game:
    """Clients, a server, and rounds among them without a driver."""

    def __init__(self, clients: int = 3, levels: int = 15) -> None:
        self.levels = levels
        self.names = [client_name(index) for index in range(clients)]
        self.clients = {name: QuantisedPaillierClient(name, KEYS, LAYOUT, levels, 2) for name in self.names}
        self.server = QuantisedPaillierServer(KEYS.private_key.public_key, LAYOUT, levels)
        self.initial = weights_near(None, 99, 1.0)
        context = self.context(0, self.names)
        self.model = self.clients[self.names[0]].encode_initial(self.initial, context)

    def context(self, number: int, cohort: list[str]) -> RoundContext:
        counts = {name: 10 + 7 * self.names.index(name) for name in cohort}
        return RoundContext(number, tuple(cohort), counts, torch_generator(number))

    def offers(self, context: RoundContext, trained: Mapping[str, Weights]) -> list[Envelope]:
        return [envelope for name in trained for envelope in self.clients[name].offer(BOUNDS, trained[name], context)]

    def uploads(self, context: RoundContext, trained: Mapping[str, Weights]) -> dict[str, bytes]:
        """Both exchanges, then the contributions of clients that received the model."""
        for name in trained:
            self.clients[name].decode(self.model)
        for answer in self.server.answer(BOUNDS, self.offers(context, trained), context):
            self.clients[answer.receiver].take(BOUNDS, [answer], context)
        bases = [envelope for name in trained for envelope in self.clients[name].offer(BASE, trained[name], context)]
        assert self.server.answer(BASE, bases, context) == []
        return {name: self.clients[name].encode(trained[name], self.clients[name]._global, context) for name in trained}

    def play(self, number: int, trained: Mapping[str, Weights]) -> None:
        context = self.context(number, list(trained))
        self.model = self.combined(self.uploads(context, trained), context)

    def combined(self, uploads: Mapping[str, bytes], context: RoundContext) -> bytes:
        return self.server.combine(uploads, b"", context, lambda sender, weights: weights)

    def recovered(self, name: str) -> Weights:
        return self.clients[name].decode(self.model)

    def mean(self, number: int, trained: Mapping[str, Weights]) -> Weights:
        context = self.context(number, list(trained))
        return weighted_mean(LAYOUT, list(trained.values()), [context.share(name) for name in trained])


@pytest.mark.parametrize(("clients", "levels"), [(2, 1), (3, 15), (6, 127), (10, 2**20)])
def test_a_round_gives_the_weighted_mean_within_the_stated_error(clients: int, levels: int) -> None:
    game = Game(clients, levels)
    assert largest_difference(game.recovered(game.names[-1]), game.initial) == 0
    trained = {name: weights_near(game.initial, seed, 0.01 * (seed + 1)) for seed, name in enumerate(game.names)}
    game.play(0, trained)
    recovered, mean = game.recovered(game.names[-1]), game.mean(0, trained)
    largest = 2 * 0.01 * clients * 4  # an exponent's bound is at most twice a value, and a normal value within 4 SD
    assert largest_difference(recovered, mean) <= clients * largest / levels + 1e-6
    assert recovered["1.num_batches_tracked"] == clients - 1
    assert list(recovered) == [spec.name for spec in LAYOUT]


def test_rounds_add_up_for_clients_that_skipped_some() -> None:
    game = Game(clients=4, levels=2**20)
    cohorts = [game.names[:2], game.names[1:3], game.names[:2], game.names[2:]]
    expected = game.initial
    for number, cohort in enumerate(cohorts):
        trained = {name: weights_near(expected, 10 * number + seed, 0.01) for seed, name in enumerate(cohort)}
        game.play(number, trained)
        expected = game.mean(number, trained)
        for name in game.names:
            assert largest_difference(game.recovered(name), expected) < 1e-6


def test_many_roundings_average_to_the_mean() -> None:
    """Unbiased all the way: 100 rounds of the same difference at one level, each with its own coins."""
    game = Game(clients=2, levels=1)
    trained = {name: weights_near(game.initial, seed, 0.01) for seed, name in enumerate(game.names)}
    total = torch.zeros(9 * 7, dtype=torch.float64)
    for number in range(100):
        # the same base in every round: the initial model, sealed for that round
        game.model = game.clients[game.names[0]].encode_initial(game.initial, game.context(number, game.names))
        game.play(number, trained)
        total += game.recovered(game.names[0])["0.weight"].double().flatten()
    error = (total / 100 - game.mean(0, trained)["0.weight"].double().flatten()).abs()
    bound = max(float((trained[name]["0.weight"] - game.initial["0.weight"]).abs().max()) for name in game.names)
    assert (
        float(error.max()) < 5 * 2 * bound / 100**0.5
    )  # a coin's deviation is half a level of at most 2 bound a client


def test_a_tapped_contribution_can_be_opened_with_the_keys_of_any_client() -> None:
    game = Game(levels=2**20)
    trained = {name: weights_near(game.initial, seed, 0.1) for seed, name in enumerate(game.names)}
    context = game.context(0, game.names)
    for name, upload in game.uploads(context, trained).items():
        opened = game.clients["client-2"].decode_upload(upload, game.initial, context.share(name))
        assert largest_difference(opened, trained[name]) < 1e-5


def test_lengths_and_everything_in_clear_are_the_same_whatever_is_sent() -> None:
    """How far a client moved shows in no byte outside of ciphertext and seals."""
    seen = []
    for magnitude in (0.0, 1e-9, 1.0):
        game = Game()
        trained = {name: weights_near(game.initial, 0, magnitude) for name in game.names}
        context = game.context(0, game.names)
        messages = [
            QuantisedMessage.from_bytes(upload, LAYOUT, "test") for upload in game.uploads(context, trained).values()
        ]
        assert all(message.total is not None for message in messages)
        totals = [message.total for message in messages if message.total is not None]
        seen.append([(len(total.ciphertexts), len(message.bounds), replace(total, ciphertexts=b""))
                     for total, message in zip(totals, messages, strict=True)])  # fmt: skip
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize(("levels", "most"), [(127, 3.0), (15, 2.2), (1, 1.2)])
def test_bytes_a_value_at_2048_bits_and_five_clients(levels: int, most: float) -> None:
    """Fixed point takes 7.8; tags and the last ciphertext, which is not full, are counted."""
    layout = layout_of(nn.Linear(300, 200))
    packing = PackedLevels(2048, 5, levels)
    assert ciphertexts_of(packing, layout) * 512 / (301 * 200) <= most


def test_sums_that_are_not_the_cohorts_are_refused() -> None:
    game = Game()
    trained = {name: weights_near(game.initial, seed, 0.1) for seed, name in enumerate(game.names)}
    context = game.context(0, game.names)
    uploads = game.uploads(context, trained)
    honest = QuantisedMessage.from_bytes(game.combined(uploads, context), LAYOUT, "test")
    alone = QuantisedMessage.from_bytes(uploads["client-1"], LAYOUT, "test")
    isolated = QuantisedMessage(honest.base, honest.bounds, alone.total)
    with pytest.raises(MalformedMessage, match="missing or replaced: client-0, client-2"):
        game.clients["client-0"].decode(isolated.to_bytes())
    assert honest.total is not None
    later = replace(honest.total, occasion=replace(honest.total.occasion, round=1))
    flipped = honest.base[:-1] + bytes([honest.base[-1] ^ 1])
    for message, reason in [
        (QuantisedMessage(honest.base, honest.bounds, later), "the sum of round 1 on the weights of round 0"),
        (QuantisedMessage(honest.base, honest.base[: len(honest.bounds)], honest.total), "not sealed by a client"),
        (QuantisedMessage(flipped, honest.bounds, honest.total), "not sealed by a client"),
        (QuantisedMessage(b"", honest.bounds, honest.total), "not sealed by a client"),
    ]:
        with pytest.raises(MalformedMessage, match=reason):
            game.clients["client-0"].decode(message.to_bytes())
    game.clients["client-0"].decode(honest.to_bytes())


def test_a_base_of_another_round_or_client_and_one_that_is_missing_are_refused() -> None:
    game = Game()
    trained = {name: weights_near(game.initial, seed, 0.1) for seed, name in enumerate(game.names)}
    context = game.context(0, game.names)
    uploads = game.uploads(context, trained)
    with pytest.raises(MalformedMessage, match="did not arrive"):
        game.combined(uploads, replace(context, round=1))
    (base,) = game.clients["client-0"].offer(BASE, trained["client-0"], context)
    for wrong in ([], [base, base], [replace(base, sender="client-1")]):
        with pytest.raises(MalformedMessage, match="one of client-0 is due"):
            game.server.answer(BASE, wrong, context)


def test_bounds_are_each_clients_own_for_this_round() -> None:
    game = Game()
    trained = {name: weights_near(game.initial, seed, 0.1) for seed, name in enumerate(game.names)}
    context, client = game.context(0, game.names), game.clients["client-0"]
    for name in game.names:
        game.clients[name].decode(game.model)
    earlier = game.offers(context, trained)
    offers = game.offers(context, trained)
    (answer, *_) = game.server.answer(BOUNDS, [earlier[0], *offers[1:]], context)
    with pytest.raises(MalformedMessage, match="its own are not those that it offered"):
        client.take(BOUNDS, [answer], context)
    swapped = [offers[0], replace(offers[2], sender="client-1"), replace(offers[1], sender="client-2")]
    (answer, *_) = game.server.answer(BOUNDS, swapped, context)
    with pytest.raises(MalformedMessage, match="bounds of client-1: not sealed by a client for this purpose"):
        client.take(BOUNDS, [answer], context)
    with pytest.raises(MalformedMessage, match="one of each of"):
        game.server.answer(BOUNDS, offers[:2], context)


def test_a_small_cohort_is_refused() -> None:
    game = Game()
    with pytest.raises(UsageError, match="minimum_parties is 2"):
        game.offers(game.context(0, game.names[:1]), {"client-0": game.initial})


def test_qsgd_before_paillier_makes_one_codec_of_two() -> None:
    defense = build_defense("mine", ["keynet", {"qsgd": {"levels": 15}}, {"paillier": {"minimum_parties": 4}}])
    assert isinstance(defense, Stack)
    assert defense.stages == (KeyNet(), PaillierQuantized(minimum_parties=4, levels=15))
    assert defense.quantises_updates
    twin = PaillierQuantized(levels=3).leaky_twin()
    assert twin.publish_key
    assert (
        Stack("same", [Quantization(levels=3), Paillier()]).stages == Stack("x", [PaillierQuantized(levels=3)]).stages
    )


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([{"qsgd": {"norm": "l2"}}, "paillier"], "cohort's max-norm"),
        ([{"qsgd": {"bucket": 64}}, "paillier"], "levels alone"),
        ([{"qsgd": {"coding": "elias"}}, "paillier"], "levels alone"),
        (["plain", "paillier"], "one codec"),
        (["paillier", "qsgd"], "one codec"),
        (["qsgd", "qsgd", "paillier"], "one codec"),
        ([{"paillier-quantized": {"levels": 0}}], "between 1 and"),
        ([{"paillier-quantized": {"key_bits": 1024}}], "2048 or more"),
    ],
)
def test_other_pairs_of_codecs_are_one_clear_line(stages: list[object], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_defense("mine", stages)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_message_of_any_kind_is_refused() -> None:
    game = Game()
    for payload in (b"", game.model[:-1], game.model + b"\0"):
        with pytest.raises(MalformedMessage):
            game.clients["client-0"].decode(payload)
    trained = {name: weights_near(game.initial, seed, 0.1) for seed, name in enumerate(game.names)}
    context = game.context(0, game.names)
    uploads = game.uploads(context, trained)
    uploads["client-0"] = game.model
    with pytest.raises(MalformedMessage, match="must hold a sum"):
        game.combined(uploads, context)
    with pytest.raises(MalformedMessage, match="initial model in its place"):
        game.clients["client-0"].decode_upload(game.model, game.initial, 0.5)
