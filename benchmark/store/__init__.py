"""The result schema and the folder of a run: all that the leaderboard knows of the benchmark."""

from __future__ import annotations

from benchmark.store.folder import Run, RunTables, correct_bits, read_manifest, read_run
from benchmark.store.rows import (
    CELL_KEY,
    EVALUATOR_VERSION,
    OF_UPDATES,
    ROUNDS_SO_FAR,
    SCORED,
    TRAINING_KEY,
    UNDEFENDED,
    CellRow,
    ImageRow,
    Manifest,
    Outcome,
    Role,
    TrainingRow,
    VictimKind,
    schema,
)

__all__ = [
    "CELL_KEY",
    "EVALUATOR_VERSION",
    "OF_UPDATES",
    "ROUNDS_SO_FAR",
    "SCORED",
    "TRAINING_KEY",
    "UNDEFENDED",
    "CellRow",
    "ImageRow",
    "Manifest",
    "Outcome",
    "Role",
    "Run",
    "RunTables",
    "TrainingRow",
    "VictimKind",
    "correct_bits",
    "read_manifest",
    "read_run",
    "schema",
]
