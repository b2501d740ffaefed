"""Key-Net as a whole: default messages as they always were, the conformance suite under other options, refusals."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from benchmark.audit.stand_in import stand_in
from benchmark.conformance import CHECKS, Subject
from defenses.keynet.defense import KeyNet
from defenses.registry import build_defense
from federation.errors import UsageError
from federation.messages import client_name
from federation.models import build_model
from federation.network import Network
from federation.rounds import Federation
from federation.secret_root import SecretRoot

ROOT = SecretRoot(b"conformance tests of key-net....")

OPTIONS: list[dict[str, object]] = [
    {"kind": "soft"},
    {"kind": "soft", "gain_range": 1.0, "alpha": 2, "dominance": 0.9},
    {"kind": "orthogonal"},
    {"rotation": 1},
    {"per_client": True},
    {"per_client": True, "rotation": 3, "kind": "soft"},
    {"per_client": True, "kind": "orthogonal"},
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_conforms(options: dict[str, object], check: str) -> None:
    assert CHECKS[check](Subject(build_defense("mine", [{"keynet": options}]), stand_in(), ROOT))


@pytest.mark.parametrize("name", ["keynet", "keynet-quantized"])
def test_default_messages_are_those_of_the_accepted_figures(name: str) -> None:
    """The first global message of fixed weights under a fixed root, byte for byte."""
    network = Network(lambda: build_model("lenet5", (1, 12, 12), 10, seed=0), (1, 12, 12), 10)
    clients = tuple(map(client_name, range(2)))
    parties = build_defense(name).parties(network, clients, SecretRoot(b"the default options, unchanged.."))
    weights = {
        spec.name: torch.arange(spec.size, dtype=torch.float32).reshape(spec.shape) / 1000 - 0.3
        for spec in network.layout
    }
    Federation(parties, dict.fromkeys(clients, 1), seed=0).start(weights)
    digest = hashlib.sha256(parties.server.state).hexdigest()
    assert digest == "6a047332dfd60fc63c2288494330330571a75339315f8f2c0f11aeb395dd70a2"


@pytest.mark.parametrize("kind", ["soft", "orthogonal"])
def test_layers_too_wide_to_be_mixed_are_named(kind: str) -> None:
    network = Network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(1, 5000), nn.Linear(5000, 2)), (1, 1, 1), 2)
    with pytest.raises(UsageError, match=rf"layer '1' \(Linear\), node '_1': {kind} keys mix up to 4096 channels"):
        KeyNet(kind=kind).check(network)  # type: ignore[arg-type]
    KeyNet().check(network)
