"""The ciphertext shortcut is earned: messages of chosen weights must pass every test that tells fakes from ciphertext."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from benchmark.audit.chosen import CLIENTS, ChosenFederation, chosen
from benchmark.audit.distinguishers import BYTE_TESTS, HISTOGRAM_BYTES, Sample, telling_bytes
from benchmark.audit.residues import linked_residues, public_moduli
from benchmark.audit.stand_in import stand_in
from defenses.base import Claim, Defense
from federation.errors import KeyholeError
from federation.messages import Envelope, Transcript
from federation.network import Network
from federation.protocol import Phase
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import Ciphertext, Position
from federation.weights import Kind, Layout, TensorSpec, Weights, floating

LARGEST_NETWORK = 8_000
"""Values up to which a network itself is audited; a larger one is stood in for."""

BOUND = 1.0
FLAT_VALUE = 1.2345678e-6

WeightsName: TypeAlias = Literal["flat", "random"]

SCHEDULE: tuple[tuple[WeightsName, WeightsName], ...] = (("flat", "flat"), ("flat", "random"), ("random", "random"))
"""What the two clients send, by round: each sends either kind, one of them flat weights twice, the other random ones."""


@dataclass(frozen=True)
class AuditResult:
    """The verdict of an audit, and in words what it rests on."""

    passed: bool
    reason: str


@dataclass
class _Evidence:
    """What the wire carried: messages of clients by phase, every payload that holds a model, and key messages.

    `open_to` says which positions read something else than ciphertext.
    """

    open_to: list[str] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    payloads: list[bytes] = field(default_factory=list)
    keys: Transcript = field(default_factory=Transcript)

    def add(self, envelope: Envelope, weights: WeightsName) -> None:
        sample = Sample(envelope.sender, weights, envelope.payload)
        self.samples.setdefault(envelope.phase, []).append(sample)


def earned_shortcut(defense: Defense, network: Network, root: SecretRoot) -> AuditResult:
    """Whether `defense` may be scored as ciphertext to whoever lacks the key, without running an attack.

    It must claim to hide every tensor of `network` but counters, show the server and an eavesdropper ciphertext, and
    send messages of chosen weights that pass the tests of `distinguishers` and `residues`. A network of more than
    `LARGEST_NETWORK` values is stood in for by a small one with every kind of tensor: a codec takes a model as a list
    of named tensors and does the same to each. A scheme that protects large models less than small ones would go
    unnoticed there. Passing proves no secrecy: it rules out the fakes that are known.

    Args:
        defense: the defense.
        network: the network that it shall protect.
        root: where the audit's keys come from. The verdict depends on it and on fresh randomness with a probability
            under 1e-7 alone.
    """
    open_tensors = [
        spec.name for spec in floating(network.layout) if defense.claims(network)[spec.name] is not Claim.HIDDEN
    ]
    if open_tensors:
        return AuditResult(False, f"it does not claim to hide {open_tensors[0]!r}")
    try:
        refusal = _refusal(_play(defense, _audited(network), root))
    except KeyholeError as error:
        refusal = f"it could not be played: {error}"
    if refusal is not None:
        return AuditResult(False, refusal)
    return AuditResult(True, "messages of chosen weights pass every distinguishing test")


def _audited(network: Network) -> Network:
    """The network itself, unless it is too small to judge by or too large."""
    small = stand_in()
    return network if small.parameter_count <= network.parameter_count <= LARGEST_NETWORK else small


def _play(defense: Defense, network: Network, root: SecretRoot) -> _Evidence:
    """Rounds in which both clients send flat and random weights."""
    federation, weights = ChosenFederation(defense, network, root), _chosen_weights(network.layout)
    evidence = _Evidence()
    opening = federation.start(weights["random"])
    evidence.keys = opening.phase(Phase.KEYS)
    evidence.payloads += [envelope.payload for envelope in opening.phase(Phase.INITIAL)]
    for number, names in enumerate(SCHEDULE):
        sent = dict(zip(CLIENTS, names, strict=True))
        record = federation.play(number, {client: chosen(weights[name]) for client, name in sent.items()})
        for position in (Position.SERVER, Position.EAVESDROPPER):
            view = federation.view(record, position)
            if not isinstance(view, Ciphertext):
                evidence.open_to.append(f"the {position} reads {type(view).__name__}, not ciphertext")
        for envelope in record.transcript:
            if envelope.sender in sent:
                evidence.add(envelope, sent[envelope.sender])
            if envelope.phase in (Phase.BROADCAST, Phase.UPLOAD):
                evidence.payloads.append(envelope.payload)
    return evidence


def _refusal(evidence: _Evidence) -> str | None:
    """The reason of the first test that fails, or None."""
    if evidence.open_to:
        return evidence.open_to[0]
    for phase, samples in evidence.samples.items():
        for test in BYTE_TESTS:
            reason = test(samples)
            if reason is not None:
                return f"{reason} (phase {phase})"
    if max((telling_bytes(samples) for samples in evidence.samples.values()), default=0) < HISTOGRAM_BYTES[0]:
        return "too few bytes depend on the weights to judge"
    for modulus in public_moduli(evidence.keys):
        reason = linked_residues(evidence.payloads, modulus)
        if reason is not None:
            return reason
    return None


def _chosen_weights(layout: Layout) -> dict[WeightsName, Weights]:
    """Flat and random weights with the same largest magnitude in every tensor and the same counters."""
    generator = torch_generator("weights of the wire audit")

    def flat(spec: TensorSpec) -> torch.Tensor:
        if spec.kind is Kind.COUNTER:
            return torch.ones(spec.shape, dtype=spec.dtype)
        values = torch.full(spec.shape, FLAT_VALUE, dtype=spec.dtype)
        values.view(-1)[:1] = BOUND
        return values

    def random(spec: TensorSpec) -> torch.Tensor:
        if spec.kind is Kind.COUNTER:
            return torch.ones(spec.shape, dtype=spec.dtype)
        values = torch.empty(spec.shape, dtype=spec.dtype).uniform_(-BOUND, BOUND, generator=generator)
        values.view(-1)[:1] = BOUND
        return values

    return {"flat": {spec.name: flat(spec) for spec in layout}, "random": {spec.name: random(spec) for spec in layout}}
