"""The wire audit of a defense's claims, tensor by tensor, on a round of chosen weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from benchmark.audit.chosen import CLIENTS, ChosenFederation, chosen, spread_weights
from benchmark.audit.shortcut import AuditResult, earned_shortcut
from benchmark.audit.sparse_reading import read_as_plain
from defenses.base import Claim, Defense
from federation.network import Network
from federation.protocol import Phase, RoundRecord
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import Ciphertext, PlainModel, Position, SparseLayers, View
from federation.weights import Weights

DRAWS = 4
"""Keys that a transformed tensor may take to show that it is: of two channels, every other permutation is none."""


@dataclass(frozen=True)
class TensorFinding:
    """Whether the wire bears out what a defense claims of one tensor, and what was seen."""

    tensor: str
    claim: Claim
    passed: bool
    reason: str


@dataclass(frozen=True)
class _Seen:
    """One round of chosen weights: the truth, and what those make of the wire who hold a key and who do not."""

    network: Network
    record: RoundRecord
    outsiders: Mapping[Position, View]
    key_holder: View
    tolerance: float

    @property
    def truth(self) -> Mapping[str, Weights]:
        """What each client sent, by client."""
        return self.record.trained


def audit_claims(defense: Defense, network: Network, root: SecretRoot) -> list[TensorFinding]:
    """Hold every tensor of an upload to the defense's claim.

    The clients send what they recovered plus a small update, in place of trained weights, so that the defense's stated
    error is small against the weights. Sparse layers are read as if no key were there, see `sparse_reading`. Within that
    error:

    - PLAIN: the server and the eavesdropper, without a key, read every client's true values in their places (or, beside
      ciphertext or sparse layers, the tensor's very bytes stand in the upload);
    - TRANSFORMED: what they read differs from the truth at more than half of the places, under one of `DRAWS` keys,
      they are told so (`hidden_by`), and whoever holds a client's key reads the truth;
    - HIDDEN: they have ciphertext, the ciphertext shortcut is earned, and whoever holds the key reads the truth.

    Args:
        defense: the defense.
        network: a small network; a round of it is played.
        root: where the audit's keys come from.
    """
    claims = defense.claims(network)
    missing = {spec.name for spec in network.layout} ^ claims.keys()
    if missing:
        return [TensorFinding(name, Claim.PLAIN, False, "the claims are not one a tensor") for name in sorted(missing)]
    shortcut = earned_shortcut(defense, network, root) if Claim.HIDDEN in claims.values() else None
    findings: dict[str, TensorFinding] = {}
    for draw in range(DRAWS):
        seen = _play(defense, network, root.derive("wire audit", draw))
        for name, claim in claims.items():
            if name not in findings or not findings[name].passed:
                fault = _fault(name, claim, seen, shortcut)
                findings[name] = TensorFinding(name, claim, fault is None, fault or f"{claim}, as claimed")
        if all(finding.passed for finding in findings.values()):
            break
    return list(findings.values())


def _play(defense: Defense, network: Network, root: SecretRoot) -> _Seen:
    federation = ChosenFederation(defense, network, root)
    generator = torch_generator("weights of the claims audit")
    initial = spread_weights(network.layout, generator, smallest=0.5, largest=1.0, counter=10**9)
    federation.start(initial)
    choices = {}
    for number, client in enumerate(CLIENTS):
        update = spread_weights(network.layout, generator, smallest=0.005, largest=0.01, counter=100 + number)
        choices[client] = chosen({name: tensor + update[name] for name, tensor in initial.items()})
    record = federation.play(0, choices)
    return _Seen(
        network,
        record,
        {position: federation.view(record, position) for position in (Position.SERVER, Position.EAVESDROPPER)},
        federation.view(record, Position.COLLUSION),
        federation.stated_error(record),
    )


def _fault(name: str, claim: Claim, seen: _Seen, shortcut: AuditResult | None) -> str | None:
    if claim is Claim.PLAIN:
        return _fault_of_plain(name, seen)
    fault = _fault_of_transformed(name, seen) if claim is Claim.TRANSFORMED else _fault_of_hidden(seen, shortcut)
    if fault is None and _places_off(name, seen, seen.key_holder) != 0:
        return "whoever holds a client's key does not read the true values"
    return fault


def _fault_of_plain(name: str, seen: _Seen) -> str | None:
    for position, view in seen.outsiders.items():
        off = _places_off(name, seen, view)
        if off is not None:
            if off != 0:
                return f"the {position} does not read the true values"
        elif not _stands_in_uploads(name, seen.record):
            return f"neither the view of the {position} nor the bytes of the uploads show it"
    return None


def _fault_of_transformed(name: str, seen: _Seen) -> str | None:
    for position, view in seen.outsiders.items():
        off = _places_off(name, seen, view)
        if off is not None and off <= 0.5:
            return f"the {position} reads {1 - off:.0%} of the values in their places"
        if isinstance(view, PlainModel | SparseLayers) and not view.hidden_by:
            return f"the {position} is not told by which scheme it is hidden"
    return None


def _fault_of_hidden(seen: _Seen, shortcut: AuditResult | None) -> str | None:
    for position, view in seen.outsiders.items():
        if not isinstance(view, Ciphertext):
            return f"the {position} reads {type(view).__name__}, not ciphertext"
    if shortcut is None or not shortcut.passed:
        return f"the ciphertext shortcut is refused: {shortcut.reason if shortcut else 'not audited'}"
    return None


def _places_off(name: str, seen: _Seen, view: View) -> float | None:
    """The largest share, over clients, of values that a view does not have in their places; None for no such values."""
    if not isinstance(view, PlainModel | SparseLayers):
        return None
    shares = []
    for client, weights in seen.truth.items():
        if client not in view.after:
            return 1.0
        truth, read = weights[name], _values(name, view, client, seen.network)
        if read is None:
            return None
        tolerance = seen.tolerance if truth.is_floating_point() else 0.0
        within = (read.double() - truth.double()).abs() <= tolerance  # False for what is no number
        shares.append(1 - float(within.double().mean()))
    return max(shares)


def _values(name: str, view: PlainModel | SparseLayers, client: str, network: Network) -> Tensor | None:
    """A tensor of a client's contribution as the view shows it; None for one that sparse layers have no place for."""
    if isinstance(view, PlainModel):
        return view.after[client][name]
    return read_as_plain(view.after[client], network).get(name)


def _stands_in_uploads(name: str, record: RoundRecord) -> bool:
    return all(
        record.trained[envelope.sender][name].numpy().tobytes() in envelope.payload
        for envelope in record.transcript.phase(Phase.UPLOAD)
    )
