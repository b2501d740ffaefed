"""Writing tables: for the terminal (rich), Markdown, LaTeX and CSV. Text from outside is escaped for each."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from leaderboard.lines import Verdict
from leaderboard.statistics import Interval
from leaderboard.tables.model import MISSING, Reach, Table, legend, text

ROOMY = 100
"""Characters a line from which on columns stand further apart."""

_STYLES = {
    Verdict.LEAKS: "bold red",
    Verdict.AT_THE_FLOOR: "bold green",
    Verdict.UNQUALIFIED: "yellow",
    Verdict.NOT_EVALUATED: "yellow",
    Verdict.CRASHED: "bold magenta",
}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    MISSING: "--",
}


@dataclass(frozen=True)
class TerminalTables:
    """Tables, their notes and one legend, for `rich.console.Console.print`; closer set on a narrow terminal."""

    tables: Sequence[Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in self.tables:
            yield Text(text(table.title), style="bold")
            yield _rich_table(table, narrow=options.max_width < ROOMY)
            yield Text(text(table.caption), style="dim")
            yield from (Padding(Text(f"* {text(note)}", style="dim"), (0, 0, 0, 2)) for note in table.notes)
            yield Text()
        meanings = RichTable.grid(padding=(0, 2))
        for heading, meaning in legend(self.tables, Reach.EVERYWHERE):
            meanings.add_row(Text(heading, style="bold dim"), Text(meaning, style="dim"))
        yield meanings


def _rich_table(table: Table, narrow: bool) -> RichTable:
    # Everything is Text, never markup: a defense may well be called "[bold]".
    rich = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0 if narrow else (0, 1, 0, 0))
    shown_columns = []
    for column in table.reaching(Reach.EVERYWHERE):
        values = [record.get(column.name) for record in table.records]
        shown = [_unbroken(column.show(value)) for value in values]
        longest = max(len(word) for line in (column.heading, *shown) for word in line.split())
        rich.add_column(
            Text(column.heading),
            justify="right" if column.numeric else "left",
            overflow="fold",
            # Where room is short numbers break before their interval, never within; names give way first.
            width=longest if column.numeric and narrow else None,
        )
        shown_columns.append([Text(line, style=_style(value)) for line, value in zip(shown, values, strict=True)])
    for row in zip(*shown_columns, strict=True):
        rich.add_row(*row)
    return rich


def _unbroken(shown: str) -> str:
    """An interval without its space, so that a narrow column breaks before it and not within."""
    return re.sub(r", (?=[^\[]*\]$)", ",", shown)


def _style(value: Any) -> str:
    return _STYLES.get(value, "") if isinstance(value, Verdict) else ""


def markdown_text(tables: Sequence[Table], *, level: int = 2) -> str:
    """The tables under headings of a level, with their notes, and one legend below."""
    parts = []
    for table in tables:
        columns = table.reaching(Reach.PAGE)
        rule = ["---:" if column.numeric else "---" for column in columns]
        rows = [
            [markdown_escape(column.show(record.get(column.name))) for column in columns] for record in table.records
        ]
        lines = [[markdown_escape(column.heading) for column in columns], rule, *rows]
        parts.append(f"{'#' * level} {markdown_escape(table.title)}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts += [markdown_escape(table.caption)] if table.caption else []
        parts += ["\n".join(f"- {markdown_escape(note)}" for note in table.notes)] if table.notes else []
    meanings = [f"- **{markdown_escape(heading)}**: {markdown_escape(meaning)}" for heading, meaning in legend(tables)]
    parts += ["\n".join(meanings)] if meanings else []
    return "\n\n".join(parts) + "\n"


def markdown_escape(value: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|#~])", r"\\\1", text(value))


def latex_text(table: Table) -> str:
    """One `table` environment, with the columns that reach everywhere; needs the package booktabs."""
    columns = table.reaching(Reach.EVERYWHERE)
    lines = [[_latex(column.heading) for column in columns]]
    lines += [[_latex(column.show(record.get(column.name))) for column in columns] for record in table.records]
    head, *body = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{_latex(table.title)}. {_latex(table.caption)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in columns)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex(value: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text(value))


def csv_text(tables: Sequence[Table]) -> str:
    """All records of tables with the same columns, as raw numbers; an interval becomes three columns."""
    rows = [{**table.context, **_flat(table, record)} for table in tables for record in table.records]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flat(table: Table, record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for column in table.columns:
        value = record.get(column.name)
        if isinstance(value, Interval):
            flat |= {column.name: value.mean, f"{column.name}_low": value.low, f"{column.name}_high": value.high}
            flat |= {f"{column.name}_resampled": value.resampled}
        else:
            flat[column.name] = text(value) if isinstance(value, str) and value else value
    return flat
