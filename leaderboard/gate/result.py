"""What the gate found: comparisons, findings, the status they amount to, and all of it as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from leaderboard.statistics import Interval, minimum_detectable_effect
from leaderboard.tables.model import Column, Table, number
from leaderboard.tables.render import markdown_escape, markdown_text


class Status(IntEnum):
    """Also the exit status of the command; 2 is left to errors."""

    PASSED = 0
    REGRESSED = 1
    INCOMPARABLE = 3


VERDICTS = {
    Status.PASSED: "Passed",
    Status.REGRESSED: "Regressed",
    Status.INCOMPARABLE: "Missing or incomparable",
}
SECTIONS = {**VERDICTS, Status.PASSED: "Remarks"}
_figure = number(3)
_signed = number(3, signed=True)
COLUMNS = (
    Column("subject", "What", ""),
    Column("quantity", "Quantity", "gain over the floor in dB; identification and accuracy from 0 to 1"),
    Column("before", "Before", "the baseline's", _figure),
    Column("after", "Now", "the run's", _figure),
    Column("difference", "Difference", "now less before, with its paired 95% interval over images and seeds", _signed),
    Column("margin", "Margin", "a regression is a whole interval beyond it", _figure),
    Column(
        "detectable",
        "Detectable",
        "the change found in four cases of five, by the spread of the differences (where none moved, the margin)",
        _figure,
    ),
    Column("resampled", "Resampled", "what the interval allows for"),
    Column("result", "Result", ""),
)


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

    @property
    def markdown(self) -> str:
        """Verdict, findings by severity, and every comparison with its minimum detectable effect."""
        parts = [f"# {VERDICTS[self.status]}\n"]
        for status in (Status.REGRESSED, Status.INCOMPARABLE, Status.PASSED):
            found = [f"- {markdown_escape(item.text)}" for item in self.findings if item.status is status]
            if found:
                parts.append("\n".join([f"## {SECTIONS[status]}", "", *found, ""]))
        if self.comparisons:
            records = [_record(item) for item in self.comparisons]
            parts.append(markdown_text([Table("Comparisons", "", COLUMNS, records, {})]))
        return "\n".join(parts)


def _record(item: Comparison) -> dict[str, object]:
    return {
        "subject": item.subject,
        "quantity": item.quantity,
        "before": item.before,
        "after": item.after,
        "difference": item.difference,
        "margin": item.margin,
        "detectable": item.detectable,
        "resampled": item.difference.resampled,
        "result": "regressed" if item.regressed else "ok",
    }
