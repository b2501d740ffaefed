"""The defense paillier-pride: what each form releases, what each flaw does alone, and who reads what."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.audit.chosen import CLIENTS, ChosenFederation, moved_by, spread_weights
from defenses.base import Claim, Magnitudes
from defenses.paillier.pride import arithmetic
from defenses.paillier.pride.defense import PaillierPride
from defenses.paillier.pride.messages import keys_from_bytes
from defenses.paillier.pride.reading import CLOUD_SUM
from defenses.registry import build_defense
from federation.encrypted_numbers import EncryptedNumbers
from federation.errors import MalformedMessage, UsageError
from federation.messages import SERVER, client_name, raw_tensors_from_bytes, tensors_to_bytes
from federation.network import Network
from federation.protocol import Phase, RoundRecord
from federation.rounds import Federation
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import AGGREGATE, Ciphertext, Nothing, PlainModel, Position, View
from federation.weights import Weights, difference, flatten, floating, largest_difference

ROOT = SecretRoot(b"keys of the tests of the pride.." * 2)
COUNTS = dict(zip(CLIENTS, (3, 5), strict=True))
FORMS = ("six-party", "two-party")


@dataclass(frozen=True)
class ShortKeys(PaillierPride):
    """With keys that are too short to hide anything, for speed."""

    key_bits: int = 512
    smallest_bits: ClassVar[int] = 512


def small() -> nn.Module:
    """A bias before the first matrix, and batch normalisation with its counter."""
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Linear(4, 2))


NETWORK = Network(small, (3,), 2)
LAYOUT = NETWORK.layout
MATRIX = "1.weight"


@dataclass(frozen=True)
class Round:
    """A start, a round of chosen weights and a release."""

    federation: ChosenFederation
    initial: Weights
    record: RoundRecord
    released: Weights

    def view(self, position: Position) -> View:
        return self.federation.view(self.record, position)

    def model(self, position: Position) -> PlainModel:
        view = self.view(position)
        assert isinstance(view, PlainModel)
        return view

    def numbers(self, phase: str) -> EncryptedNumbers:
        """Those of the first envelope of a phase."""
        payload = self.record.transcript.phase(phase)[0].payload
        return EncryptedNumbers.take_from(raw_tensors_from_bytes(payload, phase), phase)


def play(defense: PaillierPride, counts: Mapping[str, int] = COUNTS) -> Round:
    federation = ChosenFederation(defense, NETWORK, ROOT, counts=counts)
    initial = spread_weights(LAYOUT, torch_generator("pride start"), smallest=0.5, largest=1.0, counter=100)
    federation.start(initial)
    choices = {
        name: moved_by(
            spread_weights(LAYOUT, torch_generator("pride", name), smallest=0.1, largest=0.2, counter=5 + len(name))
        )
        for name in CLIENTS
    }
    record = federation.play(0, choices)
    return Round(federation, initial, record, federation.released(1)[CLIENTS[0]])


@cache
def played(**options: Any) -> Round:
    return play(ShortKeys(**options))


def flat(weights: Weights) -> np.ndarray:
    """All averaged values."""
    return flatten(weights, floating(LAYOUT)).numpy()


def rows() -> np.ndarray:
    """A mask of the first two rows of the first matrix among all averaged values."""
    marked = {spec.name: torch.zeros(spec.shape) for spec in LAYOUT}
    marked[MATRIX][:2] = 1
    return flat(marked).astype(bool)


def truth(name: str, **options: Any) -> np.ndarray:
    return flat(played(**options).record.trained[name])


@pytest.mark.parametrize("form", FORMS)
def test_the_released_model_is_the_weighted_mean(form: str) -> None:
    one, other = (truth(name, form=form) for name in CLIENTS)
    expected = (3 * one + 5 * other) / 8
    assert np.abs(flat(played(form=form).released) - expected).max() <= 2.0**-23


@pytest.mark.parametrize("form", FORMS)
def test_with_the_clouds_half_parties_count_alike_and_the_cloud_as_much_as_all(form: str) -> None:
    run = played(form=form, cloud_half=True)
    parties = np.mean([flat(weights) for weights in run.record.trained.values()], axis=0)
    assert np.abs(flat(run.released) - (flat(run.initial) + parties) / 2).max() <= 2.0**-23


@pytest.mark.parametrize("form", FORMS)
def test_with_an_absolute_precision_summands_are_rounded(form: str) -> None:
    one, other = (truth(name, form=form, absolute_precision=0.01) for name in CLIENTS)
    step = 16.0**-2
    expected = (np.rint(3 / 8 * one / step) + np.rint(5 / 8 * other / step)) * step
    assert np.abs(flat(played(form=form, absolute_precision=0.01).released) - expected).max() <= 2.0**-23


def test_the_papers_precision_leaves_integers() -> None:
    released = flat(played(cloud_half=True, absolute_precision=7.0).released)
    assert set(np.unique(4 * released)) <= set(range(-8, 9))
    assert (
        flat(played(absolute_precision=7.0).released) == np.rint(flat(played(absolute_precision=7.0).released))
    ).all()


@pytest.mark.parametrize("form", FORMS)
def test_with_first_rows_only_all_else_stays_the_clouds(form: str) -> None:
    run, sent = played(form=form, first_rows_only=True), rows()
    one, other = (truth(name, form=form, first_rows_only=True) for name in CLIENTS)
    expected = np.where(sent, (3 * one + 5 * other) / 8, flat(run.initial))
    assert np.abs(flat(run.released) - expected).max() <= 2.0**-23
    assert len(run.numbers(Phase.UPLOAD).ciphertexts) == sent.sum() == 2 * 3


def test_counters_go_by_the_maximum() -> None:
    for run in (played(), played(first_rows_only=True)):
        counts = [int(weights["0.num_batches_tracked"]) for weights in run.record.trained.values()]
        assert int(run.released["0.num_batches_tracked"]) == max(counts)


OPTIONS = [
    dict(zip(("form", "cloud_half", "absolute_precision", "first_rows_only"), values, strict=True))
    for values in itertools.product(FORMS, (False, True), (None, 0.01, 7.0), (False, True))
]


@pytest.mark.parametrize("counts", [(3, 5), (1, 1), (1, 1000)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_error_stays_within_what_is_stated(options: dict[str, Any], counts: tuple[int, int]) -> None:
    run = play(ShortKeys(**options, randomised=False), dict(zip(CLIENTS, counts, strict=True)))
    off = largest_difference(run.released, run.federation.mean(run.record))
    assert off <= run.federation.stated_error(run.record)


def test_the_stated_error_of_the_clouds_half_is_reached_by_one_large_party() -> None:
    run = play(ShortKeys(cloud_half=True, randomised=False), dict(zip(CLIENTS, (1, 10**6), strict=True)))
    off = largest_difference(run.released, run.federation.mean(run.record))
    updates = [np.abs(flat(difference(w, run.initial))).max() for w in run.record.trained.values()]
    assert 0.6 * max(updates) < off <= run.federation.stated_error(run.record) < 1.01 * max(updates)


@pytest.mark.parametrize("parties", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_parties_takes_part(form: str, parties: int) -> None:
    counts = {client_name(index): 2 + index for index in range(parties)}
    federation = Federation(ShortKeys(form=form).parties(NETWORK, list(counts), ROOT), counts, seed=0)
    generator = torch_generator("pride", parties)
    chosen = {name: spread_weights(LAYOUT, generator, smallest=0.1, largest=1.0) for name in counts}
    federation.start(spread_weights(LAYOUT, generator, smallest=0.1, largest=1.0))
    federation.run_round(0, list(counts), lambda client, weights: chosen[client.name])
    [released] = federation.release(1, list(counts)[:1])
    expected = sum(counts[name] * flat(chosen[name]) for name in counts) / sum(counts.values())
    assert np.abs(flat(federation.recover(released)) - expected).max() <= 2.0**-23


SUMS: dict[tuple[str, bool], Any] = {
    ("six-party", True): lambda cloud, own, share: cloud + own,
    ("six-party", False): lambda cloud, own, share: cloud + share * own,
    ("two-party", True): lambda cloud, own, share: (cloud + own) / 2,
    ("two-party", False): lambda cloud, own, share: (cloud + share * own) / 2,
}


@pytest.mark.parametrize("position", [Position.SERVER, Position.KEY_AGENT])
@pytest.mark.parametrize(("form", "cloud_half"), SUMS)
def test_the_cloud_reads_sums_with_its_own_weights(form: str, cloud_half: bool, position: Position) -> None:
    run = played(form=form, cloud_half=cloud_half)
    view = run.model(position)
    assert view.hidden_by == {CLOUD_SUM}
    assert largest_difference(view.before, run.initial) == 0
    for name, share in zip(CLIENTS, (3 / 8, 5 / 8), strict=True):
        own = flat(run.record.trained[name])
        expected = SUMS[form, cloud_half](flat(run.initial), own, share)
        assert np.abs(flat(view.after[name]) - expected).max() <= 2.0**-23
        counter = "0.num_batches_tracked"
        assert view.after[name][counter].equal(run.record.trained[name][counter])


@pytest.mark.parametrize("options", [{"form": form, "cloud_half": half} for form, half in SUMS], ids=str)
def test_collusion_reads_the_parties_weights_to_the_last_bit(options: dict[str, Any]) -> None:
    view = played(**options).model(Position.COLLUSION)
    assert not view.hidden_by
    for name, trained in played(**options).record.trained.items():
        assert largest_difference(view.after[name], trained) == 0


def test_collusion_reads_what_is_sent_and_no_more() -> None:
    run = played(first_rows_only=True)
    view, sent = run.model(Position.COLLUSION), rows()
    for name, trained in run.record.trained.items():
        assert (flat(view.after[name]) == np.where(sent, flat(trained), flat(run.initial))).all()


def test_without_the_key_uploads_are_ciphertext_and_releases_are_clear() -> None:
    run = played()
    uploads = run.record.transcript.phase(Phase.UPLOAD)
    view = run.view(Position.EAVESDROPPER)
    assert view == Ciphertext("paillier-pride", sum(len(envelope.payload) for envelope in uploads))
    client = run.model(Position.CLIENT)
    assert largest_difference(client.before, run.initial) == 0
    assert not client.after
    assert isinstance(run.view(Position.AGGREGATE), Nothing)  # before anything is released


def test_who_reads_releases_reads_the_aggregate() -> None:
    federation = Federation(ShortKeys().parties(NETWORK, CLIENTS, ROOT), COUNTS, seed=0)
    initial = spread_weights(LAYOUT, torch_generator("aggregate"), smallest=0.5, largest=1.0)
    federation.start(initial)
    record = federation.run_round(0, CLIENTS, lambda client, weights: initial)
    releases = federation.release(0, CLIENTS)
    transcript = type(releases)([*record.transcript.phase(Phase.BROADCAST), *releases])
    for position in (Position.AGGREGATE, Position.CLIENT):
        view = ShortKeys().view(transcript, position, {}, network=NETWORK, sample_counts=COUNTS)
        assert isinstance(view, PlainModel)
        assert view.after.keys() == {AGGREGATE}
        assert largest_difference(view.after[AGGREGATE], initial) <= 2.0**-23


@pytest.mark.parametrize("position", [Position.SERVER, Position.EAVESDROPPER, Position.COLLUSION, Position.KEY_AGENT])
def test_under_a_published_key_everyone_reads_everything(position: Position) -> None:
    twin = ShortKeys(form="two-party", cloud_half=True).leaky_twin()
    run = play(twin)
    view = run.model(position)
    assert not view.hidden_by
    for name, trained in run.record.trained.items():
        assert largest_difference(view.after[name], trained) == 0


def test_the_twin_of_the_default_differs_in_nothing_that_is_computed() -> None:
    defense = PaillierPride(form="two-party", first_rows_only=True, absolute_precision=1e-7)
    twin = defense.leaky_twin()
    assert twin.publish_key
    assert not twin.randomised
    assert twin.rules(NETWORK) == defense.rules(NETWORK)


def test_the_broadcast_carries_the_model_in_clear_and_encrypted_once_for_all() -> None:
    run = played()
    one, other = run.record.transcript.phase(Phase.BROADCAST)
    assert one.payload == other.payload
    _, private_key = keys_from_bytes(run.federation.parties.held(SERVER), 512, "test")
    assert private_key is not None
    numbers = arithmetic.from_message(run.numbers(Phase.BROADCAST), private_key.public_key)
    assert (arithmetic.decrypt(private_key, numbers) == flat(run.initial)).all()
    clear = raw_tensors_from_bytes(one.payload, "broadcast")
    assert all(clear[name].equal(tensor) for name, tensor in run.initial.items())


def test_a_release_carries_the_model_in_clear_alone() -> None:
    run = played()
    federation = Federation(run.federation.parties, COUNTS, seed=0)
    [release] = federation.release(1, CLIENTS[:1])
    assert release.payload == tensors_to_bytes(run.released)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("randomised", [False, True])
def test_an_upload_is_a_power_of_the_broadcast_unless_re_randomised(form: str, randomised: bool) -> None:
    run = played(form=form, randomised=randomised)
    received, sent = run.numbers(Phase.BROADCAST), run.numbers(Phase.UPLOAD)
    n, shift, scalar = sent.modulus, *((14, 2**55) if form == "two-party" else (0, 1))
    linked = 0
    for index, (before, after) in enumerate(zip(received.ciphertexts, sent.ciphertexts, strict=True)):
        steps = int(received.exponents[index]) - int(sent.exponents[index]) - shift
        linked += after % n == pow(before, 16**steps * scalar, n)
    assert linked == (0 if randomised else len(sent.ciphertexts))


def test_the_server_holds_the_key_and_clients_the_modulus() -> None:
    parties = played().federation.parties
    public_key, private_key = keys_from_bytes(parties.held(SERVER), 512, "test")
    assert private_key is not None
    assert private_key.public_key == public_key
    for name in CLIENTS:
        assert keys_from_bytes(parties.held(name), 512, "test") == (public_key, None)
    assert parties.held("key-agent") == parties.held(SERVER)


def test_keys_are_handed_out_once() -> None:
    federation = Federation(ShortKeys().parties(NETWORK, CLIENTS, ROOT), COUNTS, seed=0)
    assert [envelope.receiver for envelope in federation.issue_keys(0, CLIENTS[:1])] == [CLIENTS[0]]
    assert [envelope.receiver for envelope in federation.issue_keys(1, CLIENTS)] == [CLIENTS[1]]
    assert not federation.issue_keys(2, CLIENTS)


def test_a_key_of_another_length_than_agreed_is_refused() -> None:
    parties = ShortKeys(key_bits=768).parties(NETWORK, CLIENTS, ROOT)
    with pytest.raises(MalformedMessage, match="modulus of 768 bits; agreed are 512"):
        keys_from_bytes(parties.held(SERVER), 512, "test")


def test_claims() -> None:
    counter = "0.num_batches_tracked"
    claims = PaillierPride().claims(NETWORK)
    assert {name for name, claim in claims.items() if claim is Claim.PLAIN} == {counter}
    assert set(claims.values()) == {Claim.PLAIN, Claim.TRANSFORMED}
    partial = PaillierPride(first_rows_only=True).claims(NETWORK)
    assert {name for name, claim in partial.items() if claim is Claim.TRANSFORMED} == {MATRIX}
    assert {name for name, claim in partial.items() if claim is Claim.PLAIN} == {counter}
    assert set(PaillierPride(publish_key=True).claims(NETWORK).values()) == {Claim.PLAIN}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another form": ({"form": "three-party"}, "form is 'three-party'; it must be two-party or six-party"),
    "a short key": ({"key_bits": 1024}, "key_bits is 1024; it must be 2048 or more"),
    "a shorter published key": ({"key_bits": 256, "publish_key": True}, "it must be 512 or more"),
    "half a byte of key": ({"key_bits": 2056}, "a multiple of 16"),
    "no precision": ({"absolute_precision": 0.0}, "absolute_precision is 0.0; it must be within"),
    "a negative precision": ({"absolute_precision": -7.0}, "must be within"),
    "no number": ({"absolute_precision": float("nan")}, "must be within"),
    "an infinite precision": ({"absolute_precision": float("inf")}, "must be within"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_meaningless_options_are_refused(case: str) -> None:
    options, reason = REFUSED[case]
    with pytest.raises(UsageError, match=reason):
        PaillierPride(**options)
    with pytest.raises(UsageError):
        build_defense("mine", [{"paillier-pride": options}])


def test_first_rows_need_a_matrix_of_two_rows() -> None:
    for module in (nn.BatchNorm1d(3), nn.Linear(3, 1)):
        network = Network(lambda module=module: module, (3,), 1)
        with pytest.raises(UsageError, match="needs a first weight matrix of 2 rows or more"):
            PaillierPride(first_rows_only=True).claims(network)
        PaillierPride().claims(network)


def test_options_reach_the_scheme_and_the_name_is_the_experiments() -> None:
    defense = build_defense("pride-unrandomised", [{"paillier-pride": {"randomised": False, "absolute_precision": 7}}])
    assert defense.name == "pride-unrandomised"
    assert defense == PaillierPride(randomised=False, absolute_precision=7.0)
    assert build_defense("paillier-pride").name == PaillierPride().name == "paillier-pride"
    assert defense.scheme() == {
        "paillier-pride": {
            "form": "six-party",
            "randomised": False,
            "absolute_precision": 7.0,
            "first_rows_only": False,
            "cloud_half": False,
            "key_bits": 2048,
            "publish_key": False,
        }
    }


def test_the_stated_error_grows_with_every_flaw_but_the_missing_randomness() -> None:
    magnitudes = Magnitudes(weights=1.0, update=0.1, clients=2)
    sound = PaillierPride().stated_error(magnitudes)
    assert sound < 2e-7
    assert PaillierPride(randomised=False).stated_error(magnitudes) == sound
    flaws: list[dict[str, Any]] = [{"cloud_half": True}, {"absolute_precision": 1e-3}, {"first_rows_only": True}]
    for flaw in flaws:
        assert replace(PaillierPride(), **flaw).stated_error(magnitudes) > 1000 * sound
