"""What is compared by pairs, with a margin: attacks on undefended cells, defenses at their worst case, accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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


def compare_attacks(after: Sequence[Line], before: Sequence[Line]) -> Iterator[Comparison]:
    """Each attack on undefended cells: regressed where it is weaker by more than the margin."""
    for new, old in zip(after, before, strict=True):
        if new.defense == UNDEFENDED:
            for comparison in _compare(new, old):
                yield replace(comparison, regressed=comparison.difference.high < -comparison.margin)


def compare_defenses(after: Sequence[Line], before: Sequence[Line]) -> Iterator[Comparison]:
    """Each defense at its worst case: regressed where it leaks more by more than the margin, and above the floor."""

    def place(line: Line) -> tuple[Any, str]:
        return line.setting, line.defense

    for (_, new_lines), (_, old_lines) in zip(groupby(after, place), groupby(before, place), strict=True):
        new, old = (_worst(list(lines)) for lines in (new_lines, old_lines))
        if new is None or old is None or new.defense == UNDEFENDED or new.summary is None:
            continue
        # Below the floor nothing leaks, and the noise of an attack that fails may well move there.
        above = new.summary.gain.high > 0 or new.summary.identification.low > new.summary.chance
        for comparison in _compare(new, old):
            yield replace(comparison, regressed=above and comparison.difference.low > comparison.margin)


def _worst(lines: Sequence[Line]) -> Line | None:
    scored = [line for line in lines if line.summary is not None and line.role == "attack"]
    return max(scored, key=lambda line: line.leakage, default=None)


def _compare(new: Line, old: Line) -> Iterator[Comparison]:
    if new.summary is None or old.summary is None:
        return
    subject = describe(next(new.cells.itertuples()))
    if new.name != old.name or new.regime != old.regime:
        subject += f" [baseline's worst case: {old.name}, {old.regime}]"
    quantities = (("gain", "PSNR gain (dB)", PSNR_MARGIN), ("identified", "identification", IDENTIFICATION_MARGIN))
    for column, quantity, margin in quantities:
        change = paired_difference(new.summary.scores(column), old.summary.scores(column))
        means = (old.summary.mean(column), new.summary.mean(column))
        yield Comparison(subject, quantity, *means, change, margin, regressed=False)


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
