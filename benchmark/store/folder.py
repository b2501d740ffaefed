"""A run's folder: three Parquet tables and a manifest, written and read as one.

The manifest carries the SHA-256 of the tables, so that files of different runs are never read together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from benchmark.store.rows import (
    CELL_KEY,
    ROWS,
    SCORED,
    TRAINING_KEY,
    CellRow,
    ImageRow,
    Manifest,
    Outcome,
    Role,
    TrainingRow,
    VictimKind,
    schema,
)
from federation.errors import DataError
from federation.files import atomic_write


@dataclass(frozen=True)
class RunTables:
    """A run in memory; the columns of the frames are the fields of the row classes."""

    trainings: pd.DataFrame
    cells: pd.DataFrame
    images: pd.DataFrame
    manifest: Manifest
    directory: Path


class Run:
    """The folder of a run: where its tables stand, and writing them as one."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    @property
    def manifest_path(self) -> Path:
        return self.directory / "manifest.json"

    def table_path(self, name: str) -> Path:
        return self.directory / f"{name}.parquet"

    def write(
        self,
        trainings: Sequence[TrainingRow],
        cells: Sequence[CellRow],
        images: Sequence[ImageRow],
        manifest: Manifest,
    ) -> None:
        """Write the three tables and the manifest; earlier ones stay as they were unless all of it could be written.

        Raises:
            DataError: a row that does not fit its schema, or rows that do not fit each other.
        """
        given: dict[str, Sequence[Any]] = {"trainings": trainings, "cells": cells, "images": images}
        self._store({name: _table(name, rows) for name, rows in given.items()}, manifest)

    def write_tables(self, tables: RunTables) -> None:
        """Write tables that were read elsewhere, with their manifest."""
        arrow = {
            name: pa.Table.from_pandas(getattr(tables, name), schema=schema(row), preserve_index=False)
            for name, row in ROWS.items()
        }
        self._store(arrow, tables.manifest)

    def _store(self, tables: dict[str, pa.Table], manifest: Manifest) -> None:
        frames = {name: _frame(table, ROWS[name]) for name, table in tables.items()}
        _check(RunTables(**frames, manifest=manifest, directory=self.directory))
        stamp = {"evaluator_version": manifest.evaluator_version}
        with contextlib.ExitStack() as stack:
            # Left in reverse order once all four are written: the manifest, entered first, is renamed last.
            manifest_file = stack.enter_context(atomic_write(self.manifest_path))
            hashes = {}
            for name, table in tables.items():
                file = stack.enter_context(atomic_write(self.table_path(name)))
                pq.write_table(table.replace_schema_metadata(stamp), file, compression="zstd")
                hashes[name] = _sha256(file)
            written = dataclasses.asdict(dataclasses.replace(manifest, tables=hashes))
            manifest_file.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_run(path: Path | str) -> RunTables:
    """Read a run's folder.

    Raises:
        DataError: a file that is missing or malformed, a table that is not the manifest's, or rows of different
            evaluator versions.
    """
    run = Run(path)
    manifest = read_manifest(path)
    frames = {name: _read_table(run, name, manifest) for name in ROWS}
    tables = RunTables(**frames, manifest=manifest, directory=run.directory)
    _check(tables)
    return tables


def correct_bits(packed: bytes, count: int) -> npt.NDArray[np.bool_]:
    """Unpack the column `correct`: booleans of shape (count,).

    Raises:
        DataError: fewer bits than `count`.
    """
    if len(packed) * 8 < count:
        raise DataError(f"trainings.correct holds {len(packed)} bytes, too few for {count} test images")
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(bool)


def _table(name: str, rows: Sequence[Any]) -> pa.Table:
    expected = schema(ROWS[name])
    try:
        # Not `asdict`, which would copy every list and follow nested dataclasses.
        return pa.Table.from_pylist([vars(row) for row in rows], schema=expected)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{name}: a row does not fit the columns of {ROWS[name].__name__}: {error}") from error


def _frame(table: pa.Table, row: type) -> pd.DataFrame:
    frame = table.to_pandas()
    for column in schema(row):
        if column.nullable and pa.types.is_integer(column.type):
            frame[column.name] = frame[column.name].astype("Int64")
    return frame


def read_manifest(directory: Path | str) -> Manifest:
    """Read the manifest alone, which holds whatever the evaluator version of the tables beside it.

    Raises:
        DataError: no manifest there, or a malformed one.
    """
    run = Run(directory)
    path = run.manifest_path
    if not path.is_file():
        raise DataError(
            f"{run.directory}: not a finished run, manifest.json is missing; give the folder that `keyhole run` wrote"
        )
    try:
        return TypeAdapter(Manifest).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: not a manifest of a run: {place}: {first['msg']}") from error


def _read_table(run: Run, name: str, manifest: Manifest) -> pd.DataFrame:
    path = run.table_path(name)
    if not path.is_file():
        raise DataError(f"{path}: missing; the manifest beside it expects it")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet table: {error}") from error
    version = (table.schema.metadata or {}).get(b"evaluator_version", b"none").decode()
    if version != manifest.evaluator_version:
        raise DataError(
            f"{path}: rows of evaluator version {version} beside a manifest of version {manifest.evaluator_version};"
            " versions are never mixed, run the experiment again"
        )
    expected = schema(ROWS[name])
    table = _with_later_columns(table, expected)
    if not table.schema.equals(expected):
        found, wanted = ({item.name: item for item in columns} for columns in (table.schema, expected))
        shared = found.keys() & wanted.keys()
        differing = sorted(found.keys() ^ wanted.keys() | {name for name in shared if found[name] != wanted[name]})
        raise DataError(
            f"{path}: columns differ from those of {ROWS[name].__name__}: {', '.join(differing) or 'their order'}"
        )
    if _sha256(path) != manifest.tables.get(name):
        raise DataError(
            f"{path}: not the table that the manifest beside it names (SHA-256 differs); run again to repair it"
        )
    return _frame(table, ROWS[name])


def _with_later_columns(table: pa.Table, expected: pa.Schema) -> pa.Table:
    """The table with those columns that it is too old to have and that may be empty."""
    for place, column in enumerate(expected):
        if column.nullable and column.name not in table.column_names:
            table = table.add_column(min(place, table.num_columns), column, pa.nulls(table.num_rows, column.type))
    return table


def _check(tables: RunTables) -> None:
    """Refuse empty values, names outside their vocabulary, and rows that point nowhere."""
    where = tables.directory
    for name, row in ROWS.items():
        frame = getattr(tables, name)
        for column in schema(row):
            if not column.nullable and frame[column.name].isna().any():
                raise DataError(
                    f"{where}: {name}.{column.name} has an empty or not-a-number value, it must be filled in every row"
                )
    for column, vocabulary in (("outcome", Outcome), ("role", Role), ("victim_kind", VictimKind)):
        unknown = set(tables.cells[column]) - set(get_args(vocabulary))
        if unknown:
            raise DataError(
                f"{where}: cells.{column} is {sorted(unknown)[0]!r}, expected one of {', '.join(get_args(vocabulary))}"
            )
    for name, key in (
        ("trainings", ("training",)),
        ("trainings", TRAINING_KEY),
        ("cells", ("cell",)),
        ("cells", CELL_KEY),
    ):
        frame = getattr(tables, name)
        repeated = frame[frame.duplicated(list(key))]
        if len(repeated):
            what = ", ".join(str(repeated.iloc[0][column]) for column in key)
            raise DataError(f"{where}: {name} holds more than one row of {what}")
    scored = tables.cells[tables.cells["outcome"].isin(SCORED)]
    _check_references(where, "cells.training", scored["training"], tables.trainings["training"])
    _check_references(
        where, "cells.control", tables.cells.loc[tables.cells["control"] != "", "control"], tables.cells["cell"]
    )
    _check_references(where, "images.cell", tables.images["cell"], scored["cell"])
    _check_references(where, "scored cells without images:", scored["cell"], tables.images["cell"])


def _check_references(where: Path, column: str, values: pd.Series, known: pd.Series) -> None:
    missing = set(values) - set(known)
    if missing:
        raise DataError(f"{where}: {column} {sorted(missing)[0]!r} points to no row")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
