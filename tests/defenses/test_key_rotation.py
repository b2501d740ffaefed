"""Key rotation and revocation: the model goes on unopened, and who can read what afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from defenses.keynet.channel import ChannelTransform
from defenses.keynet.defense import KeyNet
from defenses.keynet.keys import ChannelKeys
from defenses.keynet.rekeying import EVERY_CLIENT, KeyNetServer, draw_in_frame
from defenses.keyrings import keyring_from_bytes
from defenses.paillier.protocol import Paillier
from defenses.plain import Plain
from defenses.quantization import Quantization
from defenses.stack import Stack
from defenses.stages import KeyMaterial, KeyRequest
from federation.errors import KeyholeError, MalformedMessage, UsageError
from federation.messages import KEY_AGENT, SERVER, raw_tensors_from_bytes, tensors_from_bytes, tensors_to_bytes
from federation.protocol import Phase
from federation.secret_root import SecretRoot
from federation.threat import PlainModel, Position
from federation.weights import Weights, largest_difference

KINDS = [
    KeyNet(rotation=1),
    KeyNet(gain_range=1.0, rotation=1),
    KeyNet(kind="soft", rotation=1),
    KeyNet(kind="orthogonal", rotation=1),
    KeyNet(outputs="monomial", rotation=1),
]


def off(one: Weights, other: Weights) -> float:
    """Mean absolute difference over mean absolute value, over all floating-point tensors."""
    pairs = [(a.double(), other[name].double()) for name, a in one.items() if a.is_floating_point()]
    return sum(float((a - b).abs().sum()) for a, b in pairs) / sum(float(b.abs().sum()) for _, b in pairs)


@pytest.mark.parametrize("keynet", KINDS, ids=lambda k: f"{k.kind}-{k.gain_range:g}-{k.outputs}")
def test_rounds_under_rotation_are_federated_averaging(keyed: Callable[..., Any], keynet: KeyNet) -> None:
    federation = keyed(keynet)
    expected = federation.initial
    for number in range(4):
        record = federation.play(number)
        bound = federation.bound(record)
        for reference in record.references.values():
            assert largest_difference(reference, expected) <= bound
        expected = federation.mean(record)
    assert largest_difference(federation.released(4), expected) <= bound


def test_permutations_rotate_without_any_error(keyed: Callable[..., Any]) -> None:
    rotating, plain = keyed(KeyNet(gain_range=1.0, rotation=1)), keyed(KeyNet(publish_key=True))
    for number in range(3):
        rotating.play(number)
        plain.play(number)
    released = rotating.released(3)
    assert all(torch.equal(released[name], tensor) for name, tensor in plain.released(3).items())


def test_keys_rotate_every_r_rounds(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(rotation=3))
    rounds = [[envelope.receiver for envelope in federation.play(n).transcript.phase(Phase.KEYS)] for n in range(7)]
    assert rounds == [[], [], [], [*federation.clients, SERVER], [], [], [*federation.clients, SERVER]]


def test_the_wire_is_in_another_frame_after_a_rotation(keyed: Callable[..., Any], sent_by: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(rotation=1))
    old = federation.parties.held("client-0")
    federation.play(0)
    record = federation.play(1)
    assert federation.parties.held("client-0") != old
    stale = federation.view(record, Position.CLIENT, {"client-2": old})
    assert not federation.opened(stale, record)
    assert federation.opened(federation.view(record, Position.CLIENT), record) == {"client-2"}
    upload = tensors_from_bytes(sent_by("client-0", record).payload, federation.network.layout, "upload")
    assert off(upload, record.trained["client-0"]) > 0.5


def test_the_servers_frame_never_changes(keyed: Callable[..., Any]) -> None:
    """What a server keeps is of one frame, so that a round may begin from any earlier global message."""
    federation = keyed(KeyNet(rotation=1))
    federation.play(0)
    checkpoint = federation.parties.server.state
    after_round_0 = federation.play(1).references["client-0"]
    federation.play(2)
    with federation.federation.rehearsal(checkpoint):
        assert largest_difference(federation.released(2), after_round_0) < 1e-5


def test_a_client_that_was_away_gets_the_keys_it_missed(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(rotation=1))
    for number in range(3):
        federation.play(number, federation.clients[1:])
    record = federation.play(3)
    assert largest_difference(record.references["client-0"], record.references["client-1"]) == 0
    for number in range(4, 6):
        record = federation.play(number, federation.clients[1:])
    assert largest_difference(federation.released(6), federation.mean(record)) <= federation.bound(record)


def test_quantised_updates_rotate_as_well(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(gain_range=1.5, rotation=1), Quantization(levels=30000))
    expected = federation.initial
    for number in range(3):
        record = federation.play(number)
        assert largest_difference(record.references["client-1"], expected) <= 0.01
        expected = federation.mean(record)


# --- what the server learns --------------------------------------------------------------------------------------------


def test_the_server_brings_all_rounds_to_one_frame_and_opens_none(keyed: Callable[..., Any]) -> None:
    rotating, steady = keyed(KeyNet(rotation=1)), keyed(KeyNet())
    for number in range(3):
        record, same_round = rotating.play(number), steady.play(number)
        view, aligned = rotating.view(record, Position.SERVER), steady.view(same_round, Position.SERVER)
        assert isinstance(view, PlainModel)
        assert view.hidden_by == {"keynet"}
        assert not rotating.opened(view, record)
        # the frame is that of a federation of the same root that never rotates
        assert off(view.after["client-0"], aligned.after["client-0"]) < 1e-5
        outsider = rotating.view(record, Position.EAVESDROPPER)
        assert (off(outsider.after["client-0"], aligned.after["client-0"]) > 0.5) == (number > 0)


@pytest.mark.parametrize("per_client", [False, True])
def test_re_keying_matrices_tell_nothing_of_the_keys(keyed: Callable[..., Any], per_client: bool) -> None:
    """They are the same whatever the server's frame is: all that differs here is the root that gives the frame."""
    network, policy = keyed.network, KeyNet().policy  # type: ignore[attr-defined]

    def drawn(receiver: str, frame: bytes) -> bytes:
        def roots(epoch: int) -> SecretRoot:
            return SecretRoot(frame if epoch == 0 else bytes([epoch]) * 32)

        request = KeyRequest(network, receiver, 3, ("client-0", "client-1"), roots)
        return draw_in_frame(request, policy, per_client=per_client).secret

    frames = b"one frame" * 4, b"another frame" * 4
    assert drawn(SERVER, frames[0]) == drawn(SERVER, frames[1]) != b""
    assert drawn("client-0", frames[0]) != drawn("client-0", frames[1])


def test_one_clients_keys_and_the_re_keying_matrices_give_the_servers_frame(keyed: Callable[..., Any]) -> None:
    """(V F) and V give F = V^-1 (V F), and with it the keys of every other epoch."""
    federation = keyed(KeyNet(rotation=1))
    first = keys_held(federation, "client-0")
    for number in range(3):
        federation.play(number)
    later, veil = keys_held(federation, "client-0"), veil_held(federation)
    for found, key, between in zip(first.monomial, later.monomial, veil.monomial, strict=True):
        assert np.array_equal(found.permutation, key.permutation[np.argsort(between.permutation)])
        assert found.gains == pytest.approx((key.gains / between.gains)[np.argsort(between.permutation)])


def test_the_server_with_one_client_opens_everything(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(rotation=1))
    for number in range(3):
        record = federation.play(number)
        for position in (Position.COLLUSION, Position.KEY_AGENT):
            view = federation.view(record, position)
            assert view.hidden_by == frozenset()
            assert federation.opened(view, record) == set(federation.clients)


def keys_held(federation: Any, client: str) -> ChannelKeys:
    ring = keyring_from_bytes(federation.parties.held(client), federation.defense.stages, client)
    return ChannelKeys.from_bytes(ring["keynet"].secret, federation.network.channels)


def veil_held(federation: Any) -> ChannelKeys:
    ring = keyring_from_bytes(federation.parties.held(SERVER), federation.defense.stages, SERVER)
    tensors = raw_tensors_from_bytes(ring["keynet"].secret, "veils")
    named = {name.removeprefix(f"{EVERY_CLIENT}/"): tensor for name, tensor in tensors.items()}
    return ChannelKeys.from_bytes(tensors_to_bytes(named), federation.network.channels)


# --- revocation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keynet", [KeyNet(rotation=100), KeyNet(per_client=True), KeyNet(rotation=1, per_client=True)])
def test_a_revoked_client_reads_nothing_that_comes_later(keyed: Callable[..., Any], keynet: KeyNet) -> None:
    federation = keyed(keynet)
    federation.play(0)
    outcast, rest = federation.clients[-1], federation.clients[:-1]
    kept = federation.parties.held(outcast)
    federation.agent.revoke(outcast)
    record = federation.play(1, rest)
    assert [envelope.receiver for envelope in record.transcript.phase(Phase.KEYS)] == [*rest, SERVER]
    # even with every byte on the wire
    wire = federation.view(record, Position.EAVESDROPPER, {outcast: kept})
    assert not federation.opened(wire, record)
    # the others go on
    later = federation.play(2, rest)
    assert largest_difference(later.references[rest[0]], federation.mean(record)) <= federation.bound(record)
    # and no server helps the outcast in the rounds' own ways
    with pytest.raises(UsageError, match="were revoked"):
        federation.play(3, federation.clients)
    with pytest.raises(UsageError, match="were revoked"):
        federation.released(3, outcast)


def test_all_others_get_new_keys_at_once(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(rotation=100))
    federation.agent.revoke("client-0")
    record = federation.play(0, ["client-1"])
    assert [envelope.receiver for envelope in record.transcript.phase(Phase.KEYS)] == ["client-1", "client-2", SERVER]


def test_a_revoked_client_and_the_server_read_on(keyed: Callable[..., Any]) -> None:
    """The limit that `rekeying` states: an old key and the re-keying matrices of both epochs give the new one."""
    federation = keyed(KeyNet(rotation=1))
    old = keys_held(federation, "client-2")  # of epoch 0, where the frame is the server's own
    federation.agent.revoke("client-2")
    record = federation.play(0, federation.clients[:2])
    view = federation.view(record, Position.SERVER)
    opened = ChannelTransform(old, federation.network.channels).recover(view.after["client-0"])
    assert largest_difference(opened, record.trained["client-0"]) <= federation.bound(record)


def test_who_cannot_be_revoked(keyed: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="keynet cannot be revoked"):
        keyed(KeyNet()).agent.revoke("client-0")
    federation = keyed(KeyNet(rotation=9))
    for name in ("client-9", SERVER):
        with pytest.raises(UsageError, match="cannot be revoked; clients with keys"):
            federation.agent.revoke(name)
    federation.agent.revoke("client-0")
    federation.agent.revoke("client-1")
    for name in ("client-0", "client-2"):
        with pytest.raises(UsageError, match="one has to stay"):
            federation.agent.revoke(name)


# --- bad input ---------------------------------------------------------------------------------------------------------


def test_keys_follow_from_the_root_in_every_epoch(keyed: Callable[..., Any]) -> None:
    def held(root: bytes) -> dict[str, bytes]:
        federation = keyed(KeyNet(rotation=1), root=SecretRoot(root * 32))
        for number in range(2):
            federation.play(number)
        return {name: federation.parties.held(name) for name in (*federation.clients, SERVER, KEY_AGENT)}

    assert held(b"a") == held(b"a")
    assert all(one != other for one, other in zip(held(b"a").values(), held(b"b").values(), strict=True))


@pytest.mark.parametrize("codec", [Paillier(), Paillier(publish_key=True)])
def test_what_the_server_cannot_read_it_cannot_re_key(codec: Paillier) -> None:
    with pytest.raises(UsageError, match="re-keys weights that it can read"):
        Stack("x", [KeyNet(rotation=2), codec])
    Stack("x", [KeyNet(), codec])
    with pytest.raises(UsageError, match="must be the only one and stand last"):
        Stack("x", [KeyNet(rotation=2), KeyNet(), Plain()])


def test_options_out_of_range() -> None:
    with pytest.raises(UsageError, match="every 1 round or more"):
        KeyNet(rotation=0)
    with pytest.raises(UsageError, match="products of 2 keys leave the bound of gains"):
        KeyNet(gain_range=2.0**11, rotation=1)
    with pytest.raises(UsageError, match="condition number of"):
        KeyNet(kind="soft", gain_range=3.0, per_client=True)


def test_other_re_keying_matrices_are_refused(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(per_client=True))
    channels, policy = federation.network.channels, KeyNet().policy
    ring = keyring_from_bytes(federation.parties.held(SERVER), federation.defense.stages, SERVER)
    tensors = raw_tensors_from_bytes(ring["keynet"].secret, "veils")

    def server(changed: dict[str, torch.Tensor]) -> KeyNetServer:
        return KeyNetServer(KeyMaterial(secret=tensors_to_bytes(changed)), channels, policy)

    assert not server(tensors).alike
    name = "client-1/1.gains"
    cases = {
        "missing": {key: tensor for key, tensor in tensors.items() if key != name},
        "not a number": {**tensors, name: tensors[name] * float("nan")},
        "another size": {**tensors, name: tensors[name][:-1]},
        "every client and one": tensors
        | {f"{EVERY_CLIENT}/{key[9:]}": tensor.clone() for key, tensor in tensors.items() if "-0/" in key},
        "no client": {**tensors, "1.gains": tensors[name].clone()},
    }
    for changed in cases.values():
        with pytest.raises(MalformedMessage, match="re-keying matrices"):
            server(changed)
    with pytest.raises(KeyholeError, match="no re-keying matrices for client-7"):
        server(tensors).admit("client-7", federation.initial)


def test_rotating_federations_are_public_about_it() -> None:
    keynet = KeyNet(rotation=4)
    assert "server (re-keying matrices)" in keynet.key_holders
    assert keynet.options()["rotation"] == 4
    twin = replace(keynet, per_client=True).leaky_twin()
    assert not twin.rekeys
    assert twin.key_epoch(100) == 0
