"""What is compared exactly: manifests, which cells there are, what became of them, their victims, and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from benchmark.store import CELL_KEY, SCORED, TRAINING_KEY, Manifest, RunTables
from leaderboard.gate.result import Finding, Status
from leaderboard.lines import Line

BYTES = {"bytes_up": "bytes up", "bytes_down": "bytes down", "key_bytes": "key bytes"}


def compare_manifests(run: Manifest, baseline: Manifest) -> list[Finding]:
    """What makes the two incomparable: evaluator version, data sets, configuration; each named with both values."""
    sides = [
        {
            "evaluator version": item.evaluator_version,
            **_flat("data set", item.datasets),
            **_flat("config", item.config),
        }
        for item in (run, baseline)
    ]
    names = sorted(sides[0].keys() | sides[1].keys())
    absent = "absent"
    return [
        Finding(
            Status.INCOMPARABLE,
            f"{name} differs: {sides[0].get(name, absent)} in the run, {sides[1].get(name, absent)} in the baseline",
        )
        for name in names
        if sides[0].get(name, absent) != sides[1].get(name, absent)
    ]


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Leaves of nested mappings by their dotted path."""
    if not isinstance(value, dict):
        return {name: value}
    return {path: leaf for key, inner in value.items() for path, leaf in _flat(f"{name}.{key}", inner).items()}


def _keyed(frame: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    return frame.set_index(list(key), drop=False)


def shared_cells(tables: RunTables, other: RunTables) -> RunTables:
    """The cells that the other has too, with their images: new attacks and seeds do not take part."""
    cells = _keyed(tables.cells, CELL_KEY)
    kept = cells[cells.index.isin(_keyed(other.cells, CELL_KEY).index)].reset_index(drop=True)
    return replace(tables, cells=kept, images=tables.images[tables.images["cell"].isin(kept["cell"])])


def missing_rows(run: RunTables, baseline: RunTables) -> Iterator[Finding]:
    """Cells and trainings of the baseline that the run lacks; a remark where the run has more."""
    for name, key in (("cells", CELL_KEY), ("trainings", TRAINING_KEY)):
        here, there = _keyed(getattr(run, name), key), _keyed(getattr(baseline, name), key)
        for row in there[~there.index.isin(here.index)].itertuples():
            yield Finding(Status.INCOMPARABLE, f"missing from the run: {describe(row)}, seed {row.seed}")
        extra = int((~here.index.isin(there.index)).sum())
        if extra:
            yield Finding(Status.PASSED, f"not gated, for the baseline does not have them: {extra} {name}")


def changed_outcomes(run: RunTables, baseline: RunTables) -> Iterator[Finding]:
    """Cells of which something else became: a crash, or a shortcut no longer earned, is a regression."""
    before = _keyed(baseline.cells, CELL_KEY)["outcome"]
    for index, row in zip(_keyed(run.cells, CELL_KEY).index, run.cells.itertuples(), strict=True):
        old = before.get(index)
        if old is None or old == row.outcome:
            continue
        text = f"{describe(row)}, seed {row.seed}: was {old!r}, is {row.outcome!r}"
        if row.outcome == "crashed" or (old == "ciphertext" and row.outcome == "measured"):
            yield Finding(Status.REGRESSED, f"{text} {row.detail}".rstrip())
        elif old in SCORED and row.outcome not in SCORED:
            yield Finding(Status.INCOMPARABLE, f"{text} {row.detail}".rstrip())
        else:
            yield Finding(Status.PASSED, text)


def changed_bytes(run: RunTables, baseline: RunTables) -> Iterator[Finding]:
    """Trainings that send, or hold as keys, another number of bytes, be it more or less."""
    before = _keyed(baseline.trainings, TRAINING_KEY)
    for index, row in zip(_keyed(run.trainings, TRAINING_KEY).index, run.trainings.itertuples(), strict=True):
        if index not in before.index:
            continue
        for column, words in BYTES.items():
            old, new = int(before.loc[index, column]), int(getattr(row, column))
            if old != new:
                text = f"{describe(row)}, seed {row.seed}: {words} {old} before, {new} now ({new - old:+d})"
                yield Finding(Status.REGRESSED, text)


def describe(row: Any) -> str:
    """A row of cells or trainings in words."""
    where = f"({row.task}, {row.algorithm})"
    if hasattr(row, "attack"):
        oracles = f" + {row.oracles}" if row.oracles else ""
        adversary = f"{row.position}/{row.knowledge}{oracles}"
        role = "" if row.role == "attack" else f", {row.role}"
        return f"{row.attack} on {row.defense} by {adversary}, round {row.snapshot}, {row.regime}{role} {where}"
    return f"{row.reference or row.defense} {where}"


def other_victims(after: Sequence[Line], before: Sequence[Line]) -> Iterator[Finding]:
    """Lines whose true images are not those of the baseline's line, so that nothing can be paired."""
    for new, old in zip(after, before, strict=True):
        if new.summary is None or old.summary is None:
            continue
        here, there = (
            set(zip(item.images["pairing"], item.images["seed"], strict=True)) for item in (new.summary, old.summary)
        )
        if here != there:
            text = f"{describe(next(old.cells.itertuples()))}: {len(here ^ there)} victims are not the baseline's"
            yield Finding(Status.INCOMPARABLE, text)
