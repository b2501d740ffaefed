"""CKKS by TenSEAL: keys of the root, exact sums, the stated error, and messages that somebody has tampered with."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

sealapi = pytest.importorskip("tenseal.sealapi", reason="needs the extra: pip install 'keyhole[ckks]'")

from benchmark.audit.chosen import ChosenFederation, chosen, spread_weights  # noqa: E402
from benchmark.audit.stand_in import smallest_stand_in, stand_in  # noqa: E402
from defenses.base import Claim, Magnitudes  # noqa: E402
from defenses.ckks import scheme  # noqa: E402
from defenses.ckks.grid import LARGEST, SCALE, UNIT, from_slots, to_slots  # noqa: E402
from defenses.ckks.message import CkksMessage  # noqa: E402
from defenses.ckks.protocol import SEED_BYTES, Ckks, CkksClient  # noqa: E402
from defenses.ckks.ring import CIPHERTEXT_BYTES, DEGREE, LARGEST_SUM, MODULUS, WORDS, add  # noqa: E402
from defenses.ckks.scheme import Scheme  # noqa: E402
from defenses.registry import build_defense  # noqa: E402
from defenses.stages import KeyMaterial  # noqa: E402
from federation.errors import MalformedMessage, TrainingError, UsageError  # noqa: E402
from federation.messages import SERVER, client_name  # noqa: E402
from federation.protocol import Phase, RoundContext  # noqa: E402
from federation.secret_root import SecretRoot  # noqa: E402
from federation.seeds import torch_generator  # noqa: E402
from federation.weights import Layout, Weights, largest_difference, weighted_mean  # noqa: E402

ROOT = SecretRoot(b"tests of ckks..................." * 2)
SEED = ROOT.stream(SEED_BYTES)
LAYOUT = stand_in().layout


@pytest.fixture(scope="module")
def one() -> Scheme:
    return Scheme(SEED)


def random_slots(seed: int, magnitude: float = 1.0) -> np.ndarray:
    return to_slots(np.random.default_rng(seed).uniform(-magnitude, magnitude, DEGREE - 1))


def client(name: str = "client-0", seed: bytes = SEED, layout: Layout = LAYOUT, minimum: int = 2) -> CkksClient:
    return CkksClient(name, seed, layout, minimum)


def context(count: int) -> RoundContext:
    names = tuple(map(client_name, range(count)))
    return RoundContext(0, names, {name: 3 + index for index, name in enumerate(names)}, torch_generator("test"))


def weights(seed: int, largest: float = 1.0) -> Weights:
    return spread_weights(LAYOUT, torch_generator("ckks", seed), smallest=0.0, largest=largest, counter=seed)


def contributions(count: int, largest: float = 1.0) -> tuple[dict[str, bytes], Weights]:
    """Uploads of a cohort, and the plain mean of what is in them."""
    round_context, sent = context(count), [weights(seed, largest) for seed in range(count)]
    uploads = {
        name: client(name).encode(sent[index], {}, round_context) for index, name in enumerate(round_context.cohort)
    }
    return uploads, weighted_mean(LAYOUT, sent, [round_context.share(name) for name in round_context.cohort])


def combined(uploads: dict[str, bytes]) -> bytes:
    server = Ckks().server(KeyMaterial(), stand_in())
    return server.combine(uploads, b"", context(len(uploads)), lambda sender, received: received)


def test_seal_agrees_on_the_parameters() -> None:
    assert [modulus.value() for modulus in sealapi.CoeffModulus.Create(DEGREE, [56])] == [MODULUS]
    assert sealapi.CoeffModulus.MaxBitCount(DEGREE, sealapi.SEC_LEVEL_TYPE.TC256) >= MODULUS.bit_length()
    assert scheme._context().first_context_data().parms().poly_modulus_degree() == DEGREE


def test_a_key_is_a_function_of_its_seed_and_only_its_own_opens(one: Scheme) -> None:
    slots = random_slots(0)
    words = one.encrypt(slots)
    assert np.abs(Scheme(SEED).decrypt(words) - slots).max() < UNIT / 2
    other = Scheme(bytes([SEED[0] ^ 1]) + SEED[1:]).decrypt(words)
    assert np.median(np.abs(other)) > LARGEST


def test_encryption_is_fresh_every_time_and_with_every_object_of_a_seed(one: Scheme) -> None:
    slots = random_slots(0)
    ciphertexts = [one.encrypt(slots), one.encrypt(slots), Scheme(SEED).encrypt(slots)]
    assert all((first != second).all() for first, second in pairwise(ciphertexts))


def test_coefficients_are_those_that_seal_reports(one: Scheme) -> None:
    ciphertext = one._encrypted(random_slots(0)[0])
    with tempfile.TemporaryDirectory() as folder:
        content = scheme._saved(ciphertext, Path(folder))[1]
    assert scheme._coefficients(content).tolist() == [ciphertext[index] for index in range(WORDS)]
    assert ciphertext.size() * ciphertext.poly_modulus_degree() == WORDS


def test_sums_are_those_of_seal(one: Scheme) -> None:
    plain = [random_slots(seed)[0] for seed in range(3)]
    ciphertexts, total = [one._encrypted(row) for row in plain], sealapi.Ciphertext()
    sealapi.Evaluator(one._context).add_many(ciphertexts, total)
    words = [np.array([[ciphertext[index] for index in range(WORDS)]], np.uint64) for ciphertext in ciphertexts]
    assert add(words)[0].tolist() == [total[index] for index in range(WORDS)]


def test_the_noise_has_the_deviation_of_the_bound(one: Scheme) -> None:
    slots = np.concatenate([random_slots(seed) for seed in range(8)])
    noise = (one.decrypt(one.encrypt(slots)) - slots) * SCALE
    assert noise.std() == pytest.approx((DEGREE / 2 * 10.75) ** 0.5, rel=0.03)
    assert np.abs(noise).max() < 6.5 * noise.std()


def test_the_largest_sum_is_exact(one: Scheme) -> None:
    slots = np.concatenate([random_slots(seed, 1 / LARGEST_SUM) for seed in range(LARGEST_SUM)])
    words = one.encrypt(slots)
    decrypted = one.decrypt(add([row[None] for row in words]))
    exact = np.rint(slots / UNIT).sum(axis=0)
    noise = np.abs(decrypted / UNIT - exact).max()
    assert 0.05 < noise < 0.25, "about 148 * 16 * 4 / 2^16 units"
    assert np.array_equal(np.rint(decrypted[0] / UNIT), exact)
    recovered = from_slots(decrypted, DEGREE - 1, LARGEST_SUM, "test")
    assert np.array_equal(recovered, exact[:-1] * UNIT)


@pytest.mark.parametrize("pattern", ["all", "alternating", "random signs"])
def test_the_largest_values_are_carried(one: Scheme, pattern: str) -> None:
    signs = {
        "all": np.ones(DEGREE - 1),
        "alternating": np.tile([1.0, -1.0], DEGREE // 2)[:-1],
        "random signs": np.random.default_rng(0).choice([-1.0, 1.0], DEGREE - 1),
    }[pattern]
    words = one.encrypt(to_slots(LARGEST * signs))
    assert np.array_equal(from_slots(one.decrypt(words), DEGREE - 1, 1, "test"), LARGEST * signs)


@pytest.mark.parametrize(("count", "largest"), [(2, 1.0), (2, LARGEST), (7, 0.05), (20, 3.0)])
def test_the_mean_is_recovered_within_the_stated_error(count: int, largest: float) -> None:
    uploads, mean = contributions(count, largest)
    recovered = client().decode(combined(uploads))
    off = largest_difference(recovered, mean)
    assert off <= Ckks().stated_error(Magnitudes(largest, largest, count))
    assert off > UNIT / 8, "the grid shows"


def test_what_is_recovered_depends_on_the_weights_alone() -> None:
    first, second = (client().decode(combined(contributions(3)[0])) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_counters_take_the_largest() -> None:
    recovered = client().decode(combined(contributions(3)[0]))
    counter = next(spec.name for spec in LAYOUT if not spec.dtype.is_floating_point)
    assert int(recovered[counter]) == 2


def test_messages_have_one_length_of_fourteen_bytes_a_value() -> None:
    assert 14 * DEGREE == CIPHERTEXT_BYTES
    lengths = {len(client().encode(weights(seed, largest), {}, context(2))) for seed, largest in ((1, 1e-6), (1, 1e3))}
    assert len(lengths) == 1
    assert CIPHERTEXT_BYTES < lengths.pop() < CIPHERTEXT_BYTES + 400


def test_nothing_stays_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client().decode(combined(contributions(2)[0]))
    assert list(tmp_path.iterdir()) == []


def test_the_server_gets_no_key_and_reads_no_weights() -> None:
    federation = ChosenFederation(build_defense("ckks"), stand_in(), ROOT)
    opening = federation.start(weights(0))
    assert opening.phase(Phase.KEYS)
    assert all(envelope.receiver != SERVER for envelope in opening.phase(Phase.KEYS))
    assert federation.parties.server.held() == b""
    record = federation.play(0, dict.fromkeys(federation.parties.clients, chosen(weights(1))))
    for envelope in record.transcript.phase(Phase.UPLOAD):
        assert weights(1)["0.weight"].numpy().tobytes() not in envelope.payload


def test_small_cohorts_and_large_ones_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no round of 1 \(minimum_parties is 2\)"):
        client().encode(weights(0), {}, context(1))
    with pytest.raises(UsageError, match="no round of 4"):
        client(minimum=5).encode(weights(0), {}, context(4))
    with pytest.raises(UsageError, match="256 contributions at most, not 257"):
        client().encode(weights(0), {}, context(257))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.01 * LARGEST])
def test_values_that_cannot_be_carried_are_refused_by_name(value: float) -> None:
    broken = weights(0)
    broken["0.weight"].view(-1)[3] = value
    with pytest.raises(TrainingError, match=r"tensor '0.weight' holds"):
        client().encode(broken, {}, context(2))


@pytest.mark.parametrize("seed", [b"", SEED[:-1], SEED + b"\0"])
def test_a_key_of_another_length_is_refused(seed: bytes) -> None:
    with pytest.raises(MalformedMessage, match="a CKKS key has 64 bytes"):
        Ckks().client("client-0", KeyMaterial(secret=seed), stand_in())


def test_only_the_leaky_twin_publishes_its_key_and_says_so() -> None:
    honest, twin = Ckks(), Ckks().leaky_twin()
    network = stand_in()
    assert honest.draw_keys(network, SERVER, ROOT) == KeyMaterial()
    assert honest.draw_keys(network, "client-0", ROOT) == KeyMaterial(secret=SEED)
    assert twin.draw_keys(network, SERVER, ROOT) == KeyMaterial(public=SEED)
    assert not honest.opens(KeyMaterial(public=SEED))
    assert twin.opens(KeyMaterial(public=SEED))
    assert set(honest.claims(network).values()) == {Claim.HIDDEN, Claim.PLAIN}
    assert set(twin.claims(network).values()) == {Claim.PLAIN}


def test_a_sum_of_other_contributions_than_stated_is_refused() -> None:
    uploads, _ = contributions(3)
    message = CkksMessage.from_bytes(combined(uploads), LAYOUT, "test")
    one_missing = CkksMessage(message.words, 2, message.counters).to_bytes()
    with pytest.raises(MalformedMessage, match="the sum of 3 contributions, not of 2"):
        client().decode(one_missing)
    with pytest.raises(MalformedMessage, match="contribution of client-1: the sum of 3"):
        combined({"client-0": uploads["client-0"], "client-1": combined(uploads)})


@pytest.mark.parametrize("filling", [0, 1, MODULUS - 1])
def test_ciphertexts_of_nothing_are_refused(filling: int) -> None:
    words = np.full((1, WORDS), filling, np.uint64)
    message = CkksMessage.from_bytes(contributions(2)[0]["client-0"], LAYOUT, "test")
    with pytest.raises(MalformedMessage):
        client().decode(CkksMessage(words, 1, message.counters).to_bytes())


def test_another_key_and_another_layout_are_refused() -> None:
    payload = combined(contributions(2)[0])
    with pytest.raises(MalformedMessage, match="beyond"):
        client(seed=SEED[::-1]).decode(payload)
    with pytest.raises(MalformedMessage):
        client(layout=smallest_stand_in().layout).decode(payload)


def test_flipped_bits_and_cut_messages_are_refused_or_show() -> None:
    payload = combined(contributions(2)[0])
    generator, reader = np.random.default_rng(0), client()
    genuine = reader.decode(payload)
    for _ in range(150):
        changed = bytearray(payload)
        for position in generator.integers(0, len(payload), generator.integers(1, 4)):
            changed[position] ^= 1 << int(generator.integers(8))
        try:
            recovered = reader.decode(bytes(changed))
        except MalformedMessage:
            continue
        assert any(not torch.equal(recovered[name], genuine[name]) for name in genuine) or changed == payload
    for length in generator.integers(0, len(payload), 30):
        with pytest.raises(MalformedMessage):
            reader.decode(payload[:length])


def test_random_ciphertexts_are_refused() -> None:
    generator, reader = np.random.default_rng(0), client()
    counters = CkksMessage.from_bytes(contributions(2)[0]["client-0"], LAYOUT, "test").counters
    for _ in range(30):
        words = generator.integers(0, MODULUS, (1, WORDS), dtype=np.uint64)
        with pytest.raises(MalformedMessage, match="beyond"):
            reader.decode(CkksMessage(words, int(generator.integers(1, 257)), counters).to_bytes())
