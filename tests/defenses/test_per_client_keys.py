"""Keys of each client's own: the same training, and exactly the stated coalitions can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from defenses.keynet.channel import ChannelTransform
from defenses.keynet.defense import KeyNet
from defenses.keynet.keys import ChannelKeys
from defenses.keynet.rekeying import KeyNetServer
from defenses.keyrings import keyring_from_bytes, keyrings_from_bytes
from defenses.plain import Plain
from defenses.quantization import Quantization
from defenses.stack import Stack
from federation.errors import KeyholeError
from federation.messages import KEY_AGENT, SERVER, client_name, tensors_from_bytes
from federation.models.base import seeded_initialisation
from federation.network import Network
from federation.protocol import ClientParty, Phase
from federation.rounds import Federation
from federation.secret_root import SecretRoot
from federation.threat import AGGREGATE, PlainModel, Position
from federation.training import LocalTraining, train_locally
from federation.weights import Weights, largest_difference, weights_of

ROOT = SecretRoot(b"per-client keys" * 3)
EACH = [
    KeyNet(per_client=True),
    KeyNet(per_client=True, gain_range=1.0),
    KeyNet(per_client=True, rotation=2),
    KeyNet(per_client=True, kind="soft"),
    KeyNet(per_client=True, kind="orthogonal", rotation=1),
]


def named(keynet: KeyNet) -> str:
    return f"{keynet.kind}-{keynet.gain_range:g}-{keynet.rotation}"


# --- the same training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keynet", EACH, ids=named)
def test_rounds_are_federated_averaging(keyed: Callable[..., Any], keynet: KeyNet) -> None:
    federation = keyed(keynet)
    expected = federation.initial
    for number in range(4):
        record = federation.play(number, federation.clients if number != 2 else federation.clients[:2])
        bound = federation.bound(record)
        assert all(largest_difference(reference, expected) <= bound for reference in record.references.values())
        expected = federation.mean(record)
    for client in federation.clients:
        assert largest_difference(federation.released(4, client), expected) <= bound


def small_network() -> nn.Module:
    with seeded_initialisation(3):
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(24, 3),
        )  # fmt: skip


NETWORK = Network(small_network, (1, 8, 8), 3)
CLIENTS = tuple(map(client_name, range(3)))
COUNTS = dict(zip(CLIENTS, (8, 12, 20), strict=True))


def trained(defense: Stack, rounds: int) -> Weights:
    """The global weights after some rounds of SGD on random images."""
    federation = Federation(defense.parties(NETWORK, CLIENTS, ROOT), COUNTS, seed=0)
    federation.start(weights_of(small_network()))
    generator = torch.Generator().manual_seed(1)
    data = {
        name: (torch.randn(count, 1, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator))
        for name, count in COUNTS.items()
    }

    def update(client: ClientParty, weights: Weights) -> Weights:
        local = LocalTraining(batch_size=4, learning_rate=0.05, epochs=1)
        order = torch.Generator().manual_seed(0)
        images, labels = data[client.name]
        return train_locally(
            small_network(), weights, images, labels, local, hooks=client, generator=order, where=client.name
        )

    for number in range(rounds):
        federation.run_round(number, CLIENTS, update)
    return federation.recover(federation.release(rounds, CLIENTS[:1])[0])


@pytest.mark.parametrize("keynet", [KeyNet(rotation=1), *EACH], ids=named)
def test_trained_weights_are_those_of_plain_training(keynet: KeyNet) -> None:
    plain, found = trained(Stack("plain", [Plain()]), 4), trained(Stack("keyed", [keynet, Plain()]), 4)
    assert largest_difference(plain, weights_of(small_network())) > 0.01
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-4, atol=2e-5, msg=name)


def test_updates_may_be_quantised(keyed: Callable[..., Any]) -> None:
    """A quantised update is relative to what its sender received, in the sender's own frame."""
    federation = keyed(KeyNet(per_client=True, gain_range=1.5), Quantization(levels=30000))
    for number in range(3):
        record = federation.play(number)
        assert largest_difference(federation.released(number + 1), federation.mean(record)) <= 0.01


# --- who can read what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keynet", EACH, ids=named)
@pytest.mark.parametrize(
    ("position", "readable"),
    [
        (Position.SERVER, set()),
        (Position.EAVESDROPPER, set()),
        (Position.CLIENT, {"client-2"}),
        (Position.COLLUSION, {"client-0", "client-1", "client-2"}),
        (Position.KEY_AGENT, {"client-0", "client-1", "client-2"}),
    ],
)
def test_every_position_reads_what_it_can(
    keyed: Callable[..., Any], keynet: KeyNet, position: Position, readable: set[str]
) -> None:
    federation = keyed(keynet)
    federation.play(0)
    record = federation.play(1)
    view = federation.view(record, position)
    assert isinstance(view, PlainModel)
    assert federation.opened(view, record) == readable
    assert view.hidden_by == (frozenset() if readable else {"keynet"})
    opened_base = largest_difference(view.before, record.references["client-0"]) <= federation.bound(record)
    assert opened_base == bool(readable)


def test_a_client_on_the_wire_opens_no_other_message(keyed: Callable[..., Any], sent_by: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(per_client=True))
    record = federation.play(0)
    held = {"client-2": federation.parties.held("client-2")}
    view = federation.view(record, Position.EAVESDROPPER, held)
    assert federation.opened(view, record) == {"client-2"}
    assert view.hidden_by == {"keynet"}  # some of what is shown
    # by hand: its keys undo its own upload, and nobody else's
    mine = ChannelTransform(keys_of(federation, "client-2"), federation.network.channels)
    for client, trained_weights in record.trained.items():
        upload = tensors_from_bytes(sent_by(client, record).payload, federation.network.layout, "upload")
        off = largest_difference(mine.recover(upload), trained_weights)
        assert (off <= federation.bound(record)) == (client == "client-2")


def test_two_clients_on_the_wire_do_not_open_a_third(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(per_client=True))
    record = federation.play(0)
    held = {name: federation.parties.held(name) for name in ("client-1", "client-2")}
    assert federation.opened(federation.view(record, Position.EAVESDROPPER, held), record) == set(held)


def test_the_server_and_a_client_open_everyone_by_hand(keyed: Callable[..., Any], sent_by: Callable[..., Any]) -> None:
    """Upload of client-0, V_0^-1 by the server, V_2 by the server, (V_2 F)^-1 by client-2."""
    federation = keyed(KeyNet(per_client=True))
    record = federation.play(0)
    channels = federation.network.channels
    ring = keyring_from_bytes(federation.parties.held(SERVER), federation.defense.stages, SERVER)
    server = KeyNetServer(ring["keynet"], channels, KeyNet().policy)
    upload = tensors_from_bytes(sent_by("client-0", record).payload, federation.network.layout, "upload")
    own_frame = server.address("client-2", server.admit("client-0", upload))
    opened = ChannelTransform(keys_of(federation, "client-2"), channels).recover(own_frame)
    assert largest_difference(opened, record.trained["client-0"]) <= federation.bound(record)


def test_a_revoked_client_and_a_server_that_remembers_read_on(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(per_client=True))
    channels, policy = federation.network.channels, KeyNet().policy

    def server() -> KeyNetServer:
        ring = keyring_from_bytes(federation.parties.held(SERVER), federation.defense.stages, SERVER)
        return KeyNetServer(ring["keynet"], channels, policy)

    old_server, old_keys = server(), keys_of(federation, "client-2")
    federation.agent.revoke("client-2")
    record = federation.play(0, federation.clients[:2])
    in_servers_frame = federation.view(record, Position.SERVER).after["client-0"]
    opened = ChannelTransform(old_keys, channels).recover(old_server.address("client-2", in_servers_frame))
    assert largest_difference(opened, record.trained["client-0"]) <= federation.bound(record)
    with pytest.raises(KeyholeError, match="no re-keying matrices for client-2"):
        server().address("client-2", in_servers_frame)


def test_a_server_sees_differences_an_outsider_does_not(keyed: Callable[..., Any]) -> None:
    """In the server's frame an update is small; an outsider subtracts weights of two frames."""
    federation = keyed(KeyNet(per_client=True))
    federation.trained = lambda client, number, weights: {
        name: tensor * 1.01 if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    record = federation.play(0)

    def moved(position: Position) -> float:
        view = federation.view(record, position)
        return largest_difference(view.after["client-1"], view.before)

    assert moved(Position.SERVER) < 0.1 < moved(Position.EAVESDROPPER)


def test_a_released_model_is_read_as_its_holder_reads_it(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(per_client=True))
    record = federation.play(0)
    released = federation.federation.release(1, federation.clients)
    broadcasts = record.transcript.phase(Phase.BROADCAST)
    held = {"client-2": federation.parties.held("client-2")}
    view = federation.defense.view(
        type(released)([*broadcasts, *released]),
        Position.AGGREGATE,
        held,
        network=federation.network,
        sample_counts=federation.counts,
    )
    assert view.hidden_by == frozenset()
    assert largest_difference(view.after[AGGREGATE], federation.mean(record)) <= federation.bound(record)


def test_keys_of_clients_differ_and_the_agent_holds_them_all(keyed: Callable[..., Any]) -> None:
    federation = keyed(KeyNet(per_client=True))
    held = keyrings_from_bytes(federation.parties.held(KEY_AGENT), federation.defense.stages, "the agent")
    assert set(held) == {*federation.clients, SERVER}
    secrets = [ring["keynet"].secret for ring in held.values()]
    assert len(set(secrets)) == 4
    permutations = [keys_of(federation, client).monomial[1].permutation for client in federation.clients]
    assert not any(np.array_equal(permutations[0], other) for other in permutations[1:])


def keys_of(federation: Any, client: str) -> ChannelKeys:
    ring = keyring_from_bytes(federation.parties.held(client), federation.defense.stages, client)
    return ChannelKeys.from_bytes(ring["keynet"].secret, federation.network.channels)


def test_the_words_say_who_has_to_collude() -> None:
    assert KeyNet().collusion_bound == KeyNet(rotation=1).collusion_bound == "one client"
    assert KeyNet(per_client=True).collusion_bound == "one client and the server"
