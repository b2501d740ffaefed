"""Accepting a run's figures as the baseline, with a reason, in a folder small enough to be kept under version control.

A baseline is a run's folder without its pictures: the same tables in the same format, read and checked by the same code.
`CHANGES.md` beside them says why the figures changed and which did.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.store import Run, RunTables, read_manifest, read_run
from federation.errors import UsageError
from federation.files import write_text
from leaderboard.gate.exact import BYTES, compare_manifests
from leaderboard.ranking import rank_run
from leaderboard.tables.model import Column, Table, number
from leaderboard.tables.render import markdown_escape, markdown_text
from leaderboard.trainings import summarise_trainings

CHANGES = "CHANGES.md"
_figure = number(3)
COLUMNS = (
    Column("subject", "What", ""),
    Column("quantity", "Quantity", ""),
    Column("before", "Before", "", _figure),
    Column("after", "After", "", _figure),
)


def accept_baseline(run: Path | str, directory: Path | str, reason: str) -> Path:
    """Make the run's figures the baseline in `directory` and add an entry to its change log, whose path is returned.

    Raises:
        UsageError: no reason is given.
        DataError: the run is missing or malformed, or the baseline there is.
    """
    if not reason.strip():
        raise UsageError("a baseline is accepted for a reason: say in a few words why the figures change")
    tables = read_run(run)
    target = Run(directory)
    old, remark = _earlier(target, tables)
    entry = _entry(old, key_figures(tables))
    target.write_tables(replace(tables, images=tables.images.assign(original="", reconstruction="")))
    log = target.directory / CHANGES
    earlier = log.read_text(encoding="utf-8") if log.is_file() else "# Accepted figures\n"
    count = len(re.findall(r"^## \d+\. ", earlier, flags=re.MULTILINE))
    heading = f"## {count + 1}. {markdown_escape(' '.join(reason.split()))}"
    write_text(log, "\n".join([earlier, heading, "", *([remark, ""] if remark else []), entry]))
    return log


def key_figures(tables: RunTables) -> dict[tuple[str, str], float]:
    """What the change log follows: each defense's worst case by adversary, accuracy, and bytes."""
    figures: dict[tuple[str, str], float] = {}
    for ranking in rank_run(tables):
        setting = ranking.setting
        for entry in ranking.entries:
            if entry.summary is None:
                continue
            place = f"{setting.task}, {setting.algorithm}, {setting.victim_kind}"
            subject = f"{entry.defense} by {setting.adversary} ({place})"
            figures[subject, "identification"] = entry.summary.identification.mean
            figures[subject, "PSNR gain (dB)"] = entry.summary.gain.mean
    for item in summarise_trainings(tables):
        subject = f"{item.name} ({item.task}, {item.algorithm})"
        figures[subject, "accuracy"] = item.accuracy
        if not item.reference:
            figures |= {(subject, words): item.mean(column) for column, words in BYTES.items()}
    return figures


def _earlier(target: Run, tables: RunTables) -> tuple[dict[tuple[str, str], float], str]:
    """Key figures of the baseline that stands there now, and a remark where they cannot be compared."""
    if not target.manifest_path.is_file():
        return {}, "The first figures."
    differing = compare_manifests(tables.manifest, read_manifest(target.directory))
    if not differing:
        return key_figures(read_run(target.directory)), ""
    remark = "\n".join(
        ["The earlier figures are not comparable:", "", *(f"- {_differing(item.text)}" for item in differing)]
    )
    return {}, remark


def _differing(line: str) -> str:
    return markdown_escape(line.replace(" in the run", " now").replace(" in the baseline", " before"))


def _entry(before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]) -> str:
    """The figures that changed, as a Markdown table."""
    names = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    if not names:
        return "No key figure changed.\n"
    records: list[dict[str, Any]] = [
        {"subject": subject, "quantity": quantity, "before": before.get(key), "after": after.get(key)}
        for key in names
        for subject, quantity in [key]
    ]
    return markdown_text([Table("Figures", "", COLUMNS, records, {})], level=3)
