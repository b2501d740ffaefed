"""The sound protocol from end to end: rounds that add up, and servers, messages and keys that do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmark.audit.stand_in import smallest_stand_in
from defenses.paillier import arithmetic
from defenses.paillier.client import PaillierClient
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.codec import PackedFixedPoint
from defenses.paillier.keys import generate_keypair
from defenses.paillier.message import PaillierMessage
from defenses.paillier.protocol import BOUNDS, Paillier
from defenses.paillier.server import PaillierServer
from defenses.paillier.tags import without_tags
from defenses.stages import KeyMaterial
from federation.errors import MalformedMessage, TrainingError, UsageError
from federation.messages import SERVER, client_name
from federation.protocol import RoundContext
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.weights import Weights, floating, largest_difference, layout_of, weighted_mean

BITS = 512
KEYS = ClientKeys(generate_keypair(BITS, random.Random(7).randbytes, allow_small=True), b"a secret of the clients " * 2)
PUBLIC = KEYS.private_key.public_key
N = mpz(PUBLIC.n)
LAYOUT = layout_of(nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7)))
SIZE = sum(spec.size for spec in floating(LAYOUT))
ROOT = SecretRoot(b"unit tests of paillier" * 2)


def context_of(clients: int, number: int = 4) -> RoundContext:
    cohort = tuple(client_name(index) for index in range(clients))
    return RoundContext(number, cohort, {name: 10 + 7 * k for k, name in enumerate(cohort)}, torch_generator(0))


def random_weights(seed: int, magnitude: float = 1.0) -> Weights:
    generator = torch_generator(seed)
    return {
        spec.name: torch.randn(spec.shape, generator=generator) * magnitude
        if spec.dtype.is_floating_point
        else torch.tensor(seed)
        for spec in LAYOUT
    }


def server() -> PaillierServer:
    return PaillierServer(PUBLIC, LAYOUT)


def client(name: str = "client-0", client_keys: ClientKeys = KEYS) -> PaillierClient:
    return PaillierClient(name, client_keys, LAYOUT, minimum_parties=2)


def uploads_of(weights: Mapping[str, Weights], context: RoundContext) -> dict[str, bytes]:
    """Each client's contribution after the agreement on bounds."""
    clients = {name: client(name) for name in context.cohort}
    offers = [envelope for name in clients for envelope in clients[name].offer(BOUNDS, weights[name], context)]
    for answer in server().answer(BOUNDS, offers, context):
        clients[answer.receiver].take(BOUNDS, [answer], context)
    return {name: clients[name].encode(weights[name], {}, context) for name in clients}


def combined(uploads: Mapping[str, bytes], context: RoundContext) -> bytes:
    return server().combine(uploads, b"", context, lambda sender, weights: weights)


def parsed(payload: bytes) -> PaillierMessage:
    return PaillierMessage.from_bytes(payload, LAYOUT, "test")


def ciphertexts(message: PaillierMessage) -> list[mpz]:
    count = len(message.ciphertexts) // arithmetic.ciphertext_bytes(PUBLIC)
    return arithmetic.ciphertexts_from_bytes(PUBLIC, message.ciphertexts, count)


def with_ciphertexts(message: PaillierMessage, numbers: list[mpz]) -> bytes:
    return replace(message, ciphertexts=arithmetic.ciphertexts_to_bytes(PUBLIC, numbers)).to_bytes()


CONTEXT = context_of(3)
WEIGHTS = {name: random_weights(seed) for seed, name in enumerate(CONTEXT.cohort)}
UPLOADS = uploads_of(WEIGHTS, CONTEXT)
GLOBAL = combined(UPLOADS, CONTEXT)


def refused(payload: bytes) -> str:
    """The one line with which a client refuses a global message."""
    with pytest.raises(MalformedMessage) as caught:
        client().decode(payload)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("clients", [2, 6, 100])
def test_a_round_gives_the_weighted_mean(clients: int) -> None:
    context = context_of(clients)
    weights = {name: random_weights(seed, 0.1 + seed) for seed, name in enumerate(context.cohort)}
    uploads = uploads_of(weights, context)
    recovered = client(context.cohort[-1]).decode(combined(uploads, context))
    expected = weighted_mean(LAYOUT, list(weights.values()), [context.share(name) for name in weights])
    exponents = parsed(uploads["client-0"]).occasion.exponents
    bound = PackedFixedPoint(BITS, clients).stated_error(max(exponents)) + clients * 2.0**-22
    assert largest_difference(recovered, expected) <= bound
    assert recovered["1.num_batches_tracked"] == clients - 1
    assert list(recovered) == [spec.name for spec in LAYOUT]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([2, 3, 6]), st.data())
def test_sums_are_exact_as_integers(clients: int, data: st.DataObject) -> None:
    """Weights at the bound with any signs, in units of the fixed point, come back to the last bit."""
    context = replace(context_of(clients), sample_counts=dict.fromkeys(context_of(clients).cohort, 1))
    signs = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=clients, max_size=clients))
    units = data.draw(st.lists(st.integers(-(2**20), 2**20), min_size=clients, max_size=clients))
    weights = {}
    for name, sign, unit in zip(context.cohort, signs, units, strict=True):
        weights[name] = {
            key: torch.full_like(tensor, sign * clients) if tensor.is_floating_point() else tensor
            for key, tensor in random_weights(0).items()
        }
        weights[name]["0.weight"][0, 0] = clients * unit * 2.0**-20
    recovered = client().decode(combined(uploads_of(weights, context), context))
    assert recovered["0.bias"].unique().tolist() == [sum(signs)]
    assert recovered["0.weight"][0, 0] == np.float32(sum(units) * 2.0**-20)


def test_the_initial_model_and_a_tapped_contribution_can_be_opened() -> None:
    initial = client("client-2").encode_initial(WEIGHTS["client-2"], CONTEXT)
    assert largest_difference(client().decode(initial), WEIGHTS["client-2"]) <= 2.0**-24
    for name, upload in UPLOADS.items():
        opened = client().decode_upload(upload, {}, CONTEXT.share(name))
        assert largest_difference(opened, WEIGHTS[name]) <= 2.0**-22


def test_phe_decrypts_a_contribution() -> None:
    message = parsed(UPLOADS["client-1"])
    packing = PackedFixedPoint(BITS, 3)
    plaintexts = [KEYS.private_key.raw_decrypt(int(ciphertext)) for ciphertext in ciphertexts(message)]
    signed = [mpz(plaintext if plaintext <= N // 2 else plaintext - N) for plaintext in plaintexts]
    slots = packing.values_per_ciphertext
    values, _ = without_tags(packing.unpack(signed, len(signed) * slots), SIZE, slots)
    decoded = packing.dequantise(values[: 9 * 7], message.occasion.exponents[0]) / CONTEXT.share("client-1")
    np.testing.assert_allclose(decoded, WEIGHTS["client-1"]["0.weight"].flatten(), atol=2.0**-22)


def test_nothing_but_ciphertext_depends_on_weights_under_one_bound() -> None:
    """Tiny weights, zeros and large ones: the same lengths, the same exponents, the same header."""
    context = context_of(2)
    loud = random_weights(0)
    public = []
    for scale in (0.0, 1e-9, 1.0):
        quiet = {k: v * scale if v.is_floating_point() else v for k, v in loud.items()}
        uploads = uploads_of({"client-0": quiet, "client-1": random_weights(1, 50.0)}, context)
        public.append(with_ciphertexts(parsed(uploads["client-0"]), []))
        assert len(uploads["client-0"]) == len(uploads["client-1"])
    assert public[0] == public[1] == public[2]


def test_equal_weights_never_give_equal_ciphertexts() -> None:
    same = dict.fromkeys(CONTEXT.cohort, WEIGHTS["client-0"])
    numbers = [
        number
        for _ in range(3)
        for upload in uploads_of(same, CONTEXT).values()
        for number in ciphertexts(parsed(upload))
    ]
    assert len({number % N for number in numbers}) == len(numbers)


# a malicious server, with all that it knows: the modulus and the uploads


def encrypted_zeros(count: int) -> list[mpz]:
    return arithmetic.PublicEncryptor(PUBLIC).encrypt([mpz(0)] * count)


def product(*columns: list[mpz]) -> list[mpz]:
    return arithmetic.add(PUBLIC, columns)


def test_a_server_cannot_pass_one_update_off_as_the_sum() -> None:
    """It encrypts zeros in place of the other clients' contributions; the number of contributions is right."""
    message = parsed(UPLOADS["client-1"])
    alone = ciphertexts(message)
    forged = with_ciphertexts(message, product(alone, encrypted_zeros(len(alone)), encrypted_zeros(len(alone))))
    assert refused(forged).endswith("missing or replaced: client-0, client-2")
    # what it would have had: the sum of one, at the right scale
    opened = client().decode_upload(forged, {}, CONTEXT.share("client-1"))
    assert largest_difference(opened, WEIGHTS["client-1"]) <= 2.0**-22


def test_a_single_ciphertext_of_another_sum_is_noticed() -> None:
    message = parsed(GLOBAL)
    numbers = ciphertexts(message)
    alone = ciphertexts(parsed(UPLOADS["client-1"]))
    reason = refused(with_ciphertexts(message, [*numbers[:-1], alone[-1]]))
    assert f"1 of {len(numbers)} ciphertexts have a wrong tag" in reason
    assert reason.endswith("missing or replaced: client-0, client-2")


def test_contributions_left_out_are_noticed() -> None:
    message = parsed(GLOBAL)
    first, second, third = (ciphertexts(parsed(upload)) for upload in UPLOADS.values())
    assert refused(with_ciphertexts(message, product(first, third))).endswith("missing or replaced: client-1")
    zeros = encrypted_zeros(len(first))
    assert refused(with_ciphertexts(message, product(first, second, zeros))).endswith("missing or replaced: client-2")
    assert refused(with_ciphertexts(message, zeros)).endswith("missing or replaced: client-0, client-1, client-2")


def test_contributions_counted_twice_are_noticed() -> None:
    """Of values so small that the sum stays within its bounds: only the tags can tell."""
    weights = {name: random_weights(seed, 1e-3) for seed, name in enumerate(CONTEXT.cohort)}
    weights["client-2"] = random_weights(2, 8.0)
    uploads = uploads_of(weights, CONTEXT)
    first, second, third = (ciphertexts(parsed(upload)) for upload in uploads.values())
    for columns in ([first, first, second, third], [first, first, third]):
        assert "counted twice" in refused(with_ciphertexts(parsed(uploads["client-0"]), product(*columns)))


def test_ciphertexts_in_another_order_are_noticed() -> None:
    message = parsed(GLOBAL)
    numbers = ciphertexts(message)
    assert "wrong tag" in refused(with_ciphertexts(message, [numbers[1], numbers[0], *numbers[2:]]))


def test_a_contribution_of_another_round_is_noticed() -> None:
    message = parsed(GLOBAL)
    first, second, _ = (ciphertexts(parsed(upload)) for upload in UPLOADS.values())
    earlier = uploads_of(WEIGHTS, context_of(3, number=3))
    old = ciphertexts(parsed(earlier["client-2"]))
    assert "7 of 7 ciphertexts have a wrong tag" in refused(with_ciphertexts(message, product(first, second, old)))


LIES: dict[str, Callable[[PaillierMessage], PaillierMessage]] = {
    "another round": lambda m: replace(m, occasion=replace(m.occasion, round=5)),
    "larger values": lambda m: replace(
        m, occasion=replace(m.occasion, exponents=tuple(e + 1 for e in m.occasion.exponents))
    ),
    "another client": lambda m: replace(m, occasion=replace(m.occasion, cohort=("client-0", "client-1", "client-7"))),
    "another order": lambda m: replace(m, occasion=replace(m.occasion, cohort=m.occasion.cohort[::-1])),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_server_that_lies_about_the_sum_is_refused(lie: Callable[[PaillierMessage], PaillierMessage]) -> None:
    assert "contributions" in refused(lie(parsed(GLOBAL)).to_bytes())


@pytest.mark.parametrize("claimed", [("client-1",), ("client-1", "client-2")])
def test_one_update_is_not_the_sum_of_a_smaller_cohort(claimed: tuple[str, ...]) -> None:
    """The contribution was tagged for the cohort of three, and is not what a cohort of one would have sent."""
    message = parsed(UPLOADS["client-1"])
    packing = {size: PackedFixedPoint(BITS, size).slot_bits for size in (len(claimed), 3)}
    assert len(claimed) == 1 or packing[2] == packing[3]  # slots of one width: only the tags can tell
    refused(replace(message, occasion=replace(message.occasion, cohort=claimed)).to_bytes())


def test_honest_servers_refuse_what_does_not_belong_together() -> None:
    other_round = uploads_of(WEIGHTS, context_of(3, number=5))
    wrong = {**UPLOADS, "client-1": other_round["client-1"]}
    for uploads in (wrong, {name: UPLOADS[name] for name in ("client-0", "client-1")}):
        with pytest.raises(MalformedMessage, match="another round or cohort"):
            combined(uploads, CONTEXT)


# bytes and numbers that are no message


@pytest.mark.parametrize(
    ("number", "reason"),
    [(mpz(0), "outside"), (N * N, "outside"), (N, "shares a factor"), (mpz(KEYS.private_key.p) * 3, "shares a factor")],
    ids=["zero", "n squared", "n", "multiple of p"],
)
def test_what_is_no_ciphertext_is_refused_by_client_and_server(number: mpz, reason: str) -> None:
    message = parsed(GLOBAL)
    assert reason in refused(with_ciphertexts(message, [*ciphertexts(message)[:-1], number]))
    upload = parsed(UPLOADS["client-2"])
    spoilt = with_ciphertexts(upload, [number, *ciphertexts(upload)[1:]])
    with pytest.raises(MalformedMessage, match=reason):
        combined({**UPLOADS, "client-2": spoilt}, CONTEXT)


@pytest.mark.parametrize("length", [0, -1, 1])
def test_another_length_is_refused(length: int) -> None:
    message = parsed(GLOBAL)
    content = message.ciphertexts[:length] if length <= 0 else message.ciphertexts + b"\0"
    assert "Paillier ciphertexts of 128 bytes" in refused(replace(message, ciphertexts=content).to_bytes())


def test_another_key_opens_nothing() -> None:
    other = ClientKeys(generate_keypair(BITS, random.Random(8).randbytes, allow_small=True), KEYS.tag_secret)
    with pytest.raises(MalformedMessage):
        client(client_keys=other).decode(GLOBAL)
    with pytest.raises(MalformedMessage):
        client(client_keys=other).decode_upload(UPLOADS["client-0"], {}, 0.3)


def test_another_tag_secret_refuses_an_honest_sum() -> None:
    with pytest.raises(MalformedMessage, match="wrong tag"):
        client(client_keys=replace(KEYS, tag_secret=bytes(32))).decode(GLOBAL)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_sent(value: float) -> None:
    spoilt = random_weights(1)
    spoilt["0.bias"][3] = value
    with pytest.raises(TrainingError):
        client().encode_initial(spoilt, CONTEXT)
    with pytest.raises(TrainingError):
        client().offer(BOUNDS, spoilt, CONTEXT)


def test_weights_over_the_agreed_bound_are_not_sent() -> None:
    sender = client()
    (offer,) = sender.offer(BOUNDS, WEIGHTS["client-0"], replace(CONTEXT, cohort=CONTEXT.cohort))
    sender.take(BOUNDS, [offer], CONTEXT)
    with pytest.raises(TrainingError, match="outside its agreed bound"):
        sender.encode(random_weights(0, 100.0), {}, CONTEXT)


def test_agreed_bounds_below_the_own_are_refused() -> None:
    loud, quiet = client("client-0"), client("client-1")
    loud.offer(BOUNDS, random_weights(0, 100.0), CONTEXT)
    (low,) = quiet.offer(BOUNDS, random_weights(1, 0.01), CONTEXT)
    with pytest.raises(MalformedMessage, match="below those that it offered"):
        loud.take(BOUNDS, [low], CONTEXT)
    with pytest.raises(MalformedMessage, match="got 0 agreed bounds"):
        loud.take(BOUNDS, [], CONTEXT)


# keys


def test_the_server_gets_the_modulus_alone() -> None:
    network = smallest_stand_in()
    stage = Paillier()
    material = {name: stage.draw_keys(network, name, ROOT) for name in ("client-0", "client-1", SERVER)}
    assert material["client-0"] == material["client-1"]
    assert material[SERVER] == KeyMaterial(b"", material["client-0"].public)
    held = ClientKeys.from_bytes(material["client-0"].secret)
    assert held.public == material[SERVER].public
    assert held.private_key.public_key.n.bit_length() == 2048
    assert ClientKeys.from_bytes(held.to_bytes()) == held
    other = stage.draw_keys(network, "client-0", ROOT.derive("another"))
    assert other.secret[:32] != held.tag_secret
    assert held.tag_secret not in material[SERVER].public
    assert held.tag_secret.hex() not in repr(held)
    assert (stage.opens(material["client-0"]), stage.opens(material[SERVER])) == (True, False)
    with pytest.raises(MalformedMessage, match="not the one of the public modulus"):
        stage.client("client-0", KeyMaterial(held.to_bytes(), other.public), network)


def test_the_leaky_twin_publishes_all_that_clients_hold() -> None:
    network = smallest_stand_in()
    twin = Paillier().leaky_twin()
    material = twin.draw_keys(network, SERVER, ROOT)
    assert material == KeyMaterial(public=Paillier().draw_keys(network, "client-0", ROOT).secret)
    weights = network.build().state_dict()
    initial = twin.client("client-0", material, network).encode_initial(weights, CONTEXT)
    opened = twin.client("reader", material, network).decode(initial)
    assert largest_difference(opened, weights) < 1e-6
    assert isinstance(twin.server(material, network), PaillierServer)


@pytest.mark.parametrize("data", [b"", bytes(32), bytes(33), bytes(31)])
def test_what_are_no_client_keys_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="Paillier"):
        ClientKeys.from_bytes(data)


def test_the_server_cannot_rekey() -> None:
    with pytest.raises(UsageError, match="cannot open"):
        server().remap(GLOBAL, lambda weights: weights)
