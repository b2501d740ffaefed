"""Accuracy and cost of each defense, all seeds together, beside training without a defense and without federation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmark.store import UNDEFENDED, RunTables, correct_bits
from leaderboard.statistics import Interval, accuracy_difference


@dataclass(frozen=True)
class TrainingSummary:
    """The trainings of one defense (or one reference) over all seeds; `rows` are rows of the table, sorted by seed."""

    task: str
    algorithm: str
    defense: str
    reference: str
    rows: pd.DataFrame
    difference: Interval | None
    """Accuracy less that of plain, 0..1; None for plain itself and where no seed is shared."""

    @property
    def name(self) -> str:
        return self.defense if not self.reference else f"{self.reference} (reference)"

    @property
    def accuracy(self) -> float:
        return self.mean("accuracy")

    @property
    def protection_share(self) -> float:
        """Share of a round's seconds that the defense takes: key handling, protect, aggregate and recover.

        NaN in a run from before key handling was measured.
        """
        protection = sum(self.mean(f"seconds_{step}") for step in ("keys", "protect", "aggregate", "recover"))
        total = protection + self.mean("seconds_train")
        return 0.0 if total == 0 else protection / total

    @property
    def accuracy_by_round(self) -> npt.NDArray[np.float64]:
        """Shape (seeds, rounds + 1)."""
        return np.stack([np.asarray(curve, dtype=float) for curve in self.rows["accuracy_by_round"]])

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Summed over seeds, true classes by predicted classes."""
        count = int(self.rows["class_count"].iloc[0])
        return np.sum([np.asarray(flat).reshape(count, count) for flat in self.rows["confusion"]], axis=0)

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.rows["classes"].iloc[0]]

    def mean(self, column: str) -> float:
        return float(self.rows[column].mean())

    def largest(self, column: str) -> float:
        return float(self.rows[column].max())

    def text(self, column: str) -> str:
        """The distinct values of a column of text."""
        return "; ".join(dict.fromkeys(value for value in self.rows[column] if value))


def summarise_trainings(tables: RunTables) -> list[TrainingSummary]:
    """One summary a task, algorithm, defense and reference: plain first, other defenses by name, references last."""
    summaries = []
    for (task, algorithm), trainings in tables.trainings.groupby(["task", "algorithm"], sort=True):
        plain = trainings[(trainings["defense"] == UNDEFENDED) & (trainings["reference"] == "")]
        for (reference, _, defense), rows in _ordered(trainings).groupby(["reference", "_order", "defense"], sort=True):
            rows = rows.drop(columns="_order").sort_values("seed")
            itself = not reference and defense == UNDEFENDED
            difference = None if itself else paired_accuracy(rows, plain)
            named = (str(task), str(algorithm), str(defense), str(reference))
            summaries.append(TrainingSummary(*named, rows, difference))
    return summaries


def paired_accuracy(first: pd.DataFrame, second: pd.DataFrame) -> Interval | None:
    """Accuracy of `first` less that of `second`, paired over the seeds they share; None where they share none."""
    left, right = _bits_by_seed(first), _bits_by_seed(second)
    shared = sorted(left.keys() & right.keys())
    if not shared:
        return None
    return accuracy_difference([left[seed] for seed in shared], [right[seed] for seed in shared])


def _bits_by_seed(trainings: pd.DataFrame) -> dict[int, npt.NDArray[np.bool_]]:
    columns = (trainings["seed"], trainings["correct"], trainings["test_count"])
    return {seed: correct_bits(packed, count) for seed, packed, count in zip(*columns, strict=True)}


def _ordered(trainings: pd.DataFrame) -> pd.DataFrame:
    return trainings.assign(_order=(trainings["defense"] != UNDEFENDED).astype(int))
