"""Stacks of stages: what they are made of, what they claim and state, who holds their keys, how they are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from benchmark.audit.stand_in import smallest_stand_in
from defenses.base import Claim, Magnitudes, uniform_claim
from defenses.keynet.defense import KeyNet
from defenses.keyrings import keyring_from_bytes, keyring_to_bytes, keyrings_from_bytes
from defenses.paillier.protocol import Paillier
from defenses.plain import Plain
from defenses.registry import build_defense
from defenses.stack import Stack
from defenses.stages import ClientTransform, KeyMaterial, Stage, Transform
from federation.errors import KeyholeError, MalformedMessage, UsageError
from federation.messages import KEY_AGENT, SERVER, Envelope
from federation.network import Network
from federation.protocol import Phase
from federation.rounds import Federation
from federation.sealing import seal
from federation.secret_root import SecretRoot
from federation.weights import Weights

ROOT = SecretRoot(b"unit tests of stacks" * 2)
CLIENTS = ("client-0", "client-1")
COUNTS = dict.fromkeys(CLIENTS, 1)


@dataclass(frozen=True)
class Scaling(Transform):
    """States an error of its own and grows what lies further out."""

    error: float
    growth: float

    name: ClassVar[str] = "scaling"

    @property
    def amplification(self) -> float:
        return self.growth

    def claims(self, network: Network) -> Mapping[str, Claim]:
        return uniform_claim(network.layout, Claim.TRANSFORMED)

    def stated_error(self, magnitudes: Magnitudes) -> float:
        return self.error * magnitudes.weights

    def leaky_twin(self) -> Stage:
        return Scaling(0.0, 1.0)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientTransform:
        return ClientTransform()


@dataclass(frozen=True)
class Rotating(KeyNet):
    """Draws keys anew every two rounds."""

    def key_epoch(self, round_number: int) -> int:
        return round_number // 2


@pytest.mark.parametrize("stages", [[KeyNet()], [Plain(), KeyNet()], [Plain(), Plain()]])
def test_a_stack_is_transforms_and_one_codec(stages: list[Stage]) -> None:
    with pytest.raises(UsageError, match="any number of transforms and then one codec, not"):
        Stack("wrong", stages)


def test_the_strongest_claim_counts() -> None:
    network = smallest_stand_in()
    claims = Stack("both", [KeyNet(), Paillier()]).claims(network)
    assert {claim for name, claim in claims.items() if name != "1.num_batches_tracked"} == {Claim.HIDDEN}
    assert Stack("one", [KeyNet(), Plain()]).claims(network)["0.weight"] is Claim.TRANSFORMED


def test_the_plain_share_counts_values() -> None:
    network = smallest_stand_in()
    defense = Stack("paillier", [Paillier()])
    assert defense.plain_share(network) == 1 / network.parameter_count
    assert Stack("plain", [Plain()]).plain_share(network) == 1


def test_stated_errors_grow_through_the_transforms_they_come_back_through() -> None:
    # the first errs by 0.1 * 1; the second, on values grown 2-fold, by 0.01 * 2, grown 2-fold on the way back; the
    # codec rounds values grown 6-fold, and comes back through both
    stack = Stack("scaled", [Scaling(0.1, 2.0), Scaling(0.01, 3.0), Plain()])
    expected = 0.1 + 2 * (0.01 * 2) + 6 * (6 * 2.0**-24)
    assert stack.stated_error(Magnitudes(1.0, 1.0, 2)) == pytest.approx(expected)


def test_the_scheme_is_public_and_complete() -> None:
    scheme = build_defense("keynet").scheme()
    keys = {"gain_range": 2.0, "outputs": "permutation", "kind": "monomial", "alpha": 4, "dominance": 0.625}
    frames = {"publish_key": False, "rotation": None, "per_client": False}
    assert scheme == {"keynet": keys | frames, "plain": {}}
    twin = build_defense("keynet").leaky_twin().scheme()
    assert twin["keynet"]["publish_key"] is True


def test_who_holds_keys_is_said_in_words() -> None:
    defense = Stack("both", [KeyNet(), Paillier()])
    assert defense.key_holders == "key agent and every client (one key); every client (one private key)"
    assert defense.collusion_bound == "one client; one client"
    assert build_defense("plain").key_holders == "nobody"


@pytest.mark.parametrize(
    ("name", "stages", "reason"),
    [
        ("keynot", None, "did you mean keynet"),
        ("mine", ["keynet", "pailier"], "did you mean paillier"),
        ("mine", [{"keynet": {"gain": 3}}], "gain"),
        ("mine", [{"keynet": {"gain_range": "wide"}}], "gain_range"),
        ("mine", [{"keynet": {}, "plain": {}}], "one {name: options} pair"),
        ("mine", ["keynet-quantized", "plain"], "a whole defense cannot be a stage"),
        ("mine", ["plain", "keynet"], "one codec"),
        ("mine", [{"paillier": {"key_bits": 1024}}], "must be 2048 or more"),
    ],
)
def test_an_impossible_stack_is_one_clear_line(name: str, stages: list[object] | None, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_defense(name, stages)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_transforms_without_a_codec_end_in_plain() -> None:
    defense = build_defense("mine", [{"keynet": {"gain_range": 1.5}}])
    assert isinstance(defense, Stack)
    assert defense.stages == (KeyNet(gain_range=1.5), Plain())


def test_a_keyring_survives_the_wire_and_nothing_else_does() -> None:
    stages = (KeyNet(), Paillier())
    keyring = {"keynet": KeyMaterial(b"secret", b""), "paillier": KeyMaterial(b"", b"public")}
    content = keyring_to_bytes(keyring)
    assert keyring_from_bytes(content, stages, "test") == keyring
    for wrong_stages in ((KeyNet(),), (KeyNet(), Paillier(), Plain())):
        with pytest.raises(MalformedMessage, match="not key material for the stages"):
            keyring_from_bytes(content, wrong_stages, "test")


def federation_of(defense: Stack) -> tuple[Federation, Weights]:
    network = smallest_stand_in()
    return Federation(defense.parties(network, CLIENTS, ROOT), COUNTS, seed=0), network.build().state_dict()


def test_a_party_without_keys_says_so() -> None:
    federation, initial = federation_of(Stack("keynet", [KeyNet(), Plain()]))
    federation.start(initial)
    newcomer = Stack("keynet", [KeyNet(), Plain()]).parties(smallest_stand_in(), CLIENTS, ROOT).clients["client-0"]
    (released, _) = federation.release(1, CLIENTS)
    context = federation._context(1, CLIENTS, 0)
    with pytest.raises(KeyholeError, match="has not received its keys"):
        newcomer.recover(released, context)


def test_keys_are_issued_once_an_epoch() -> None:
    defense = Stack("rotating", [Rotating(), Plain()])
    federation, _ = federation_of(defense)
    issued = [[envelope.receiver for envelope in federation.issue_keys(number, CLIENTS)] for number in range(4)]
    assert issued == [list(CLIENTS), [], list(CLIENTS), []]
    before = federation.parties.held("client-0")
    held = keyrings_from_bytes(federation.parties.held(KEY_AGENT), defense.stages, "the agent")
    assert keyring_to_bytes(held["client-0"]) == before
    assert federation.parties.held(SERVER) == b""
    federation.issue_keys(4, CLIENTS[:1])
    assert federation.parties.held("client-0") != before
    assert federation.parties.held("client-1") == before


def test_a_key_message_for_another_party_is_refused() -> None:
    federation, initial = federation_of(Stack("keynet", [KeyNet(), Plain()]))
    (first, second) = federation.start(initial).transcript.phase(Phase.KEYS)
    stolen = Envelope(second.round, second.phase, second.sender, first.receiver, second.payload)
    with pytest.raises(MalformedMessage, match="cannot be opened"):
        federation.parties.clients[first.receiver].receive_key(stolen, federation._context(0, CLIENTS, 0))


def test_keys_that_do_not_fit_leave_a_party_with_those_that_it_had() -> None:
    federation, initial = federation_of(Stack("keynet", [KeyNet(), Plain()]))
    federation.start(initial)
    client = federation.parties.clients["client-0"]
    held = client.held()
    sealed = KeyMaterial(seal(b"no keys at all", client.transport_public), b"")  # type: ignore[attr-defined]
    wrong = keyring_to_bytes({"keynet": sealed, "plain": KeyMaterial()})
    with pytest.raises(MalformedMessage):
        client.receive_key(Envelope(0, Phase.KEYS, KEY_AGENT, client.name, wrong), federation._context(0, CLIENTS, 0))
    assert client.held() == held
    (released, _) = federation.release(0, CLIENTS)
    recovered = federation.recover(released)
    assert all(torch.allclose(recovered[name], tensor, atol=1e-6) for name, tensor in initial.items())


def test_paillier_sends_nothing_in_a_cohort_that_is_too_small() -> None:
    federation, initial = federation_of(Stack("paillier", [Paillier(minimum_parties=2)]))
    federation.start(initial)
    with pytest.raises(UsageError, match="takes part in no round of 1"):
        federation.run_round(0, CLIENTS[:1], lambda client, weights: weights)
