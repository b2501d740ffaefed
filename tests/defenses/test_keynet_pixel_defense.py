"""`keynet-toeplitz` as a defense: what who reads, what it claims, what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_networks import NETWORKS, assert_recovers, everything, lenet5, random_weights
from torch import Tensor, nn

from benchmark.audit import audit_claims
from benchmark.audit.chosen import ChosenFederation, chosen
from benchmark.audit.stand_in import stand_in
from defenses.base import Claim
from defenses.keynet.defense import KeyNet
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys, identity_pixel_keys
from defenses.keynet.pixel_transform import PixelTransform
from defenses.stack import Stack
from defenses.stages import KeyMaterial
from federation.errors import MalformedMessage, UsageError
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import PlainModel, Position, SparseLayers
from federation.weights import floating

ROOT = SecretRoot(b"pixel keys are drawn from this.." * 2)
CLIENTS = ("client-0", "client-1")


def played(stack: Stack, network: Network) -> tuple[ChosenFederation, Any]:
    federation = ChosenFederation(stack, network, ROOT)
    federation.start(random_weights(network))
    return federation, federation.play(0, {name: chosen(random_weights(network, 1)) for name in CLIENTS})


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_key_one_reads_sparse_layers(name: str) -> None:
    network = NETWORKS[name]()
    federation, record = played(Stack("full", [KeyNetToeplitz()]), network)
    view = federation.view(record, Position.SERVER)
    assert isinstance(view, SparseLayers)
    assert view.hidden_by == {"keynet-toeplitz"}
    form = PixelForm.of(network)
    for layers in (view.before, *view.after.values()):
        assert {name: matrix.shape for name, matrix in layers.items()} == {
            **{name: step.layout.shape for name, step in form.layers.items()},
            **{name: (size, 1) for name, size in form.vectors.items()},
        }
    transform = PixelTransform(
        form, draw_pixel_keys(form, ROOT.derive("stage", "keynet-toeplitz", 0), PixelKeyPolicy())
    )
    sent = transform.protect(record.trained["client-1"])
    assert all((view.after["client-1"][name] - matrix).nnz == 0 for name, matrix in sent.matrices.items())
    aggregate = federation.view(record, Position.AGGREGATE)
    assert not isinstance(aggregate, PlainModel)


def test_with_a_clients_key_one_reads_the_model() -> None:
    network = lenet5()
    federation, record = played(Stack("full", [KeyNetToeplitz(alpha=2)]), network)
    view = federation.view(record, Position.COLLUSION)
    assert isinstance(view, PlainModel)
    assert not view.hidden_by
    assert_recovers(view.after["client-0"], record.trained["client-0"], federation.stated_error(record))


def test_a_keyed_stage_further_in_hides_as_well() -> None:
    federation, record = played(Stack("both", [KeyNet(), KeyNetToeplitz()]), lenet5())
    view = federation.view(record, Position.SERVER)
    assert isinstance(view, SparseLayers)
    assert view.hidden_by == {"keynet", "keynet-toeplitz"}


def test_clients_with_different_keys_are_not_averaged() -> None:
    network, stage = lenet5(), KeyNetToeplitz()
    federation, record = played(Stack("full", [stage]), network)
    form = PixelForm.of(network)
    stranger = PixelTransform(form, draw_pixel_keys(form, ROOT.derive("other"), PixelKeyPolicy()))
    uploads = {name: stranger.protect(random_weights(network)).to_bytes() for name in CLIENTS}
    context = federation.parties.server
    with pytest.raises(MalformedMessage, match=r"contribution of client-0: .* all clients need one key"):
        stage.server(stage.draw_keys(network, "server", ROOT), network).combine(
            uploads, context.state, record, lambda sender, weights: weights
        )


def test_the_server_refuses_to_re_key() -> None:
    stage = KeyNetToeplitz()
    server = stage.server(stage.draw_keys(lenet5(), "server", ROOT), lenet5())
    with pytest.raises(UsageError, match="use one key for all clients"):
        server.remap(b"", lambda weights: weights)


def test_claims_follow_the_keys() -> None:
    network = everything()
    claims = KeyNetToeplitz().claims(network)
    assert [name for name, claim in claims.items() if claim is Claim.PLAIN] == ["norm.num_batches_tracked"]
    identity = KeyNetToeplitz(outputs="identity").claims(network)
    assert [name for name, claim in identity.items() if claim is Claim.PLAIN] == [
        "norm.num_batches_tracked", "fc.bias",
    ]  # fmt: skip
    assert set(KeyNetToeplitz().leaky_twin().claims(network).values()) == {Claim.PLAIN}
    single = Network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(1, 1)), (1, 1, 1), 1)
    assert set(KeyNetToeplitz(gain_range=1.0).claims(single).values()) == {Claim.PLAIN}
    assert KeyNetToeplitz().claims(single)["1.weight"] is Claim.TRANSFORMED


def test_layers_that_are_called_twice_and_other_dtypes_are_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)).flatten(1)

    with pytest.raises(UsageError, match=r"layer 'conv' .*called more than once"):
        KeyNetToeplitz().check(Network(Shared, (1, 3, 3), 9))

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2, dtype=torch.float64))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises(UsageError, match=r"tensor 'table' is torch.float64"):
        KeyNetToeplitz().check(Network(Doubled, (1, 2, 2), 2))


def faults(stage: KeyNetToeplitz) -> dict[str, str]:
    """What the wire audit finds wrong, by tensor."""
    findings = audit_claims(Stack("audited", [stage]), stand_in(), ROOT)
    return {finding.tensor: finding.reason for finding in findings if not finding.passed}


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": "identity"},
        {"outputs": "identity", "gain_range": 1.0},
        {"outputs": "identity", "alpha": 2},
        {"outputs": "monomial"},
    ],
    ids=str,
)
def test_the_wire_bears_out_the_claims(options: dict[str, Any]) -> None:
    assert not faults(KeyNetToeplitz(**options))


@dataclass(frozen=True)
class Claiming(KeyNetToeplitz):
    """Claims of the last layer what is not so: its bias hidden though its rows are not keyed, its weight plain."""

    outputs: Any = "identity"

    def claims(self, network: Network) -> dict[str, Claim]:
        return {**super().claims(network), "9.bias": Claim.TRANSFORMED, "9.weight": Claim.PLAIN}


@dataclass(frozen=True)
class Unkeyed(KeyNetToeplitz):
    """Claims to transform everything and draws keys that change nothing."""

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        keys = identity_pixel_keys(PixelForm.of(network)).to_bytes()
        return KeyMaterial() if receiver == "server" else KeyMaterial(secret=keys)


def test_planted_claims_about_sparse_layers_are_found_out() -> None:
    assert faults(Claiming()) == {
        "9.weight": "the server does not read the true values",
        "9.bias": "the server reads 100% of the values in their places",
    }
    found = faults(Unkeyed())
    assert found.keys() == {spec.name for spec in floating(stand_in().layout)}
    assert all(reason == "the server reads 100% of the values in their places" for reason in found.values())
