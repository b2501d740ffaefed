"""The wire audit: a defense is held to what it claims of the wire before any result leans on the claim."""

from benchmark.audit.claims import TensorFinding, audit_claims
from benchmark.audit.shortcut import AuditResult, earned_shortcut

__all__ = ["AuditResult", "TensorFinding", "audit_claims", "earned_shortcut"]
