"""The gate's result as Markdown, for a terminal or a pull request."""

from __future__ import annotations

from leaderboard.gate.result import Comparison, GateResult, Status
from leaderboard.tables.model import Column, Table, number, text
from leaderboard.tables.render import markdown_escape, markdown_text

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
    Column("detectable", "Detectable", "the change that would be found in four cases of five", _figure),
    Column("resampled", "Resampled", "what the interval allows for"),
    Column("result", "Result", ""),
)


def gate_markdown(result: GateResult) -> str:
    """Verdict, findings by severity, and every comparison with its minimum detectable effect."""
    parts = [f"# {VERDICTS[result.status]}\n"]
    for status in (Status.REGRESSED, Status.INCOMPARABLE, Status.PASSED):
        found = [f"- {markdown_escape(item.text)}" for item in result.findings if item.status is status]
        if found:
            parts.append("\n".join([f"## {SECTIONS[status]}", "", *found, ""]))
    if result.comparisons:
        records = [_record(item) for item in result.comparisons]
        parts.append(markdown_text([Table("Comparisons", "", COLUMNS, records, {})]))
    return "\n".join(parts)


def _record(item: Comparison) -> dict[str, object]:
    return {
        "subject": text(item.subject),
        "quantity": item.quantity,
        "before": item.before,
        "after": item.after,
        "difference": item.difference,
        "margin": item.margin,
        "detectable": item.detectable,
        "resampled": item.difference.resampled,
        "result": "regressed" if item.regressed else "ok",
    }
