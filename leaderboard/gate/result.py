"""What the gate found: comparisons, findings, and the status they amount to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from leaderboard.statistics import Interval, minimum_detectable_effect


class Status(IntEnum):
    """Also the exit status of the command; 2 is left to errors."""

    PASSED = 0
    REGRESSED = 1
    INCOMPARABLE = 3


@dataclass(frozen=True)
class Comparison:
    """One quantity before (baseline) and after (run); `difference` is after less before, with its paired interval."""

    subject: str
    quantity: str
    before: float
    after: float
    difference: Interval
    margin: float
    regressed: bool

    @property
    def detectable(self) -> float:
        """The change that would be found in four cases of five."""
        return minimum_detectable_effect(self.difference, self.margin)


@dataclass(frozen=True)
class Finding:
    """Something that decides the status, or with `Status.PASSED` a remark."""

    status: Status
    text: str


@dataclass(frozen=True)
class GateResult:
    findings: tuple[Finding, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def status(self) -> Status:
        """Regressed if anything is; else incomparable if anything is missing or differs in kind; else passed."""
        found = {finding.status for finding in self.findings}
        for status in (Status.REGRESSED, Status.INCOMPARABLE):
            if status in found:
                return status
        return Status.PASSED
