"""The conformance suite of defenses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from benchmark.audit import audit_claims, earned_shortcut
from benchmark.audit.stand_in import stand_in
from benchmark.conformance import keys, rounds, wire
from benchmark.conformance.subject import ConformanceFailure, Subject
from defenses.base import Defense
from federation.errors import KeyholeError
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import Ciphertext, Position

Check: TypeAlias = Callable[[Subject], str]
"""Returns in words what it saw; raises ConformanceFailure."""


@dataclass(frozen=True)
class Finding:
    """One check's result: what it saw, or what is wrong."""

    check: str
    passed: bool
    detail: str


def wire_claims(subject: Subject) -> str:
    """Every tensor crosses the wire as the defense claims."""
    findings = audit_claims(subject.defense, subject.network, subject.root)
    for finding in findings:
        if not finding.passed:
            raise ConformanceFailure(
                f"tensor {finding.tensor!r} is claimed to be {finding.claim}, but {finding.reason}"
            )
    return f"{len(findings)} tensors as claimed"


def ciphertext_shortcut(subject: Subject) -> str:
    """Where a server without a key is shown ciphertext, the shortcut for it is earned."""
    view = subject.played.federation.view(subject.played.record, Position.SERVER)
    if not isinstance(view, Ciphertext):
        return f"not applicable: the server reads {type(view).__name__}"
    result = earned_shortcut(subject.defense, subject.network, subject.root)
    if not result.passed:
        raise ConformanceFailure(result.reason)
    return result.reason


CHECKS: Mapping[str, Check] = {
    "round trip": rounds.round_trip,
    "repeatable": rounds.repeatable,
    "cohort enforced": rounds.cohort_enforced,
    "tampering shows": wire.tampering_shows,
    "malformed refused": wire.malformed_refused,
    "wire claims": wire_claims,
    "ciphertext shortcut": ciphertext_shortcut,
    "keys stay secret": keys.keys_stay_secret,
    "keys come from the root": keys.keys_come_from_the_root,
    "leaky twin leaks": keys.leaky_twin_leaks,
    "collusion opens": keys.collusion_opens,
    "wrong key opens nothing": keys.wrong_key_opens_nothing,
}
"""Every check by name."""


def check_defense(defense: Defense, root: SecretRoot, network: Network | None = None) -> list[Finding]:
    """Run every check on a defense; one that fails does not stop the others.

    Args:
        defense: Keyhole's own or another package's.
        root: where keys come from.
        network: a small network to play rounds of; the audit's stand-in unless given.
    """
    subject = Subject(defense, network or stand_in(), root)
    findings = []
    for name, check in CHECKS.items():
        try:
            findings.append(Finding(name, True, check(subject)))
        except KeyholeError as failure:
            findings.append(Finding(name, False, str(failure)))
    return findings
