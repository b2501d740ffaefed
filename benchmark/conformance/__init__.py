"""What every defense has to pass, Keyhole's own and those of other packages alike."""

from benchmark.conformance.defenses import CHECKS, Finding, check_defense
from benchmark.conformance.subject import ConformanceFailure, Subject

__all__ = ["CHECKS", "ConformanceFailure", "Finding", "Subject", "check_defense"]
