"""The figures of all cases that were run, as one table with the machine, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.measure import Table, machine, machine_line

LIBRARIES = ("torch", "numpy")


@dataclass(frozen=True)
class AttackFigures:
    """All that a run measured."""

    cases: Sequence[CaseResult]
    machine: dict[str, Any] = field(default_factory=lambda: machine(LIBRARIES))

    def as_json(self) -> dict[str, Any]:
        """Figures for programs; one that is not finite is null."""
        cases = [
            {
                "name": case.name,
                "notes": list(case.notes),
                "figures": [
                    asdict(figure) | {"measured": _finite(figure.measured), "reached": figure.reached}
                    for figure in case.figures
                ],
            }
            for case in self.cases
        ]
        return {"cases": cases, "machine": self.machine}

    def tables(self) -> list[Table]:
        """One table, a row a figure."""
        columns = ("figure", "measured", "required", "aim", "reached", "how it came about")
        rows = tuple(_row(figure) for case in self.cases for figure in case.figures)
        notes = tuple(f"{case.name}: {note}" for case in self.cases for note in case.notes)
        return [Table("Attacks against their peers", columns, rows, (*notes, machine_line(self.machine)))]


def _row(figure: Figure) -> tuple[str, ...]:
    sign = "at most " if figure.lower_is_better else ""
    due = ["" if value is None else sign + _value(value, figure.unit) for value in (figure.required, figure.aim)]
    return (figure.name, _value(figure.measured, figure.unit), *due, _verdict(figure), figure.detail)


def _verdict(figure: Figure) -> str:
    if figure.reached is None or figure.aim is None:
        return {None: "", True: "yes", False: "no"}[figure.reached]
    below = figure.measured <= figure.aim if figure.lower_is_better else figure.measured >= figure.aim
    return "aim" if below else "yes" if figure.reached else "no"


def _value(value: float, unit: str) -> str:
    return f"{value:.3g}{'' if unit in ('x', '%') else ' '}{unit}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
