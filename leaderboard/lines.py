"""Cells of one attack over all seeds, gathered into one line with its intervals, its floor and its positive control."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from benchmark.store import CELL_KEY, SCORED, UNDEFENDED, RunTables
from leaderboard.statistics import Interval, Scores, bootstrap_mean, clears_floor

SUCCESS_MSE = 1e-2
"""A reconstruction succeeds below this mean squared error, that is above 20 dB."""


class Verdict(StrEnum):
    """What a line, or a defense, is said to be; the words of every table."""

    LEAKS = "leaks"
    AT_THE_FLOOR = "at the floor"
    UNQUALIFIED = "unqualified"
    NOT_EVALUATED = "not evaluated"
    NOT_APPLICABLE = "not applicable"
    CRASHED = "crashed"
    NEGATIVE_CONTROL = "negative control"
    ORACLE = "oracle"


POSITIONS = ("server", "eavesdropper", "client", "aggregate", "collusion", "key-agent")
"""The order in which positions are shown; others follow by name."""


@dataclass(frozen=True)
class Setting:
    """What a table holds fixed: the task and algorithm, the adversary, and the kind of victim."""

    task: str
    algorithm: str
    victim_kind: str
    position: str
    knowledge: str
    oracles: str

    @property
    def adversary(self) -> str:
        """ "position/knowledge", with the oracles that the attacks were given."""
        return f"{self.position}/{self.knowledge}" + (f" + {self.oracles}" if self.oracles else "")

    @property
    def order(self) -> tuple[Any, ...]:
        """Where it stands among the settings of a run: those with a verdict first."""
        position = POSITIONS.index(self.position) if self.position in POSITIONS else len(POSITIONS)
        whom = (self.exempt is not None, position, self.position, self.knowledge, self.oracles)
        return (self.task, self.algorithm, self.victim_kind, *whom)

    @property
    def exempt(self) -> Verdict | None:
        """Why there is no verdict here (the attacker knows too little, or is told too much), or None."""
        if self.oracles:
            return Verdict.ORACLE
        return Verdict.NEGATIVE_CONTROL if self.knowledge == "oblivious" else None


@dataclass(frozen=True)
class Summary:
    """Scores of all images of a set of cells; `images` are rows of the image table with the column `seed`."""

    images: pd.DataFrame

    def scores(self, column: str) -> Scores:
        """One column of the image table, to be averaged or compared."""
        return Scores.of(self.images[column], self.images["pairing"], self.images["seed"])

    @cached_property
    def psnr(self) -> Interval:
        return bootstrap_mean(self.scores("psnr"))

    @cached_property
    def gain(self) -> Interval:
        return bootstrap_mean(self.scores("gain"))

    @cached_property
    def identification(self) -> Interval:
        return bootstrap_mean(self.scores("identified"))

    @property
    def chance(self) -> float:
        """Identification rate of a guess that knows nothing."""
        return float((1 / self.images["gallery"]).mean())

    @property
    def floor(self) -> float:
        """Mean PSNR of the best guess that needs no attack."""
        return float((self.images["psnr"] - self.images["gain"]).mean())

    @property
    def success_rate(self) -> float:
        return float((self.images["mse"] < SUCCESS_MSE).mean())

    def mean(self, column: str) -> float:
        """Mean over the images that have the number; not-a-number where none has."""
        return float(self.images[column].mean())

    def median(self, column: str) -> float:
        return float(self.images[column].median())

    @property
    def leaks(self) -> bool:
        """Whether more comes out than a guess gives: the gain clears the floor, or identification clears chance."""
        return clears_floor(self.gain) or self.identification.low > self.chance


@dataclass(frozen=True)
class Line:
    """One attack on one defense at one snapshot and regime, all seeds together."""

    setting: Setting
    defense: str
    attack: str
    snapshot: int
    regime: str
    role: str
    cells: pd.DataFrame
    summary: Summary | None
    control: Summary | None

    @property
    def name(self) -> str:
        """The attack with its round, e.g. "cosine, round 0"."""
        return f"{self.attack}, round {self.snapshot}"

    @property
    def order(self) -> tuple[Any, ...]:
        """Where it stands among the lines of a run."""
        what = (self.attack, self.snapshot, self.regime, self.role)
        return (*self.setting.order, defense_order(self.defense), *what)

    @property
    def scored(self) -> Summary:
        """The summary of a line known to have one."""
        if self.summary is None:
            raise ValueError(f"{self.name} on {self.defense} was not scored")
        return self.summary

    @property
    def crashed(self) -> int:
        """Number of cells that crashed."""
        return int((self.cells["outcome"] == "crashed").sum())

    @property
    def by_shortcut(self) -> bool:
        """Whether every scored cell is the prior guess under the earned ciphertext shortcut."""
        scored = self.cells.loc[self.cells["outcome"].isin(SCORED), "outcome"]
        return len(scored) > 0 and bool((scored == "ciphertext").all())

    @property
    def qualified(self) -> bool:
        """Whether failing means something: the attack is seen working on its positive control."""
        return self.control is not None and clears_floor(self.control.gain)

    @property
    def details(self) -> str:
        """The distinct reasons and messages of the cells."""
        return "; ".join(dict.fromkeys(detail for detail in self.cells["detail"] if detail))

    @property
    def leakage(self) -> tuple[float, float]:
        """What the worst case is chosen by: mean identification rate, then mean gain over the floor."""
        if self.summary is None:
            return (-np.inf, -np.inf)
        return (self.summary.identification.mean, self.summary.gain.mean)

    @property
    def finding(self) -> Verdict:
        """What the scores say, whoever the adversary is."""
        if self.summary is not None and self.summary.leaks:
            return Verdict.LEAKS
        if self.crashed:
            return Verdict.CRASHED
        if self.summary is None:
            unseen = (self.cells["outcome"] == "not evaluated").any()
            return Verdict.NOT_EVALUATED if unseen else Verdict.NOT_APPLICABLE
        return Verdict.AT_THE_FLOOR if self.qualified else Verdict.UNQUALIFIED

    @property
    def verdict(self) -> Verdict:
        """The finding, or where the setting is exempt from verdicts, why."""
        if self.summary is not None and self.setting.exempt is not None:
            return self.setting.exempt
        return self.finding


def defense_order(defense: str) -> tuple[bool, str]:
    """Sorts defenses: undefended first, then by name."""
    return (defense != UNDEFENDED, defense)


LINE_KEY = [name for name in CELL_KEY if name != "seed"]


def gather_lines(tables: RunTables) -> list[Line]:
    """All cells of a run as lines: by setting, then undefended first, then by name."""
    return sorted(_lines(tables), key=lambda line: line.order)


def _lines(tables: RunTables) -> Iterator[Line]:
    seeds = tables.cells.set_index("cell")["seed"]
    images = tables.images.assign(seed=tables.images["cell"].map(seeds))
    summaries = _Summaries({str(cell): rows for cell, rows in images.groupby("cell", sort=False)})
    for key, cells in tables.cells.groupby(LINE_KEY, sort=True):
        task, algorithm, victim_kind, position, knowledge, oracles, defense, attack, snapshot, regime, role = map(
            str, key
        )
        yield Line(
            setting=Setting(task, algorithm, victim_kind, position, knowledge, oracles),
            defense=defense,
            attack=attack,
            snapshot=int(snapshot),
            regime=regime,
            role=role,
            cells=cells,
            summary=summaries.of(cells["cell"]),
            control=summaries.of(cells["control"]),
        )


class _Summaries:
    """One summary for each set of cells: lines share their control, and its intervals are computed once."""

    def __init__(self, by_cell: dict[str, pd.DataFrame]) -> None:
        self._by_cell = by_cell
        self._made: dict[tuple[str, ...], Summary] = {}

    def of(self, cells: Iterable[str]) -> Summary | None:
        scored = tuple(dict.fromkeys(cell for cell in cells if cell in self._by_cell))
        if not scored:
            return None
        if scored not in self._made:
            self._made[scored] = Summary(pd.concat([self._by_cell[cell] for cell in scored], ignore_index=True))
        return self._made[scored]
