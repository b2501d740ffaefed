"""Tables, figures and the page of the PriDe reproduction, from a result that the tests make up."""

from __future__ import annotations

import csv
import html
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmark.store import Manifest
from benchmark.store.pride import (
    COLUMNS,
    AdversaryResult,
    Deviation,
    KeyLength,
    ModelResult,
    PictureResult,
    PrideResult,
    PrideSetting,
    SliceResult,
    Times,
    write_pride,
)
from federation.errors import DataError
from leaderboard.reproduction.pride import write_pride_report
from leaderboard.reproduction.pride_pictures import recovered_digits
from leaderboard.reproduction.pride_tables import accuracy_table, shown_value, time_table
from leaderboard.reproduction.report import ReproductionReport

HOSTILE = "<img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}$x_1$"
NAMES = ["centralised", *(f"party {n}" for n in range(6)), *(f"cloud + party {n}" for n in range(1, 6)), "six parties"]
ALONE = NAMES[:7]


def rows() -> list[ModelResult]:
    """Every model in every column that it has, with figures that tell them apart."""
    found = []
    for column_number, column in enumerate(COLUMNS):
        for number, name in enumerate(NAMES):
            if column == "coded-1e-7" and name in ALONE:
                continue
            seconds = 10.0 * (number + 1) + column_number
            times = Times(
                train=seconds, encrypt=1.0, aggregate=0.5, decrypt=2.0, sequence=seconds, parallel=seconds / 2
            )
            printed = column == "printed"
            found.append(
                ModelResult(
                    model=name,
                    column=column,
                    accuracy=0.5 + number / 100 + column_number / 1000,
                    tested_on=None if printed else 200 if column.startswith("coded") else 10_000,
                    accuracy_on_all=None if printed else 0.25,
                    confusion=[] if printed else [30, 20, 10, 40],
                    times=Times(sequence=seconds) if printed else times,
                    bytes_up=None if printed or name in ALONE else 800_000,
                    note="as the baseline" if printed and name in ("party 2", "party 5") else "",
                )
            )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pride")


@pytest.fixture(scope="module")
def result(folder: Path) -> PrideResult:
    pictures = []
    kinds = ("one-image update, rows alone", "one-image update, eq. 2.2", "weight image")
    for kind in kinds:
        for party in [f"party {n}" for n in range(6)] if kind == "weight image" else ["party 1"]:
            for label in range(2):
                name = f"{kind}-{party}-{label}.png".replace(" ", "-").replace(",", "")
                pixels = np.random.default_rng(label).integers(0, 256, (28, 28)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name)
                reference = 16.0 if kind == "weight image" else None
                pictures.append(PictureResult(kind, party, label, name, name, 15.5, reference))
    return PrideResult(
        manifest=Manifest(
            name="pride",
            created="2026-01-01T00:00:00+00:00",
            preset="",
            config={"seed": 0},
            versions={"python": "3.11"},
            git_commit="c" * 40,
            git_dirty=False,
            hardware={"cpu": HOSTILE, "cores": 2, "memory": 1},
            datasets={"mnist": "d" * 64},
            lpips_trunk=None,
        ),
        setting=PrideSetting(
            dataset="mnist",
            provenance=HOSTILE,
            scale=14,
            classes=["0", "1"],
            sizes=[85, 2142, 214, 85, 857, 21],
            slices=[14, 357, 35, 14, 142, 3],
            centralised=4285,
            test=600,
            key_bits=2048,
            seed=0,
        ),
        models=rows(),
        slices=[SliceResult("party 0", 200 * index, 200, 0.8 + index / 100) for index in range(5)],
        adversaries=[
            AdversaryResult("the cloud", "a key", HOSTILE, "recovered", 1.0, "share", 1568, ""),
            AdversaryResult("anyone", "nothing", "exponents", "leaked", 1.37, "bits", 7840, "a note"),
        ],
        pictures=pictures,
        key_lengths=[KeyLength(512, 0.0007), KeyLength(2048, 0.015)],
        printed_seconds_per_weight=[0.00062, 0.00069],
        deviations=[Deviation("what the paper did", f"an effect, {HOSTILE}")],
        seconds=60.0,
    )


@pytest.fixture(scope="module")
def report(folder: Path, result: PrideResult) -> ReproductionReport:
    write_pride(folder, result)
    return write_pride_report(folder)


def test_accuracies_stand_in_their_columns(result: PrideResult) -> None:
    records = {record["model"]: record for record in accuracy_table(result).records}
    assert list(records) == NAMES
    six = records["six parties"]
    assert [six[column] for column in COLUMNS] == [pytest.approx(0.62 + index / 1000) for index in range(4)]
    assert (six["tested_coded"], six["tested_sound"], six["points"]) == (200, 10_000, 3404)
    assert (six["coded_on_all"], six["coded-1e-7_on_all"]) == (0.25, 0.25)
    assert records["party 0"]["coded-1e-7"] is None
    assert records["cloud + party 4"]["points"] == 85 + 857
    assert records["centralised"]["points"] == 4285


def test_a_note_stands_once_with_all_that_it_is_about(result: PrideResult) -> None:
    assert accuracy_table(result).notes == ["printed, party 2, party 5: as the baseline"]


def test_reduced_data_are_labelled_everywhere(result: PrideResult, report: ReproductionReport) -> None:
    label = "mnist, the paper's sizes divided by 14"
    text = (report.directory / "pride.md").read_text(encoding="utf-8")
    assert text.count(label) >= 4, "each table says it"
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", report.page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(captions) == 8
    assert all(html.escape(label, quote=True).replace("&#x27;", "&#39;") in caption for caption in captions)
    full = replace(result, setting=replace(result.setting, scale=1))
    assert "mnist at the paper's sizes" in accuracy_table(full).caption


def test_times_leave_out_what_is_the_same_training_again(result: PrideResult) -> None:
    table = time_table(result)
    listed = [(record["model"], record["column"]) for record in table.records]
    assert ("party 0", "Sound") not in listed
    assert ("six parties", "Sound") in listed
    assert [model for model, _ in listed] == sorted((model for model, _ in listed), key=NAMES.index)
    assert "0.62 to 0.69 ms" in table.caption
    assert "15.00 ms at 2048 bits" in table.caption


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(1.0, "share", "100.0%"), (1.1e-16, "error", "1.1e-16"), (0.0, "error", "0"), (1.372, "bits", "1.37 bits")],
)
def test_values_are_shown_in_their_unit(value: float, unit: str, expected: str) -> None:
    assert shown_value(AdversaryResult("a", "b", "c", "d", value, unit, 1, "")) == expected


def test_report_holds_page_tables_and_figures(report: ReproductionReport) -> None:
    assert all(file.is_file() for file in report.files)
    for file in report.files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width > 400
                assert np.asarray(image.convert("L")).std() > 5, f"{file.name} is not empty"
    assert {file.name for file in report.files} == {
        *("index.html", "pride.md", "accuracy.csv", "deviations.csv", "adversaries.csv", "time.csv"),
        *("accuracy.png", "slices.png", "times.png", "one-image-updates.png", "weight-images.png"),
        *(f"confusion-{column}.png" for column in ("coded", "coded-1e-7", "sound")),
    }
    accuracy = list(csv.DictReader(io.StringIO((report.directory / "tables" / "accuracy.csv").read_text())))
    assert [row["model"] for row in accuracy] == NAMES
    assert float(accuracy[-1]["sound"]) == pytest.approx(0.623)


def test_page_stands_alone_and_escapes_what_comes_from_outside(
    report: ReproductionReport, read_page: Callable[[Path], Any]
) -> None:
    page = read_page(report.page)
    assert page.stands_alone
    assert HOSTILE not in page.text
    assert "{{ 7 * 7 }}" in page.text, "text is shown, not evaluated"
    assert page.tags.count("img") == 8


def test_terminal_shows_every_table(report: ReproductionReport) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.terminal)
    text = console.export_text()
    for word in ("As coded, 1e-7", "62.30%", "1.37 bits", "an effect", "800.0 kB"):
        assert word in text


@pytest.mark.parametrize(("content", "message"), [(None, "missing"), (b"no picture", "not a readable image")])
def test_an_image_that_cannot_be_read_is_named(
    result: PrideResult, folder: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    for file in folder.glob("*.png"):
        shutil.copy(file, tmp_path)
    name = result.pictures[0].original
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        recovered_digits(result, tmp_path)
