"""What is compared by pairs, with a margin: attacks on undefended cells, defenses at their worst case, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from benchmark.store import TRAINING_KEY, UNDEFENDED, RunTables
from leaderboard.gate.exact import describe
from leaderboard.gate.result import Comparison
from leaderboard.lines import Line
from leaderboard.statistics import paired_difference
from leaderboard.trainings import paired_accuracy

PSNR_MARGIN = 0.5
"""In dB. With 32 images under 3 seeds it brings false alarms to 0.5% or less and finds 2 dB in about 85% of cases."""
IDENTIFICATION_MARGIN = 0.05
ACCURACY_MARGIN = 0.01


@dataclass(frozen=True)
class Quantity:
    """A measure of leakage: a column of the image table, the margin it is gated with, and what a guess reaches."""

    name: str
    column: str
    margin: float
    beats_guess: Callable[[Line], bool]

    def mean(self, line: Line) -> float:
        return line.scored.mean(self.column)


QUANTITIES = (
    Quantity("PSNR gain (dB)", "gain", PSNR_MARGIN, lambda line: line.scored.gain.high > 0),
    Quantity(
        "identification",
        "identified",
        IDENTIFICATION_MARGIN,
        lambda line: line.scored.identification.high > line.scored.chance,
    ),
)


def compare_attacks(after: Sequence[Line], before: Sequence[Line]) -> Iterator[Comparison]:
    """Each attack on undefended cells: regressed where it is weaker by more than the margin."""
    for new, old in zip(after, before, strict=True):
        if new.defense == UNDEFENDED and new.summary is not None and old.summary is not None:
            for quantity in QUANTITIES:
                comparison = _compare(quantity, new, old)
                yield replace(comparison, regressed=comparison.difference.high < -comparison.margin)


def compare_defenses(after: Sequence[Line], before: Sequence[Line]) -> Iterator[Comparison]:
    """Each defense at its worst case: regressed where it leaks more by more than the margin, and more than a guess.

    The worst case is taken for each quantity by itself, so that more of either is seen whichever attack brings it.
    """

    def place(line: Line) -> tuple[Any, str]:
        return line.setting, line.defense

    for (_, new_lines), (_, old_lines) in zip(groupby(after, place), groupby(before, place), strict=True):
        new_scored, old_scored = (_scored_attacks(lines) for lines in (new_lines, old_lines))
        if not new_scored or not old_scored or new_scored[0].defense == UNDEFENDED:
            continue
        for quantity in QUANTITIES:
            new, old = (max(lines, key=quantity.mean) for lines in (new_scored, old_scored))
            comparison = _compare(quantity, new, old)
            # Below the floor nothing leaks, and the noise of an attack that fails may well move there.
            leaks_more = comparison.difference.low > comparison.margin and quantity.beats_guess(new)
            yield replace(comparison, regressed=leaks_more)


def _scored_attacks(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line.summary is not None and line.role == "attack"]


def _compare(quantity: Quantity, new: Line, old: Line) -> Comparison:
    subject = describe(next(new.cells.itertuples()))
    if (new.attack, new.snapshot, new.regime) != (old.attack, old.snapshot, old.regime):
        subject += f" [the baseline's worst case: {old.name}, {old.regime}]"
    change = paired_difference(new.scored.scores(quantity.column), old.scored.scores(quantity.column))
    means = (quantity.mean(old), quantity.mean(new))
    return Comparison(subject, quantity.name, *means, change, quantity.margin, regressed=False)


def compare_accuracies(run: RunTables, baseline: RunTables) -> Iterator[Comparison]:
    """Each training over the seeds both have: regressed where it is less accurate by more than the margin."""
    together = [name for name in TRAINING_KEY if name != "seed"]
    after = dict(list(run.trainings.groupby(together)))
    for key, old in baseline.trainings.groupby(together):
        if key not in after:
            continue
        change = paired_accuracy(after[key], old)
        if change is not None:
            means = (float(old["accuracy"].mean()), float(after[key]["accuracy"].mean()))
            lower = change.high < -ACCURACY_MARGIN
            yield Comparison(describe(next(old.itertuples())), "accuracy", *means, change, ACCURACY_MARGIN, lower)
