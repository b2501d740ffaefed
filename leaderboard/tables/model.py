"""A table before it is written anywhere: columns with a meaning, records of raw values, and how values read."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from leaderboard.statistics import Interval

MISSING = "\N{EN DASH}"


class Reach(IntEnum):
    """How far a column goes; each place shows the columns that reach it."""

    DATA = 0
    """Written as data (CSV) alone."""
    PAGE = 1
    """Also on pages."""
    EVERYWHERE = 2
    """Also where room is scarce: the terminal, a paper."""


def text(value: Any) -> str:
    """Any value as one line without control characters, which names from outside may hold."""
    if _is_missing(value):
        return MISSING
    return "".join(" " if unicodedata.category(character)[0] == "C" else character for character in str(value))


def number(decimals: int, *, scale: float = 1, unit: str = "", signed: bool = False) -> Callable[[Any], str]:
    """A reader of numbers, e.g. "18.3", and of intervals, e.g. "18.3 [17.1, 19.4]"."""
    shape = f"{'+' if signed else ''}.{decimals}f"

    def show(value: Any) -> str:
        if _is_missing(value):
            return MISSING
        if not isinstance(value, Interval):
            return f"{value * scale:{shape}}{unit}"
        if math.isinf(value.low):
            return f"{value.mean * scale:{shape}}{unit} [?]"
        return f"{value.mean * scale:{shape}}{unit} [{value.low * scale:{shape}}, {value.high * scale:{shape}}]"

    return show


decibel = number(1)
signed_decibel = number(1, signed=True)
percent = number(0, scale=100, unit="%")
fine_percent = number(1, scale=100, unit="%")
points = number(1, scale=100, signed=True)
similarity = number(3)


def size(value: Any) -> str:
    """Bytes with a decimal prefix."""
    if _is_missing(value):
        return MISSING
    amount = float(value)
    for unit in ("B", "kB", "MB"):
        if abs(amount) < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def duration(value: Any) -> str:
    """Seconds, or milliseconds below one."""
    if _is_missing(value):
        return MISSING
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def scientific(value: Any) -> str:
    if _is_missing(value):
        return MISSING
    return f"{value:.1e}" if value else "0"


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True)
class Column:
    """`name` finds the value in a record and heads it in data; `heading` and `meaning` are for people."""

    name: str
    heading: str
    meaning: str
    show: Callable[[Any], str] = text
    reach: Reach = Reach.PAGE

    @property
    def numeric(self) -> bool:
        """Whether it is set flush right."""
        return self.show is not text


@dataclass(frozen=True)
class Table:
    """Records under columns. `context` names what all records have in common, `notes` stand below."""

    title: str
    caption: str
    columns: Sequence[Column]
    records: Sequence[dict[str, Any]]
    context: dict[str, str]
    notes: Sequence[str] = ()

    def reaching(self, reach: Reach) -> list[Column]:
        """The columns shown where `reach` is needed."""
        return [column for column in self.columns if column.reach >= reach]


def legend(tables: Sequence[Table], reach: Reach = Reach.PAGE) -> list[tuple[str, str]]:
    """Heading and meaning of every column of the tables, once each."""
    columns = [column for table in tables for column in table.reaching(reach)]
    return list({column.heading: (column.heading, column.meaning) for column in columns if column.meaning}.values())
